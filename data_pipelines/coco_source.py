"""What the sources of one COCO annotation file share: their records by file name, and masks of the segmentations kept of it."""

from data_pipelines.coco_segmentation import Segmentations
from data_pipelines.naming import check_per_image
from plum_jax.errors import UserError


class CocoSource:
    """One record for each image, sorted by file name. Subclasses fill `_records` and add to `_segmentations`."""

    def __init__(self, dataset, path, images, per_image):
        self.dataset, self.path, self.per_image = dataset, path, check_per_image(per_image)
        self._images, self._segmentations, self._records = images, Segmentations(), []

    def __len__(self):
        return len(self._records)

    def _about(self, name, file):
        """What every record says of its image."""
        return {"key": name, "image": str(self._images / name), "dataset": self.dataset, "file": str(file)}

    def _mask(self, numbers, hw, name):
        """uint8[H, W]: the union of the segmentations with these numbers, of the image `name`. UserError for a broken one."""
        try:
            return self._segmentations.mask(numbers, hw)
        except ValueError as error:
            raise UserError(f"{self.path}: an annotation of {name}: {error}; download the file again") from error
