"""Images of a check: each read once, in threads, to the size of the upright image and marks by which copies are found."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import os

import numpy as np
from PIL import Image

from data_pipelines.folders import check_regular
from data_pipelines.images import BROKEN, StoredImage, load_image
from plum_jax.errors import UserError

MOST_BYTES = 1 << 30  # of an image file
EXIF_ORIENTATION = 0x0112
THUMBNAIL = 16  # pixels a side


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that was read, or the sentence why it cannot be."""

    hw: tuple[int, int] | None = None  # upright
    turned: bool = False  # by its EXIF orientation, width and height changed places
    digest: bytes = b""  # of the file
    fingerprint: int = 0  # 64 bits: where the grey values of an 9 x 8 picture grow from left to right
    thumbnail: bytes = b""  # uint8[THUMBNAIL, THUMBNAIL, 3]
    fault: str | None = None


def read_picture(path):
    """Path -> Picture, whatever stands there."""
    try:
        check_regular(path)
        if (size := os.path.getsize(path)) > MOST_BYTES:
            raise UserError(f"{path}: has {size / 1e9:.1f} GB, which is no image to train on; replace or remove it")
        with open(path, "rb") as file:
            content = file.read()
        pixels = load_image(StoredImage(str(path), content))
        turned = _orientation(content) >= 5
    except UserError as error:
        return Picture(fault=str(error))
    except FileNotFoundError:
        return Picture(fault=f"{path}: no such image; check the path")
    except OSError as error:
        return Picture(fault=f"{path}: cannot be read ({error.strerror}); change its permissions")
    except MemoryError:
        return Picture(fault=f"{path}: does not fit into memory; shrink the image")
    grey, small = _marks(pixels)
    return Picture(pixels.shape[:2], turned, hashlib.blake2b(content, digest_size=16).digest(), grey, small)


def _orientation(content):
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.getexif().get(EXIF_ORIENTATION, 1)
    except BROKEN:  # a broken EXIF block: the image is taken as it stands
        return 1


def _marks(pixels):
    image = Image.fromarray(pixels)
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    grey = np.asarray(image.resize((9, 8), Image.Resampling.BOX).convert("L"), np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big"), small.tobytes()


def read_pictures(paths, *, workers, label="images"):
    """Paths -> [Picture] in their order."""
    return list(read_ahead(read_picture, list(paths), workers=workers, label=label))


def read_ahead(function, jobs, *, workers, label):
    """Yields function(job) for each job in order, from threads a few jobs ahead, with a progress bar on stderr."""
    from plum_jax.console import Progress

    waiting, workers = collections.deque(), max(1, min(workers, len(jobs)))
    with concurrent.futures.ThreadPoolExecutor(workers) as threads, Progress(total=len(jobs), label=label, unit="image") as bar:
        for number in range(len(jobs) + 4 * workers):
            if number < len(jobs):
                waiting.append(threads.submit(function, jobs[number]))
            if waiting and number >= 4 * workers:
                yield waiting.popleft().result()
                bar.update()


def pick(paths, most, phase=0.5):
    """All paths, or `most` of them evenly spaced. `phase`, from 0 to 1, is where between two of them the first is taken."""
    paths = list(paths)
    if most is None or len(paths) <= most:
        return paths
    return [paths[int((k + phase) * len(paths) / most)] for k in range(most)]
