"""The masks that predictions are scored against, read from the question file."""

import dataclasses
import functools
import json

import numpy as np

from data_pipelines.masks import decode_segmentation
from plum_jax import coco
from plum_jax.errors import UserError
from plum_jax.evaluation import mask_relations, run_lengths


@dataclasses.dataclass(frozen=True)
class Targets:
    """The visible parts of one object as run lengths, with what follows from them for every question about it."""

    hw: tuple  # of the upright image
    masks: dict  # {part: run lengths}, sorted by name
    areas: dict  # {part: share of the image}

    @functools.cached_property
    def region(self):
        """The object, as far as the annotation knows it: the union of its parts."""
        return run_lengths.union(list(self.masks.values()))

    @functools.cached_property
    def overlap(self):
        return mask_relations.sibling_overlap(list(self.masks.values()))


def targets_of(question, hw, source, index):
    """records.Question -> Targets.

    Args:
      hw: size of the upright image. source, index: file of the question and its place there, for messages.

    Raises:
      UserError: a mask cannot be read or has another size.
    """
    try:
        return _targets(json.dumps(question.segmentations, sort_keys=True), tuple(int(side) for side in hw))
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: entry {index}: {error}; correct the segmentations") from error


@functools.lru_cache(maxsize=16)
def _targets(segmentations, hw):
    """The questions about an object follow each other, and share its masks."""
    masks = {part: _united(part, entries, hw) for part, entries in json.loads(segmentations).items()}
    areas = run_lengths.areas(masks.values()) / np.prod(hw, dtype=np.int64)
    return Targets(hw, masks, dict(zip(masks, areas.tolist(), strict=True)))


def _united(part, entries, hw):
    """The entries of a part (D 1.3), united as run lengths."""
    try:
        found = [_run_lengths(entry, hw) for entry in entries]
    except ValueError as error:
        raise ValueError(f"mask of {part!r}: {error}") from error
    return run_lengths.union(found) if found else run_lengths.empty(hw)


def _run_lengths(entry, hw):
    inner = entry.get("segmentation", entry) if isinstance(entry, dict) else entry
    if isinstance(inner, dict) and isinstance(inner.get("counts"), str):
        return run_lengths.check(inner, hw)
    mask = decode_segmentation(entry)
    if mask.shape != hw:
        raise ValueError(f"is {mask.shape[0]} x {mask.shape[1]}, image is {hw[0]} x {hw[1]}")
    return coco.encode(mask)


def image_hw(question, prediction):
    """(H, W) of the upright image: that of the predicted masks, which are of its size, or else of the targets."""
    spans = [span for answer in prediction.answers.values() for span in answer.spans]
    if spans:
        return tuple(spans[0].mask["size"])
    entry = next(entry for entries in question.segmentations.values() for entry in entries)
    return tuple(entry.get("segmentation", entry)["size"])
