"""What each optimisation of the data pipeline gained: how it was done before, how it is done now (`tools.bench_data`)."""

import grain.python
import numpy as np
from PIL import Image, ImageOps

from data_pipelines.account import Account
from data_pipelines.blocks import Arrivals, Blocks
from data_pipelines.images import clip_geometry, clip_view, load_image, open_image, sam_view
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import collate
from plum_jax.batch import Batch

PAGE = 4096  # bytes of memory that are mapped at a time


def pairs(mixture, config):
    """{name: (before, after)}: functions without arguments that return the same list of arrays."""
    paths, clip, sam = mixture.sources[0].paths, config.model.clip.image_size, config.model.sam.image_size
    wide = config.copy_and_resolve_references()
    wide.data.update(max_masks=16, max_spans=16)  # as in fine-tuning
    rows = [mixture.row(index)[0] for index in range(len(paths))]
    many = Mixture(wide, mixture.builder.tokenizer, mixture.sources, [1.0])
    wide_rows = [many.row(index)[0] for index in range(len(paths))]
    images = [open_image(path) for path in paths]

    def views(load):
        images = map(load, paths)
        return [view for image in images for view in (sam_view(image, sam)[0], clip_view(image, clip, "center_crop"))]

    return {
        "views from Pillow's image, not from an array": (lambda: views(load_image), lambda: views(open_image)),
        "images opened without copies": (lambda: list(map(_copied, paths)), lambda: list(map(open_image, paths))),
        "CLIP's view cut before the second resizing": (
            lambda: [cut_last(image, clip) for image in images],
            lambda: [clip_view(image, clip, "center_crop") for image in images],
        ),
        "batches in memory that is used again": (lambda: new_memory(rows), reused_memory(rows)),
        "the same with 16 masks an image": (lambda: new_memory(wide_rows), reused_memory(wide_rows)),
        "handed over in memory that is used again": (lambda: hand_over_anew(rows), hand_over_again(rows)),
        "the same with 16 masks an image, handed over": (lambda: hand_over_anew(wide_rows), hand_over_again(wide_rows)),
    }


def _copied(path):
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def cut_last(image, size):
    """The view of CLIP as M 1.3 words it: resized whole, then cut."""
    (height, width), (top, left) = clip_geometry(image.size[::-1], size, "center_crop")
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[top : top + size, left : left + size]


def new_memory(rows):
    """Each field stacked into an array of its own; masks only where there are any."""
    arrays = []
    for name in Batch._fields:
        values = [row[name] for row in rows if row[name] is not None]
        if name == "masks":
            arrays.append(np.zeros((len(values), *values[0].shape), np.uint8))
            for out, row in zip(arrays[-1], rows, strict=True):
                height, width = row["original_hw"]
                for slot in np.flatnonzero(row["mask_valid"]):
                    out[slot, :height, :width] = row["masks"][slot, :height, :width]
        elif values:
            arrays.append(np.stack(values))
    return arrays


def reused_memory(rows):
    blocks, counted = Blocks(), [(row, Account()) for row in rows]
    return lambda: list(collate(counted, blocks)[0].values())


def hand_over_anew(rows):
    """What grain does with arrays: new shared memory for each, which the receiver maps, reads and removes."""
    sent = []
    for array in new_memory(rows):
        shared = grain.python.SharedMemoryArray(array.shape, array.dtype)
        np.copyto(shared, array)
        sent.append(shared.metadata)
    del shared
    received = [grain.python.SharedMemoryArray.from_metadata(one) for one in sent]
    for array in received:
        array.unlink_on_del()
    return touch(received)


def hand_over_again(rows):
    """Both sides of a worker's hand-over, in one process."""
    blocks, arrivals, counted = Blocks(shared=True), Arrivals(), [(row, Account()) for row in rows]
    return lambda: touch(arrivals.open(collate(counted, blocks)[0]).values())


def touch(arrays):
    """Reads one byte of every page, as whoever copies the arrays to a device must map them. -> the arrays, as a list."""
    arrays = [array for array in arrays if array is not None]
    for array in arrays:
        np.ravel(array).view(np.uint8)[::PAGE].max()
    return arrays
