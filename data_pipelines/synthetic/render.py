"""Scene -> picture and masks. Both come from one drawing at three times the size, so they agree to the pixel."""

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 3  # odd, so that a pixel has a central sample, which decides its mask
EDGE = 128  # palette entries from here on are the dark outlines of entries 128 below
OUTLINE = 0.55  # brightness of the outlines


def render(scene):
    """Draws a Scene.

    Returns:
      picture uint8[H, W, 3] and {part: [mask uint8[H, W], ...]}: one mask per entry of the part, of what is visible of it.
      Masks are disjoint; parts that nothing is visible of are absent.
    """
    ids = draw_ids(scene)
    sampled = ids[OVERSAMPLING // 2 :: OVERSAMPLING, OVERSAMPLING // 2 :: OVERSAMPLING]
    return shaded_picture(scene, ids, sampled), visible_masks(scene, sampled)


def draw_ids(scene):
    """uint8[3H, 3W]: number of the layer on top, 1 for the first, 0 for background."""
    if len(scene.layers) >= EDGE:
        raise ValueError(f"a scene has {len(scene.layers)} layers; at most {EDGE - 1} fit")
    canvas = Image.new("L", (scene.width * OVERSAMPLING, scene.height * OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for number, layer in enumerate(scene.layers, 1):
        draw.polygon((layer.points * OVERSAMPLING).ravel().tolist(), fill=number)
    return np.asarray(canvas)


def visible_masks(scene, sampled):
    """{part: [uint8[H, W], ...]} from the layer numbers at the centres of the pixels."""
    keys = sorted({(layer.part, layer.entry) for layer in scene.layers if layer.part})
    owner = np.zeros(len(scene.layers) + 1, np.uint8)
    owner[1:] = [1 + keys.index((layer.part, layer.entry)) if layer.part else 0 for layer in scene.layers]
    owners = owner[sampled]
    counts = np.bincount(owners.ravel(), minlength=len(keys) + 1)
    masks = {}
    for number, (part, _) in enumerate(keys, 1):
        if counts[number]:
            masks.setdefault(part, []).append((owners == number).astype(np.uint8))
    return masks


def shaded_picture(scene, ids, sampled):
    """uint8[H, W, 3]: flat colours with outlines, antialiased, lit, over the background."""
    edges = np.zeros(ids.shape, bool)
    step = ids[1:] != ids[:-1]
    edges[1:] |= step
    edges[:-1] |= step
    step = ids[:, 1:] != ids[:, :-1]
    edges[:, 1:] |= step
    edges[:, :-1] |= step
    indexed = Image.fromarray(np.where(edges & (ids > 0), ids + EDGE, ids).astype(np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    colours = np.array([layer.colour for layer in scene.layers], np.float32)
    palette[1 : len(colours) + 1] = colours
    palette[EDGE + 1 : EDGE + len(colours) + 1] = OUTLINE * colours
    indexed.putpalette(palette.tobytes())
    objects = np.asarray(indexed.convert("RGB").reduce(OVERSAMPLING), np.float32)
    cover = np.asarray(Image.fromarray((ids > 0).astype(np.uint8) * 255).reduce(OVERSAMPLING), np.float32)[..., None] / 255
    rng = np.random.default_rng(scene.texture_seed)
    grain = texture(scene, rng)
    picture = (
        objects * (lighting(scene, sampled) * grain)[..., None]
        + (1 - cover) * background(scene) * (1 + 0.5 * (grain - 1))[..., None]
    )
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def lighting(scene, sampled):
    """float32[H, W]: every layer is brighter on the side that the light comes from, as if it were slightly round."""
    first = np.array([layer.points.min(0) for layer in scene.layers], np.float32)
    last = np.array([layer.points.max(0) for layer in scene.layers], np.float32)
    centre, radius = (first + last) / 2, np.maximum((last - first).max(1) / 2, 1.0)
    offset = np.concatenate([[0.0], (centre * scene.light).sum(1) / radius]).astype(np.float32)
    slope = np.concatenate([[0.0], 1.0 / radius]).astype(np.float32)
    y, x = np.mgrid[: scene.height, : scene.width].astype(np.float32) + 0.5
    along = x * scene.light[0] + y * scene.light[1]
    return 1.0 + 0.13 * np.clip(along * slope[sampled] - offset[sampled], -1.0, 1.0)


def background(scene):
    """float32[H, W, 3]: a gradient down to the horizon, ground below it, soft shadows under the objects."""
    top, horizon, ground = (np.array(c, np.float32) for c in scene.background)
    y = np.arange(scene.height, dtype=np.float32)[:, None]
    sky = top + (horizon - top) * np.minimum(y / scene.horizon, 1.0)
    below = np.clip(y - scene.horizon, 0.0, 1.0)
    rows = sky * (1 - below) + ground * below
    x = np.arange(scene.width, dtype=np.float32)
    dark = np.zeros((scene.height, scene.width), np.float32)
    for cx, cy, rx, ry in scene.shadows:
        dark = np.maximum(dark, np.exp(-(((y - cy) / ry) ** 2) - ((x - cx) / rx) ** 4))
    return rows[:, None, :] * (1.0 - 0.28 * dark)[..., None]


def texture(scene, rng):
    """float32[H, W] around 1: smooth grain of two sizes."""
    noise = np.zeros((scene.height, scene.width), np.float32)
    for cells in (9, 40):
        field = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        noise += np.asarray(field.resize((scene.width, scene.height), Image.Resampling.BICUBIC))
    return 1.0 + scene.texture * noise
