"""Folders and sources for the tests of building."""

import time

import numpy as np

from data_pipelines.explanatory import Explanatory
from data_pipelines.masks import decode_segmentation


class Slow(Explanatory):
    """A build of it takes long enough to be killed in the middle."""

    def record(self, index):
        time.sleep(0.05)
        return super().record(index)


class DrawsOnly:
    """A source of somebody else that cannot give its records whole."""

    family, dataset, grounded = "explanatory", "draws+only", True

    def __init__(self, root, *, split="train"):
        self._source = Explanatory(root, split=split)
        self.skipped = self._source.skipped

    def __len__(self):
        return len(self._source)

    def sample(self, index, rng):
        return self._source.sample(index, rng)


def pixels(mask):
    return mask if isinstance(mask, np.ndarray) else decode_segmentation(mask)


def assert_equal_samples(stored, raw):
    """All but the place of the image, which is compared byte by byte."""
    for name in ("family", "dataset", "key", "dialogues"):
        assert getattr(stored, name) == getattr(raw, name), name
    assert len(stored.masks) == len(raw.masks)
    for mask, expected in zip(stored.masks, raw.masks, strict=True):
        np.testing.assert_array_equal(pixels(mask), pixels(expected))
    if raw.image is None:
        assert stored.image is None
    else:
        with open(raw.image, "rb") as file:
            assert stored.image.data == file.read()


def shard_bytes(folder):
    """{name: bytes} of everything that a build wrote and that must not depend on how it was written."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", ".lock")
    }
