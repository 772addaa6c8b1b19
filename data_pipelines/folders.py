"""Folders of data sets when a source is opened: index files that are read once, and which images are there."""

import errno
import json
import os
import stat
from pathlib import Path

from plum_jax.errors import UserError


def read_json(path, advice, *, kind="file", repair="download it again"):
    """The content of a JSON file. UserError where it is missing, with `advice` on where it comes from, or cannot be read."""
    try:
        check_regular(path)
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {kind}; {advice}") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply; {repair}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {repair}") from error


def read_coco(path, advice):
    """A COCO file: a dictionary whose "images", "annotations" and "categories" are lists of dictionaries; else UserError."""
    content = read_json(path, advice)
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: has no list {name!r} of objects as COCO files do; {advice}")
    return content


def identity(entry, field):
    """The number or word that identifies something in a COCO file, None where it is neither."""
    value = entry.get(field)
    return value if isinstance(value, int | str) else None


def image_size(entry):
    """(height, width) of an entry of "images", None where they are not two positive whole numbers."""
    hw = entry.get("height"), entry.get("width")
    return hw if all(type(side) is int and side > 0 for side in hw) else None


def inside(name):
    """Whether a file name of an index stays inside the folder that it is relative to."""
    if not isinstance(name, str) or not name.strip():
        return False
    steps = name.replace("\\", "/").split("/")
    return steps[0] != "" and ":" not in steps[0] and ".." not in steps and "\0" not in name


def within(root, name, *, follow_links=False):
    """Path of the file `name` in the folder `root`. UserError when the name, or unless `follow_links` a link, leaves it.

    A data set that somebody else made may hold a link to any file of this machine, which a gallery would then show.
    """
    if not inside(name):
        raise UserError(f"{str(name)[:200]!r}: leaves the folder {root}; give a path relative to it, without ..")
    path = Path(root) / name
    if not follow_links and not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), "")):
        raise UserError(f"{path}: is a link out of {root}; copy the file there, or pass --follow-links if the link is yours")
    return path


def check_regular(path):
    """OSError when `path` is missing, or a folder, a device or a pipe, which would be read for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EISDIR, "a folder, device or pipe, not a file", str(path))


def stems(folder, suffixes, advice):
    """{stem: file name} of the files in a folder with one of these endings (lower case); UserError without the folder."""
    found = {}
    for name in sorted(_names(folder, advice)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            found.setdefault(stem, name)
    return found


def present(folder, names, advice):
    """The set of those relative file names that exist in `folder`. UserError when `folder` is missing."""
    _names(folder, advice)
    listing = Listing((folder,))
    return {name for name in names if listing.find(name)}


class Listing:
    """Which images are there, for very many of them: every folder is listed once instead of asking for each file.

    A listing is far cheaper than as many questions, above all on network storage.
    """

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
                    self.names[directory] = {item.name for item in items if _is_there(item)}
            except OSError:
                self.names[directory] = set()
        return self.names[directory]


def _is_there(item):
    """Whether a name in a folder can be asked for: no folder, no link to nothing. A pipe is, and refused when read."""
    if item.is_symlink():  # DirEntry.is_file() raises for a link to itself
        return os.path.exists(item.path) and not os.path.isdir(item.path)
    return not item.is_dir()


def find_image(folders, image):
    """What `Listing.find` gives, for a single image."""
    paths = (os.path.join(folder, image) for folder in folders)
    return next((path for path in paths if os.path.isfile(path)), None)


def _names(folder, advice):
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder}: no such folder; {advice}") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); change its permissions") from error
