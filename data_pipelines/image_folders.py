"""Whether the images that a data file names are there: paths that stay in their folder, and one listing for very many files."""

import os


def inside(path):
    """Whether a path of a data file stays in the folder that it is relative to."""
    steps = path.replace("\\", "/").split("/")
    return steps[0] != "" and ":" not in steps[0] and ".." not in steps and "\0" not in path


def find_image(folders, image):
    """Path of the image in the first folder that has it, else None."""
    paths = (os.path.join(folder, image) for folder in folders)
    return next((path for path in paths if os.path.isfile(path)), None)


class Listing:
    """`find_image` for very many images: every folder is listed once, instead of asking for each file."""

    def __init__(self, folders):
        self.folders, self.names = folders, {}

    def find(self, image):
        """Path of the image in the first folder that has it, else None."""
        directory, name = os.path.split(image)
        there = (folder for folder in self.folders if name in self._files(os.path.join(folder, directory)))
        return next((os.path.join(folder, image) for folder in there), None)

    def _files(self, directory):
        if directory not in self.names:
            try:
                with os.scandir(directory) as items:
                    self.names[directory] = {item.name for item in items if item.is_file()}
            except OSError:
                self.names[directory] = set()
        return self.names[directory]
