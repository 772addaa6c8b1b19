"""Pictures: loading, and the views that SAM (M 1.4) and CLIP (M 1.3) see, as uint8."""

import dataclasses
import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from data_pipelines.folders import check_regular
from plum_jax.errors import UserError

# A broken EXIF block costs only the orientation. A filter for the process, as images are read in several threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

# What Pillow's readers raise for broken files.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, LookupError, TypeError, OverflowError)
CLIP_MEAN_COLOUR = (123, 117, 104)  # 255 x CLIP's mean, rounded: close to 0 after normalisation
BOX_WIDTH = 3  # pixels
BOX_MARGIN = 5  # pixels between the object and its box
BOX_COLOUR = (255, 0, 0)


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image file that is in memory instead of on disk. It stands wherever a path to an image may stand."""

    name: str  # for messages
    data: bytes = dataclasses.field(repr=False)

    def __str__(self):
        return self.name


@dataclasses.dataclass(frozen=True)
class BoxedImage:
    """An image with a red box around the object that a question is about, as others in it are like it (D 2.2).

    It stands wherever a path to an image may stand. The box is drawn into the upright picture, before any resizing.
    """

    image: "str | StoredImage"
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 of the object

    def __str__(self):
        return str(self.image)


def boxed(image, box):
    """Path or StoredImage, with `box` where one is given."""
    return image if box is None else BoxedImage(image, tuple(box))


def load_image(path):
    """Path, StoredImage or BoxedImage -> uint8[H, W, 3]: the pixels of `open_image`."""
    return np.asarray(open_image(path))


def open_image(path):
    """Path, StoredImage or BoxedImage -> Pillow image, decoded: turned upright by its EXIF tag, RGB.

    16-bit grey keeps its high byte. Raises UserError when missing, unreadable, absurdly large, or with pixel values whose
    scale nobody can know.
    """
    if isinstance(path, BoxedImage):
        picture = open_image(path.image)
        draw_box(picture, path.box)
        return picture
    try:
        if not isinstance(path, StoredImage):
            check_regular(path)  # a pipe would wait for ever
        with Image.open(io.BytesIO(path.data) if isinstance(path, StoredImage) else path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            upright = _eight_bits(image, path)
            return upright if upright.mode == "RGB" else upright.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image; check the path") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a readable image (of no format that is known); replace or remove it") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}; shrink the image") from error
    except BROKEN as error:
        raise UserError(f"{path}: not a readable image ({error}); replace or remove it") from error


def draw_box(picture, box):
    """Draws a red rectangle around the box x0, y0, x1, y1 into an upright RGB image, as the reference marks an object (D 2.2).

    A box that the picture does not reach leaves it as it is.
    """
    x0, y0, x1, y1 = box
    left, top = max(x0 - BOX_MARGIN, 0), max(y0 - BOX_MARGIN, 0)
    right, bottom = min(x1 - 1 + BOX_MARGIN, picture.width - 1), min(y1 - 1 + BOX_MARGIN, picture.height - 1)
    if left <= right and top <= bottom:
        ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=BOX_COLOUR, width=BOX_WIDTH)


def _eight_bits(image, path):
    """Integer and float images in Pillow's mode L, which `convert` would clip at 255; others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    sixteen = image.mode == "I" and low >= 0 and 255 < high <= 65535  # how Pillow reads a 16-bit PGM
    if sixteen or image.mode.startswith("I;16"):
        pixels = pixels >> 8
    elif not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):  # not (): also true for NaN
        raise UserError(f"{path}: holds pixel values from {low:g} to {high:g}; save it with 8 bits, from 0 to 255")
    return Image.fromarray(pixels.astype(np.uint8))


def longest_side(hw, size):
    """Height and width after the longest side became `size` (M 1.4): int(x * scale + 0.5), and at least 1."""
    scale = size / max(hw)
    return max(1, int(hw[0] * scale + 0.5)), max(1, int(hw[1] * scale + 0.5))


def size_of(image):
    """(H, W) of a Pillow image or an array."""
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def _picture(image):
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _resize(image, hw, resample):
    if size_of(image) == tuple(hw):
        return np.asarray(image)
    return np.asarray(_picture(image).resize((hw[1], hw[0]), resample))


def _pad(image, size, colour):
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = colour
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def sam_view(image, size):
    """uint8[H, W, 3] or RGB image -> (uint8[size, size, 3], (h, w)): longest side resized (Pillow's bilinear), top left.

    The rest is 0. Zero means "outside", not black: the model normalises first and blanks everything outside (h, w) afterwards.
    """
    hw = longest_side(size_of(image), size)
    return _pad(_resize(image, hw, Image.Resampling.BILINEAR), size, 0), hw


def clip_view(image, size, mode):
    """uint8[H, W, 3] or RGB image -> uint8[size, size, 3], bicubic.

    "pad": the whole picture, top left, on CLIP's mean colour. "center_crop": the reference's view, which cuts off what is
    outside the central square (M 1.3, D44).
    """
    height, bicubic = size_of(image)[0], Image.Resampling.BICUBIC
    (scaled_h, scaled_w), (top, left) = clip_geometry(size_of(image), size, mode)
    if mode == "pad":
        return _pad(_resize(image, (scaled_h, scaled_w), bicubic), size, CLIP_MEAN_COLOUR)
    # Pillow resizes along the rows, rounds, and then along the columns: those that are cut off need no second resizing.
    columns = _picture(image).resize((scaled_w, height), bicubic).crop((left, 0, left + size, height))
    return _resize(columns, (scaled_h, size), bicubic)[top : top + size]


def clip_geometry(hw, size, mode):
    """Size of the picture after resizing, and the (top, left) of the view in it."""
    if mode == "pad":
        return longest_side(hw, size), (0, 0)
    if mode != "center_crop":
        raise UserError(f"config.data.clip_view {mode!r} is unknown; use pad or center_crop")
    short, long = min(hw), max(hw)
    longer = int(size * long / short)
    scaled = (size, longer) if hw[0] <= hw[1] else (longer, size)
    return scaled, ((scaled[0] - size) // 2, (scaled[1] - size) // 2)
