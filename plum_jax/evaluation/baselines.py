"""What masks that look at nothing score: the floor under every gmIoU. The text baselines are in `text`."""

import numpy as np

from plum_jax.evaluation import run_lengths

# The last three come from the annotation, which no model has: they say how far "somewhere on the object" gets.
NAMES = ("empty", "whole_image", "random_box", "object_box", "object_region", "another_part")
SEED = 42


def random_box(hw, rng):
    """A rectangle whose corners are drawn uniformly from the image's pixels."""
    (top, bottom), (left, right) = (np.sort(rng.integers(side, size=2)) for side in hw)
    return run_lengths.box(int(left), int(top), int(right - left + 1), int(bottom - top + 1), hw)


def scores(target, region, hw, seed, *, empty_union="one"):
    """IoU of each target mask with what a baseline gives for it.

    Args:
      target: masks of the parts asked for, at least one. region: union of the object's parts. seed: of this question.

    Returns:
      {baseline: float64[parts]}. `another_part` gives each part the mask of the next one, and has no value for a single part.
    """
    rng, count = np.random.default_rng((SEED, seed)), len(target)
    left, top, width, height = run_lengths.bounds(region)
    box = run_lengths.box(left, top, width, height, hw) if width and height else run_lengths.empty(hw)
    same = [run_lengths.empty(hw), run_lengths.full(hw), box, region]  # one mask for all parts
    ious = run_lengths.iou_matrix(
        [*same, *(random_box(hw, rng) for _ in target), *target[1:], target[0]], target, empty_union=empty_union
    )
    found = dict(zip(("empty", "whole_image", "object_box", "object_region"), ious[:4], strict=True))
    found["random_box"] = np.diagonal(ious[4 : 4 + count])
    found["another_part"] = np.diagonal(ious[4 + count :]) if count > 1 else np.zeros(0)
    return {name: np.array(found[name], np.float64) for name in NAMES}
