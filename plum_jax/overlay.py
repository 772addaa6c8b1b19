"""Draws masks into a picture: translucent colours with outlines, and a legend with phrases and scores below."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# Distinct for most colour-blind readers too; the legend names every colour's phrase, so colour is never the only sign.
COLOURS = (
    (230, 85, 13), (0, 114, 178), (0, 158, 115), (204, 121, 167), (240, 200, 30), (86, 180, 233), (148, 90, 200), (140, 86, 75),
    (220, 20, 80), (120, 160, 20),
)  # fmt: skip
ALPHA = 0.5
SMALLEST, LARGEST = 480, 1600  # longest side of the picture in the overlay
INK, PALE, PAPER = (25, 28, 33), (110, 116, 125), (250, 250, 248)


def colour(index):
    """RGB of the index-th span."""
    return COLOURS[index % len(COLOURS)]


def draw(image, spans, *, title="", text=""):
    """A picture with its masks.

    Args:
      image: uint8[H, W, 3]. spans: objects with phrase, mask bool[H, W], score and status; only those with status "ok" are
        drawn, the others are listed with a hollow swatch.
      title: the prompt. text: the answer.

    Returns:
      PIL RGB image; the longest side of the picture in it is between 480 and 1600 pixels.
    """
    size = _size(image.shape[1], image.shape[0])
    picture = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), np.float32)
    thickness = max(1, round(max(size) / 400))
    order = sorted(range(len(spans)), key=lambda i: -int(np.count_nonzero(spans[i].mask)))  # small masks on top
    shapes = {i: _resize(spans[i].mask, size) for i in order if spans[i].status == "ok"}
    for i, mask in shapes.items():
        picture[mask] = (1 - ALPHA) * picture[mask] + ALPHA * np.array(colour(i), np.float32)
    for i, mask in shapes.items():
        inner, outer = _shrink(mask, thickness), _shrink(mask, 2 * thickness)
        picture[mask & ~inner] = 255  # a white edge, then the colour: visible on any background
        picture[inner & ~outer] = colour(i)
    return _with_legend(Image.fromarray(picture.round().astype(np.uint8)), spans, title, text)


def _size(width, height):
    longest = min(max(max(width, height), SMALLEST), LARGEST)
    scale = longest / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resize(mask, size):
    """bool[H, W] -> bool of `size`, smooth: bilinear, then half."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(grey) >= 128


def _shrink(mask, pixels):
    """Erosion by a square; outside the picture counts as inside the mask, so that no edge is drawn along the border."""
    padded = Image.fromarray(np.pad(mask, pixels, mode="edge").astype(np.uint8) * 255)
    eroded = np.asarray(padded.filter(ImageFilter.MinFilter(2 * pixels + 1))) > 0
    return eroded[pixels:-pixels, pixels:-pixels]


def _with_legend(picture, spans, title, text):
    """The picture with a panel below: prompt, answer, and a swatch, phrase and score for every span."""
    width = max(picture.width, SMALLEST)
    unit = max(14, round(width / 42))  # font size
    font, pad, line = ImageFont.load_default(unit), unit, round(unit * 1.5)
    columns = max(20, int((width - 2 * pad) / (unit * 0.54)))
    lines = [(row, PALE) for row in textwrap.wrap(title, columns)] + [(row, INK) for row in textwrap.wrap(text, columns)]
    entries = [(i, f"{s.phrase}  {s.score:.2f}{'' if s.status == 'ok' else f' ({s.status})'}") for i, s in enumerate(spans)]
    rows = _flow(entries, font, width - 2 * pad, unit) or ([["nothing tagged"]] if not spans else [])
    height = 2 * pad + line * (len(lines) + len(rows)) + (pad // 2 if rows and lines else 0)
    canvas = Image.new("RGB", (width, picture.height + height), PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    pen, y = ImageDraw.Draw(canvas), picture.height + pad
    for content, ink in lines:
        pen.text((pad, y), content, ink, font)
        y += line
    y += pad // 2 if lines else 0
    for row in rows:
        x = pad
        for entry in row:
            if isinstance(entry, str):
                pen.text((x, y), entry, PALE, font)
                continue
            i, label = entry
            fill = colour(i) if spans[i].status == "ok" else None
            pen.rounded_rectangle((x, y + unit * 0.15, x + unit, y + unit * 1.15), unit // 4, fill, colour(i), 2)
            pen.text((x + 1.4 * unit, y), label, INK, font)
            x += 1.4 * unit + font.getlength(label) + 1.2 * unit
        y += line
    return canvas


def _flow(entries, font, width, unit):
    """Legend entries -> rows that fit the width."""
    rows, used = [], 0.0
    for entry in entries:
        need = 2.6 * unit + font.getlength(entry[1])
        if not rows or used + need > width:
            rows.append([])
            used = 0.0
        rows[-1].append(entry)
        used += need
    return rows
