"""Masks: COCO run lengths and polygons to arrays and back, part masks, part of each CLIP patch (D 1.3)."""

import functools
import json

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from data_pipelines.images import clip_geometry

MOST_PIXELS = 178_956_970  # Pillow opens no larger image
FARTHEST = 1_000_000  # of a polygon corner from the origin, in pixels


def decode_rle(counts, hw):
    """Compressed COCO run lengths (str) or plain ones (list) -> uint8[H, W]. Raises ValueError when they do not fill it.

    Runs go down the columns and start with zeros. A number takes 5 bits a character, lowest first, sign in the last one;
    from the fourth run on it is the difference to the run two before. (pycocotools writes these strings, but reads a malformed
    one without noticing and returns what was in memory.)
    """
    runs = runs_of(counts, hw)
    bits = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(bits, runs).reshape(hw[1], hw[0]).T)


def rle_area(counts, hw):
    """Number of pixels of a mask in run lengths, without decoding it. Raises ValueError as `decode_rle` does."""
    return int(runs_of(counts, hw)[1::2].sum())


def runs_of(counts, hw):
    """int64[R]: lengths of runs of zeros and ones in turn, which fill a mask of size hw. ValueError when they do not."""
    runs = _unpack_runs(counts) if isinstance(counts, str) else _plain_runs(counts)
    if runs.sum() != hw[0] * hw[1] or (runs < 0).any():
        raise ValueError(f"run lengths cover {runs.sum()} pixels, size {tuple(hw)} has {hw[0] * hw[1]}")
    return runs


def _plain_runs(counts):
    if not isinstance(counts, list) or not all(type(run) is int and 0 <= run <= MOST_PIXELS for run in counts):
        raise ValueError(f"counts is {_show(counts)}, not a run-length string or a list of whole numbers from 0")
    return np.array(counts, np.int64)


def _unpack_runs(counts):
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError(f"counts is {_show(counts)}, not a compressed COCO run-length string")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any image, and no overflow below
        raise ValueError(f"counts is {_show(counts)}, not a compressed COCO run-length string")
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


def encode_coco(segmentation, hw):
    """`segmentation` of a COCO annotation -> {"size", "counts": str}. ValueError when malformed.

    A list of rings [x1, y1, x2, y2, ...] covers what the COCO library covers. Rings go to it one by one, as of a list that
    starts with four numbers it takes all for boxes (D17); a ring of fewer than three corners covers nothing.
    """
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), segmentation.get("size", list(hw))
        if size != list(hw):
            raise ValueError(f"segmentation has size {_show(size)}, its image {list(hw)}")
        if isinstance(counts, str):
            rle_area(counts, hw)
            return {"size": list(hw), "counts": counts}
        return encode_rle(decode_rle(counts, hw))
    if not isinstance(segmentation, list) or not all(isinstance(ring, list) for ring in segmentation):
        raise ValueError(f"segmentation is {_show(segmentation)}, neither a list of polygons nor run lengths")
    for ring in segmentation:
        if len(ring) % 2 or not all(_is_coordinate(number) for number in ring):
            raise ValueError(f"polygon is {_show(ring)}, not a list [x1, y1, x2, y2, ...] of numbers up to {FARTHEST}")
    rings = [coco_mask.frPyObjects([ring], *hw)[0] for ring in segmentation if len(ring) >= 6]
    if not rings:
        return encode_rle(np.zeros(hw, np.uint8))
    return {"size": list(hw), "counts": coco_mask.merge(rings)["counts"].decode("ascii")}


def decode_polygon(polygon, hw):
    """Flat [x1, y1, x2, y2, ...] -> uint8[H, W]: one ring, corners truncated to whole pixels, even-odd inside plus outline.

    The same pixels as OpenCV's fillPoly, which made the published masks; Pillow's polygon leaves some of the outline out.
    """
    if not isinstance(polygon, list) or not all(_is_coordinate(number) for number in polygon):
        raise ValueError(f"polygon is {_show(polygon)}, not a list [x1, y1, x2, y2, ...] of numbers up to {FARTHEST}")
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


def _is_coordinate(number):
    return isinstance(number, int | float) and not isinstance(number, bool) and -FARTHEST <= number <= FARTHEST


def _show(value):
    """What stands in the file, at most 60 characters of it."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def decode_segmentation(entry):
    """One segmentation entry of D 1.3 (run lengths, polygon, or wrapped) -> uint8[H, W]. ValueError when malformed."""
    entry = _unwrap(entry)
    if "counts" in entry:
        return decode_rle(entry["counts"], entry["size"])
    return decode_polygon(entry["polygon"], entry["size"])


def segmentation_area(entry):
    """One segmentation entry of D 1.3 -> ((H, W), area); run lengths are not decoded. ValueError when malformed."""
    entry = _unwrap(entry)
    if "counts" in entry:
        return tuple(entry["size"]), rle_area(entry["counts"], entry["size"])
    return tuple(entry["size"]), int(np.count_nonzero(decode_polygon(entry["polygon"], entry["size"])))


def _unwrap(entry):
    """The entry itself, with a size that is an image's and either counts or polygon. ValueError otherwise."""
    if isinstance(entry, dict) and "segmentation" in entry:
        entry = entry["segmentation"]
    if not isinstance(entry, dict) or "size" not in entry:
        raise ValueError("segmentation has no size [height, width]")
    size = entry["size"]
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"segmentation has size {_show(size)}, not two positive whole numbers [height, width]")
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"segmentation has size {_show(size)}, larger than any image that can be read")
    if "counts" not in entry and "polygon" not in entry:
        raise ValueError("segmentation has neither counts nor polygon")
    return entry


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
