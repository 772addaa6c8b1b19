"""Images and masks -> data URIs small enough that a page with hundreds of them stays light."""

import base64
import io

import numpy as np
from PIL import Image

MAX_SIDE = 320  # of an embedded picture; synthetic images are smaller and stay as they are
# Bright enough on photographs, told apart by the common kinds of colour blindness, and always used with a number.
COLOURS = ("#e4572e", "#2a7fff", "#12a150", "#c238d6", "#d99a00", "#0097a7", "#7a5cff", "#e0457b", "#6b8e00", "#9a6b3f")


def jpeg_uri(image):
    """uint8[H, W, 3] -> (data URI, (width, height) of the embedded picture)."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=84, optimize=True)
    return _uri("jpeg", buffer), picture.size


def mask_uri(mask, size, colour):
    """bool[H, W] -> data URI of a four-colour palette PNG of `size` (width, height): clear, fill, edge, halo of the edge."""
    small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    picture = Image.fromarray(_levels(small))
    picture.putpalette([0, 0, 0, *_rgb(colour), *_rgb(colour), 255, 255, 255])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=bytes([0, 120, 255, 150]), bits=2, optimize=True)
    return _uri("png", buffer)


def _levels(mask):
    """bool[H, W] -> uint8[H, W]: 0 outside, 1 inside, 2 the innermost ring of the mask, 3 the ring around it."""
    framed = np.pad(mask, 1)
    neighbours = (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:])
    inside = np.logical_and.reduce(neighbours)
    near = np.logical_or.reduce(neighbours)
    return np.where(mask, np.where(inside, 1, 2), np.where(near, 3, 0)).astype(np.uint8)


def pin(mask):
    """bool[H, W], not empty -> (left, top) in percent of the square box that shows it: the mask's most inner point.

    Chosen as the pixel of the mask nearest to its centre of mass, so that the number stands on the part itself.
    """
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    height, width = mask.shape
    side = max(height, width)
    left = (columns[nearest] + 0.5 - width / 2) / side + 0.5
    top = (rows[nearest] + 0.5 - height / 2) / side + 0.5
    return round(100 * float(left), 1), round(100 * float(top), 1)


def _rgb(colour):
    return bytes.fromhex(colour[1:])


def _uri(kind, buffer):
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
