"""Masks as COCO run lengths: IoU, unions and shares without decoding, so that scoring costs per run and not per pixel.

A mask is {"size": [H, W], "counts": str}. The COCO library reads malformed counts without noticing, so `check` every mask that
comes from a file once; the other functions trust their arguments.
"""

import numpy as np
from pycocotools import mask as rle_codec

from data_pipelines.masks import rle_area, runs_of
from plum_jax.evaluation.masks import EMPTY_UNION

MOST_AT_ONCE = 255  # rle_codec.area fails on longer lists


def check(rle, hw):
    """Raises ValueError unless `rle` is a mask whose runs fill an image of size hw. Returns it with these two keys only."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise ValueError("mask is no object with size and counts")
    if list(rle["size"]) != [int(side) for side in hw]:
        raise ValueError(f"mask has size {list(rle['size'])}, its image {[int(side) for side in hw]}")
    if not isinstance(rle["counts"], str):
        raise ValueError(f"counts is a {type(rle['counts']).__name__}, not a compressed COCO run-length string")
    rle_area(rle["counts"], hw)
    return {"size": [int(side) for side in hw], "counts": rle["counts"]}


def areas(rles):
    """int64[n]: pixels of each mask."""
    rles = list(rles)
    groups = [rles[i : i + MOST_AT_ONCE] for i in range(0, len(rles), MOST_AT_ONCE)]
    return np.array([area for group in groups for area in rle_codec.area(group)], np.int64)


def iou_matrix(predicted, target, *, empty_union="one"):
    """IoU of every predicted mask with every target mask, both of one size: float64[n, m].

    `empty_union` is the score of two empty masks, a key of `masks.EMPTY_UNION`; "skip" gives NaN, which the means leave out.
    """
    if not len(predicted) or not len(target):
        return np.zeros((len(predicted), len(target)))
    found = np.asarray(rle_codec.iou(list(predicted), list(target), [0] * len(target)), np.float64)
    empty = (areas(predicted) == 0)[:, None] & (areas(target) == 0)[None]
    return np.where(empty, EMPTY_UNION[empty_union], found)


def shares(rles, regions):
    """float64[n, m]: share of the pixels of each mask that lie in each region; NaN for an empty mask."""
    if not len(rles) or not len(regions):
        return np.zeros((len(rles), len(regions)))
    # With iscrowd the COCO library divides the intersection by the area of the first argument.
    found = np.asarray(rle_codec.iou(list(rles), list(regions), [1] * len(regions)), np.float64)
    return np.where((areas(rles) == 0)[:, None], np.nan, found)


def union(rles):
    """The pixels of any of at least one mask."""
    if len(rles) == 1:
        return rles[0]
    merged = rle_codec.merge(list(rles), intersect=False)
    return {"size": list(rles[0]["size"]), "counts": merged["counts"].decode("ascii")}


def columns(rle, start, stop):
    """Columns start to stop of a mask, decoded: bool[stop - start, H]. Costs nothing for the others."""
    height, width = rle["size"]
    edges = np.concatenate([[0], np.cumsum(runs_of(rle["counts"], (height, width)))])
    inside = np.diff(np.clip(edges, start * height, stop * height))
    return np.repeat(np.arange(len(inside)) % 2 == 1, inside).reshape(stop - start, height)


def from_columns(found, start, hw):
    """bool[n, H], n columns from `start` on, the others empty -> a mask of size hw."""
    flat = np.zeros(found.size + 2, bool)
    flat[1:-1] = found.reshape(-1)
    return _from_edges(np.flatnonzero(flat[1:] != flat[:-1]) + start * hw[0], hw)


def box(left, top, width, height, hw):
    """A filled rectangle of at least one pixel inside the image, as a mask."""
    found = np.zeros((width, hw[0]), bool)
    found[:, top : top + height] = True
    return from_columns(found, left, hw)


def bounds(rle):
    """(left, top, width, height) of the smallest box around a mask; zeros when it is empty."""
    return tuple(int(x) for x in rle_codec.toBbox(rle))


def _from_edges(edges, hw):
    """Where runs of ones start and end, in turn, in pixels down the columns -> a mask."""
    runs = np.diff(np.concatenate([[0], edges, [hw[0] * hw[1]]])).tolist()
    plain = {"size": [int(hw[0]), int(hw[1])], "counts": runs if runs[-1] else runs[:-1]}
    packed = rle_codec.frPyObjects(plain, *plain["size"])
    return {"size": plain["size"], "counts": packed["counts"].decode("ascii")}


def empty(hw):
    """A mask without a pixel."""
    return _from_edges([], hw)


def full(hw):
    """A mask of the whole image."""
    return _from_edges([0, hw[0] * hw[1]], hw)
