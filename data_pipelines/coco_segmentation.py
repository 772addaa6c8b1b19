"""Segmentations of COCO annotation files: many of them in a few flat arrays, and each of them as a mask.

Polygons are filled here, by pixel centres, as the COCO tools do to within the outline; those tools take a short polygon for a
box (D17). Overlapping rings of one annotation are united, never added (D23).
"""

import array

import numpy as np

from data_pipelines.masks import FARTHEST, decode_rle


def rasterise(ring, hw):
    """float[P, 2] corners (x, y) -> uint8[H, W]: 1 where the centre of a pixel lies inside by the even-odd rule.

    Pixel (row r, column c) covers [c, c + 1) x [r, r + 1). A ring too thin to hold a pixel centre gives an empty mask.
    """
    height, width = hw
    x0, y0 = np.asarray(ring, np.float64).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)  # rows whose centre the edge crosses
    count = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64) - first
    mask = np.zeros((height, width), np.uint8)
    if not count.sum():
        return mask
    edge = np.repeat(np.arange(len(count)), count)
    rows = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    crossing = x0[edge] + (rows + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)  # everything from here on changes sides
    top, left, wide = rows.min(), columns.min(), columns.max() - columns.min() + 1
    size = (rows.max() - top + 1) * wide
    toggles = np.bincount((rows - top) * wide + columns - left, minlength=size).reshape(-1, wide)
    inside = (np.cumsum(toggles, axis=1) & 1)[:, :-1]
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


class Segmentations:
    """Numbered from 0 in the order they were added. Corners are float32, which is exact to 1/1000 pixel in any real image."""

    def __init__(self):
        self._corners = array.array("f")  # x, y, x, y, ... of all rings
        self._ring_ends = array.array("q", [0])  # ring i is _corners[_ring_ends[i] : _ring_ends[i + 1]]
        self._ends = array.array("q", [0])  # segmentation i has the rings _ends[i] to _ends[i + 1]
        self._runs = {}  # {number: [counts, ...]} of those given as run lengths

    def __len__(self):
        return len(self._ends) - 1

    def add(self, segmentation, hw):
        """The `segmentation` of an annotation of an image of height and width `hw`; returns its number.

        Polygons [[x, y, ...], ...], run lengths {"size", "counts"}, or a list of these. Rings of fewer than three corners cover
        nothing and are left out. Raises ValueError for anything else, and where nothing is left; then nothing is added.
        """
        pieces = [segmentation] if isinstance(segmentation, dict) else segmentation
        if not isinstance(pieces, list) or not all(isinstance(piece, list | dict) for piece in pieces):
            raise ValueError("segmentation is neither a list of polygons nor run lengths")
        runs = [_counts(piece, hw) for piece in pieces if isinstance(piece, dict)]
        rings = [_corners(piece) for piece in pieces if isinstance(piece, list) and len(piece) >= 6]
        if runs and rings:
            raise ValueError("segmentation mixes polygons and run lengths")
        if not runs and not rings:
            raise ValueError("segmentation covers nothing")
        for ring in rings:
            self._corners.extend(ring)
            self._ring_ends.append(len(self._corners))
        self._ends.append(len(self._ring_ends) - 1)
        if runs:
            self._runs[len(self) - 1] = runs
        return len(self) - 1

    def mask(self, numbers, hw):
        """uint8[H, W]: the union of the segmentations with these numbers. Raises ValueError for broken run lengths."""
        united = np.zeros(tuple(hw), np.uint8)
        for number in numbers:
            for counts in self._runs.get(number, ()):
                united |= decode_rle(counts, hw)
            for ring in range(self._ends[number], self._ends[number + 1]):
                flat = self._corners[self._ring_ends[ring] : self._ring_ends[ring + 1]]
                united |= rasterise(np.array(flat, np.float32).reshape(-1, 2), hw)
        return united


def _corners(piece):
    """Flat list of a ring -> array of float32."""
    try:
        ring = array.array("f", piece)
    except (TypeError, OverflowError) as error:
        raise ValueError("polygon is not a list of numbers") from error
    if len(ring) % 2 or not np.abs(np.frombuffer(ring, np.float32)).max() <= FARTHEST:  # not (): also for NaN
        raise ValueError(f"polygon has an odd number of coordinates, or one beyond {FARTHEST}")
    return ring


def _counts(piece, hw):
    if piece.get("size") != list(hw) or not isinstance(piece.get("counts"), str | list):
        raise ValueError(f"run lengths have size {piece.get('size')}, the image is {list(hw)}")
    return piece["counts"]
