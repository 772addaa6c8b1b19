"""Random scenes: which object, which of its parts, where, in what light, with what around it."""

import colorsys
from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.objects import OBJECTS, PART_COLOURS, ObjectKind
from data_pipelines.synthetic.shapes import Piece, box, ellipse, polygon, rounded, turn

SPLITS = ("train", "val", "test", "heldout")  # the position is part of the seed: append only
ASPECTS = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.75), (0.875, 1.0))  # height and width as fractions of the image size


@dataclass(frozen=True)
class Difficulty:
    """Everything that makes the pictures easier or harder. Fractions are probabilities unless said otherwise."""

    optional_present: float = 0.5
    core_missing: float = 0.07
    hue_jitter: float = 12.0  # degrees around the canonical hue of a part
    tone_jitter: float = 0.09  # of saturation and value
    rotation: float = 12.0  # degrees, either way
    flip: float = 0.5
    size: tuple[float, float] = (0.75, 0.95)  # share of the picture's width or height that the object spans
    several: float = 0.1  # two instances of the object instead of one
    distractors: float = 0.5
    occluder: float = 0.1
    background_saturation: float = 0.15  # upper bound
    texture: float = 0.03  # strength of the grain on objects and background
    smallest_part: float = 0.006  # share of the picture; parts with less of them visible do not occur


@dataclass(frozen=True)
class Layer:
    """A polygon in pixels of the picture. `entry` tells masks of one part apart; part None belongs to no part."""

    points: np.ndarray  # float32[n, 2]
    colour: tuple[int, int, int]
    part: str | None = None
    entry: int = 0


@dataclass(frozen=True)
class Scene:
    """What `render.render` draws: layers back to front over a lit background."""

    height: int
    width: int
    label: str
    layers: tuple[Layer, ...]
    shadows: tuple[tuple[float, float, float, float], ...]  # centre x, centre y, radius x, radius y in pixels
    background: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]  # top, horizon, ground
    horizon: float  # row in pixels
    light: tuple[float, float]  # direction the light comes from, a unit vector in the picture
    texture: float
    texture_seed: int


def hsv(hue, saturation, value):
    """Hue in degrees, the others in 0..1 (clipped) -> (r, g, b) in 0..255."""
    rgb = colorsys.hsv_to_rgb(hue / 360 % 1, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return tuple(round(255 * c) for c in rgb)


def shade(colour, tone):
    return tuple(int(min(255, round(c * tone))) for c in colour)


def choose_parts(kind: ObjectKind, split, rng, difficulty):
    """The parts this instance has. Held-out pairs occur in the heldout split, and there always, and nowhere else."""
    parts = set(kind.always) | {p for p in kind.core if rng.random() >= difficulty.core_missing}
    parts |= {p for p in kind.optional if rng.random() < difficulty.optional_present}
    if split == "heldout":
        parts |= set(kind.core) | set(kind.held_out)
    elif kind.held_out and parts >= set(kind.held_out):
        parts.remove(kind.held_out[int(rng.integers(2))])
    return {p for p in parts if all(carrier in parts for part, carrier in kind.needs if part == p)}


def sample_scene(index, split, rng, image_size, difficulty, without=()):
    """A random Scene. `index` cycles through the objects, so every object occurs equally often.

    The same generator state gives the same scene; `without` then leaves out these parts and changes nothing else.
    """
    kinds = [k for k in OBJECTS if k.held_out] if split == "heldout" else OBJECTS
    kind = kinds[index % len(kinds)]
    parts = choose_parts(kind, split, rng, difficulty)
    several = split != "heldout" and rng.random() < difficulty.several
    colours = part_colours(kind, rng, difficulty)
    drawings = [turned(kind.draw(rng.uniform), parts, rng, difficulty) for _ in range(2 if several else 1)]
    height, width, frames = layout([extent(d) for d in drawings], image_size, rng)
    layers, shadows = [], []
    if rng.random() < difficulty.distractors:
        layers += distractor(height, width, rng)
    for number, (pieces, frame) in enumerate(zip(drawings, frames, strict=True)):
        pieces = place(pieces, frame, rng, difficulty)
        layers += [paint(piece, colours, 10 * number) for piece in pieces if piece.part not in without]
        shadows.append(shadow([p.points for p in pieces]))
    if rng.random() < difficulty.occluder:
        layers += occluder(height, width, rng)
    background, light = surroundings(split, rng, difficulty)
    return Scene(
        height, width, kind.name, tuple(layers), tuple(shadows), background, float(height * rng.uniform(0.66, 0.8)),
        light, difficulty.texture * rng.uniform(0.3, 1.0), int(rng.integers(2**31)),
    )  # fmt: skip


def part_colours(kind, rng, difficulty):
    """Canonical colour of every part of the object, jittered once per picture."""
    colours = {}
    for part in kind.parts:
        hue, saturation, value = PART_COLOURS[part]
        d_saturation, d_value = rng.uniform(-difficulty.tone_jitter, difficulty.tone_jitter, 2)
        colours[part] = hsv(
            hue + rng.uniform(-difficulty.hue_jitter, difficulty.hue_jitter), saturation + d_saturation, value + d_value
        )
    return colours


def paint(piece: Piece, colours, first_entry):
    colour = (120, 122, 128) if piece.part is None else colours[piece.part]
    return Layer(piece.points, shade(colour, piece.tone), piece.part, first_entry + piece.entry)


def turned(pieces, parts, rng, difficulty):
    """The pieces of these parts, flipped and turned, in the units of the drawing."""
    angle = rng.uniform(-difficulty.rotation, difficulty.rotation)
    mirror = np.array([-1.0 if rng.random() < difficulty.flip else 1.0, 1.0], np.float32)
    return [p._replace(points=turn(p.points * mirror, angle)) for p in pieces if p.part is None or p.part in parts]


def extent(pieces):
    """-> corners (low, high) float32[2] of the box around the pieces."""
    every = np.concatenate([p.points for p in pieces])
    return every.min(0), every.max(0)


def layout(extents, image_size, rng):
    """A picture size that suits the shape of the objects -> (height, width, one frame (x0, y0, x1, y1) per object).

    A long object is not put into an upright picture, nor a tall one into a wide picture: its parts would be tiny.
    """
    slim = float(np.mean([(high - low)[0] / (high - low)[1] for low, high in extents]))
    across = slim < 1.0 if len(extents) > 1 else None  # two tall objects stand side by side, two long ones above each other
    total = slim if across is None else slim * (2.0 if across else 0.5)
    options = [(h, w) for h, w in ASPECTS if not (total > 1.25 and h > w) and not (total < 0.8 and w > h)]
    height, width = (int(round(image_size * f)) for f in options[rng.integers(len(options))])
    if across is None:
        return height, width, [(0.0, 0.0, width, height)]
    if across:
        return height, width, [(0.0, 0.0, 0.5 * width, height), (0.5 * width, 0.0, width, height)]
    return height, width, [(0.0, 0.0, width, 0.5 * height), (0.0, 0.5 * height, width, height)]


def place(pieces, frame, rng, difficulty):
    """Pieces in pixels, scaled so that they span a random share of the frame (x0, y0, x1, y1)."""
    low, high = extent(pieces)
    size = np.array([frame[2] - frame[0], frame[3] - frame[1]])
    scale = rng.uniform(*difficulty.size) * np.min(size / (high - low))
    slack = np.maximum(size - scale * (high - low), 0.0)
    corner = np.array(frame[:2]) + slack * rng.uniform(0.25, 0.75, 2)
    return [p._replace(points=((p.points - low) * scale + corner).astype(np.float32)) for p in pieces]


def shadow(points):
    """A flat ellipse on the ground under the object."""
    every = np.concatenate(points)
    (x0, y0), (x1, y1) = every.min(0), every.max(0)
    return float(x0 + x1) / 2, float(y1), float(x1 - x0) * 0.52, max(float(y1 - y0) * 0.09, 2.0)


def distractor(height, width, rng):
    """A grey ball, crate or cone behind the object, near an edge."""
    unit = min(height, width)
    x, y, r = rng.choice([0.08, 0.92]) * width, rng.uniform(0.68, 0.86) * height, rng.uniform(0.09, 0.15) * unit
    grey = hsv(rng.uniform(0, 360), rng.uniform(0.02, 0.1), rng.uniform(0.6, 0.75))
    kind = rng.integers(3)
    if kind == 0:
        return [Layer(ellipse(x, y, r), grey), Layer(ellipse(x - 0.3 * r, y - 0.3 * r, 0.3 * r), shade(grey, 1.15))]
    if kind == 1:
        return [
            Layer(box(x - r, y - r, x + r, y + r), grey),
            Layer(box(x - 0.7 * r, y - 0.7 * r, x + 0.7 * r, y + 0.7 * r), shade(grey, 0.88)),
        ]
    return [Layer(polygon((x - r, y + r), (x, y - 1.4 * r), (x + r, y + r)), grey)]


def occluder(height, width, rng):
    """A grey post or a leaf in front of the object; covers a tenth of its width at most."""
    x, wide = rng.uniform(0.25, 0.75) * width, rng.uniform(0.05, 0.09) * width
    if rng.random() < 0.5:
        return [
            Layer(rounded(x - wide / 2, height * rng.uniform(0.3, 0.5), x + wide / 2, height + 2.0, wide / 4), (150, 152, 158))
        ]
    leaf = ellipse(x, height * rng.uniform(0.75, 0.95), wide * 0.7, height * 0.22, rng.uniform(-30, 30))
    return [Layer(leaf, (148, 158, 142))]


def surroundings(split, rng, difficulty):
    """Background colours and the direction of the light. Hues come from sectors of 30 degrees that differ between splits."""
    sector = {"train": (0, 1), "val": (2,), "test": (3,), "heldout": (2, 3)}[split]
    hue = 120.0 * rng.integers(3) + 30.0 * (sector[rng.integers(len(sector))] + rng.random())
    saturation, value = rng.uniform(0.02, difficulty.background_saturation), rng.uniform(0.9, 0.98)
    top = hsv(hue, saturation, value)
    horizon = hsv(hue, 0.5 * saturation, min(1.0, value + 0.03))
    ground = hsv(hue + 40.0, 0.8 * saturation, value - rng.uniform(0.05, 0.12))
    angle = np.deg2rad(rng.uniform(-150, -30))
    return (top, horizon, ground), (float(np.cos(angle)), float(np.sin(angle)))
