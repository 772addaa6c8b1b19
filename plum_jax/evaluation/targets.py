"""The masks that predictions are scored against, read from the question file."""

from data_pipelines.masks import part_masks
from plum_jax.errors import UserError


def target_masks(question, hw, source, index):
    """{part: bool[H, W]} of all visible parts of a question.

    Args:
      hw: size of the upright image. source, index: file of the question and its place there, for messages.

    Raises:
      UserError: a mask cannot be read or has another size.
    """
    try:
        return {name: mask.astype(bool) for name, mask in part_masks(question.segmentations, hw).items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: entry {index}: {error}; correct the segmentations") from error


def image_hw(question, prediction):
    """(H, W) of the upright image: that of the predicted masks, which are of its size, or else of the targets."""
    spans = [span for answer in prediction.answers.values() for span in answer.spans]
    if spans:
        return tuple(spans[0].mask["size"])
    entry = next(entry for entries in question.segmentations.values() for entry in entries)
    return tuple(entry.get("segmentation", entry)["size"])
