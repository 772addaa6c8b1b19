"""Masks: COCO run lengths and polygons to arrays and back, part masks, part of each CLIP patch (D 1.3)."""

import functools

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from data_pipelines.images import clip_geometry


def decode_rle(counts, hw):
    """Compressed COCO run lengths (str) or plain ones (list) -> uint8[H, W]. Raises ValueError when they do not fill it.

    Runs go down the columns and start with zeros. A number takes 5 bits a character, lowest first, sign in the last one;
    from the fourth run on it is the difference to the run two before. (pycocotools writes these strings, but reads a malformed
    one without noticing and returns what was in memory.)
    """
    runs = _unpack_runs(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
    if runs.sum() != hw[0] * hw[1] or (runs < 0).any():
        raise ValueError(f"run lengths cover {runs.sum()} pixels, size {tuple(hw)} has {hw[0] * hw[1]}")
    bits = np.arange(len(runs), dtype=np.int64) % 2
    return np.ascontiguousarray(np.repeat(bits, runs).astype(np.uint8).reshape(hw[1], hw[0]).T)


def _unpack_runs(counts):
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("counts is not a compressed COCO run-length string")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def encode_rle(mask):
    """[H, W] of zeros and others -> {"size": [H, W], "counts": str}."""
    encoded = coco_mask.encode(np.asfortranarray(np.asarray(mask) != 0, np.uint8))
    return {"size": [int(side) for side in mask.shape], "counts": encoded["counts"].decode("ascii")}


def decode_polygon(polygon, hw):
    """Flat [x1, y1, x2, y2, ...] -> uint8[H, W]: one ring, corners truncated to whole pixels, even-odd inside plus outline.

    The same pixels as OpenCV's fillPoly, which made the published masks; Pillow's polygon leaves some of the outline out.
    """
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"polygon has {len(polygon)} numbers, needs an even number of at least 6")
    corners = [(int(x), int(y)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    outline = Image.new("L", (hw[1], hw[0]))
    draw = ImageDraw.Draw(outline)
    inside, columns = np.zeros(tuple(hw), bool), np.arange(hw[1])
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        draw.line([start, end], fill=1)
        (x0, y0), (x1, y1) = sorted((start, end), key=lambda corner: corner[1])
        rows = np.arange(max(y0, 0), min(y1, hw[0]))[:, None]
        if rows.size:
            inside[rows[0, 0] : rows[-1, 0] + 1] ^= columns >= x0 + (rows - y0) * ((x1 - x0) / (y1 - y0))
    return (inside | (np.asarray(outline) > 0)).astype(np.uint8)


def decode_segmentation(entry):
    """One segmentation entry of D 1.3 (run lengths, polygon, or wrapped) -> uint8[H, W]. ValueError when malformed."""
    if isinstance(entry, dict) and "segmentation" in entry:
        entry = entry["segmentation"]
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), list) or len(entry["size"]) != 2:
        raise ValueError("segmentation has no size [height, width]")
    if "counts" in entry:
        return decode_rle(entry["counts"], entry["size"])
    if "polygon" in entry:
        return decode_polygon(entry["polygon"], entry["size"])
    raise ValueError("segmentation has neither counts nor polygon")


def part_masks(segmentations, hw):
    """{part: [entries]} -> {part: uint8[H, W]}, sorted, the entries of a part united.

    Raises ValueError when a mask is not as large as the (upright) image: stretching one would hide a wrong annotation (D16).
    """
    masks = {}
    for part in sorted(segmentations):
        united = np.zeros(tuple(hw), np.uint8)
        for entry in segmentations[part]:
            mask = decode_segmentation(entry)
            if mask.shape != tuple(hw):
                raise ValueError(f"mask of {part!r} is {mask.shape[0]} x {mask.shape[1]}, image is {hw[0]} x {hw[1]}")
            united |= mask
        masks[part] = united
    return masks


@functools.lru_cache(maxsize=1024)
def _patch_rows(scaled, offset, original, size, patch):
    """float32[size / patch, original]: share of patch row i that pixel row j of the original covers in CLIP's view."""
    edges = np.arange(original + 1) * (scaled / original) - offset
    low = np.arange(0, size, patch)[:, None]
    overlap = np.minimum(edges[1:], low + patch) - np.maximum(edges[:-1], low)
    return (np.maximum(overlap, 0) / patch).astype(np.float32)


def patch_parts(masks, part_ids, hw, size, patch, mode, least=0.25):
    """Part that covers most of each CLIP patch.

    masks [K, H, W] of zeros and ones, part_ids int[K] from 1 -> int16[(size / patch) ** 2]: the part with the largest
    area share if that is at least `least` of the patch, else 0; -1 where the patch shows no image.
    """
    scaled, offset = clip_geometry(hw, size, mode)
    rows, columns = (_patch_rows(scaled[axis], offset[axis], hw[axis], size, patch) for axis in (0, 1))
    seen = np.outer(rows.sum(1), columns.sum(1)) > 1e-6
    labels = np.zeros(seen.shape, np.int16)
    if len(masks):
        share = rows @ np.asarray(masks, np.float32) @ columns.T
        labels = np.where(share.max(0) >= least, np.asarray(part_ids, np.int16)[share.argmax(0)], 0).astype(np.int16)
    return np.where(seen, labels, -1).astype(np.int16).reshape(-1)
