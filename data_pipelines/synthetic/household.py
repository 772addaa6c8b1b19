"""Drawings of lamps, tools and furniture: `draw(u)` -> list of Piece, where `u(low, high)` is a random number."""

import numpy as np

from data_pipelines.synthetic.shapes import Piece, bend, box, ellipse, polygon, rounded, stroke, turn


def desk_lamp(u):
    elbow, tilt = (u(-0.6, -0.45), u(-0.05, 0.1)), u(-8, 12)
    neck = (0.14, -0.66)
    shade = polygon((-0.14, -0.06), (0.14, -0.12), (0.3, -0.02), (0.82, 0.34), (0.1, 0.66), (-0.08, 0.1))
    return [
        Piece("cord", stroke(bend((-0.42, 0.92), (-1.3, 1.1), (-1.02, 0.34), 18), 0.1)),
        Piece("arm", stroke([(-0.14, 0.8), elbow], 0.15), 1.0, 0),
        Piece("arm", stroke([elbow, neck], 0.15), 0.9, 1),
        Piece("arm", ellipse(*elbow, 0.13), 0.75, 0),
        Piece("bulb", ellipse(*turn([(0.62, -0.08)], tilt, neck)[0], 0.23)),
        Piece("shade", turn(shade + polygon(neck), tilt, neck)),
        Piece("shade", turn(stroke([(0.98, -0.34), (0.27, -0.02)], 0.07), tilt, neck), 0.72),
        Piece("base", np.concatenate([bend((-0.62, 0.98), (-0.14, 0.5), (0.36, 0.98)), polygon((0.36, 1.04), (-0.62, 1.04))])),
        Piece("switch", rounded(-0.1, 0.68, 0.28, 0.9, 0.07)),
        Piece("switch", rounded(0.1, 0.72, 0.23, 0.86, 0.03), 1.3),
    ]


def floor_lamp(u):
    wide, narrow, shelf = u(0.54, 0.64), u(0.28, 0.4), u(0.2, 0.34)
    return [
        Piece("cord", stroke(bend((0.2, 0.98), (0.98, 1.12), (0.76, 0.36), 18), 0.1)),
        Piece("pole", box(-0.07, -0.5, 0.07, 0.9)),
        Piece("bulb", ellipse(0.0, -0.36, 0.2, 0.22)),
        Piece("shade", polygon((-narrow, -1.02), (narrow, -1.02), (wide, -0.44), (-wide, -0.44))),
        Piece("shade", polygon((-wide + 0.03, -0.52), (wide - 0.03, -0.52), (wide, -0.44), (-wide, -0.44)), 0.72),
        Piece("switch", rounded(-0.18, -0.06, 0.18, 0.15, 0.07)),
        Piece("switch", rounded(0.01, -0.02, 0.14, 0.11, 0.03), 1.3),
        Piece("tray", rounded(-0.5, shelf, 0.5, shelf + 0.15, 0.06)),
        Piece("base", np.concatenate([bend((-0.46, 1.02), (0.0, 0.62), (0.46, 1.02)), polygon((0.46, 1.07), (-0.46, 1.07))])),
    ]


def lantern(u):
    wide, arch, lean = u(0.46, 0.54), u(-1.5, -1.25), u(-0.06, 0.06)
    flame = np.concatenate([bend((lean, -0.2), (0.36, 0.24), (0.0, 0.42)), bend((0.0, 0.42), (-0.36, 0.24), (lean, -0.2))])
    return [
        Piece("handle", stroke(bend((-0.52, -0.28), (0.0, arch - 0.5), (0.52, -0.28), 18), 0.12)),
        Piece("globe", ellipse(0.0, 0.14, wide + 0.06, 0.56)),
        Piece("globe", ellipse(-0.28, -0.02, 0.06, 0.22, 14), 1.15),
        Piece("flame", flame),
        Piece("flame", ellipse(0.0, 0.28, 0.07, 0.12), 1.3),
        Piece("cap", polygon((-0.46, -0.3), (-0.2, -0.66), (0.2, -0.66), (0.46, -0.3))),
        Piece("cap", box(-0.52, -0.36, 0.52, -0.26), 0.75),
        Piece("knob", ellipse(0.68, 0.78, 0.19, 0.16)),
        Piece("base", polygon((-wide, 0.56), (wide, 0.56), (wide + 0.1, 0.98), (-wide - 0.1, 0.98))),
        Piece("base", box(-wide - 0.12, 0.88, wide + 0.12, 1.0), 0.72),
    ]


def hammer(u):
    end, hook = u(0.86, 1.0), u(-0.3, -0.15)
    claw = np.concatenate(
        [bend((-0.16, -0.9), (-0.8, -0.86), (-0.95, hook)), bend((-0.84, hook), (-0.6, -0.5), (-0.16, -0.46))]
    )
    return [
        Piece("strap", stroke(bend((-0.06, end + 0.02), (-0.9, end + 0.5), (-0.5, 0.32), 18), 0.1)),
        Piece("strap", stroke(bend((0.0, end), (-0.5, end + 0.02), (-0.5, 0.34), 18), 0.1)),
        Piece("handle", polygon((-0.12, -0.5), (0.12, -0.5), (0.15, end), (-0.15, end))),
        Piece("grip", rounded(-0.21, 0.3, 0.21, end - 0.06, 0.09)),
        *[Piece("grip", box(-0.21, y, 0.21, y + 0.05), 0.72) for y in (0.42, 0.56, 0.7)],
        Piece("cap", rounded(-0.25, end - 0.1, 0.25, end + 0.12, 0.07)),
        Piece("claw", claw),
        Piece("head", box(-0.2, -0.92, 0.46, -0.46)),
        Piece("head", rounded(0.42, -0.98, 0.68, -0.4, 0.06), 0.85),
    ]


def wheelbarrow(u):
    rim, deep, r = u(0.72, 0.86), u(0.16, 0.26), u(0.27, 0.31)
    return [
        Piece("leg", stroke([(-0.16, 0.1), (-0.3, 0.86)], 0.14), 1.0, 0),
        Piece("leg", stroke([(0.12, 0.1), (0.02, 0.86)], 0.14), 0.82, 1),
        Piece("handle", stroke([(0.72, 0.56), (-0.3, 0.2), (-1.2, -0.14)], 0.13)),
        Piece("bumper", stroke(bend((0.56, 0.24), (1.32, 0.0), (1.14, 0.74), 16), 0.13)),
        Piece("wheel", ellipse(0.74, 0.58, r), 1.0),
        Piece("wheel", ellipse(0.74, 0.58, 0.55 * r), 2.3),
        Piece("tray", polygon((-0.62, -0.46), (rim, -0.46), (0.56, deep), (-0.22, deep))),
        Piece("tray", polygon((-0.68, -0.5), (rim + 0.06, -0.5), (rim + 0.03, -0.38), (-0.64, -0.38)), 0.72),
        Piece("grip", stroke([(-0.78, 0.02), (-1.28, -0.17)], 0.23)),
    ]


def chair(u):
    top, width, arm = u(-0.86, -0.76), u(0.46, 0.54), u(-0.34, -0.24)
    return [
        Piece("leg", box(-0.4, 0.2, -0.28, 0.84), 0.78, 0),
        Piece("leg", box(0.28, 0.2, 0.4, 0.84), 0.78, 1),
        Piece("headrest", rounded(-0.36, top - 0.32, 0.36, top + 0.02, 0.12)),
        Piece("back", rounded(-width, top, width, 0.06, 0.1)),
        Piece("back", rounded(-width + 0.12, top + 0.14, width - 0.12, -0.14, 0.06), 0.84),
        Piece("leg", box(-0.62, 0.24, -0.48, 1.0), 1.0, 2),
        Piece("leg", box(0.48, 0.24, 0.62, 1.0), 1.0, 3),
        Piece("seat", polygon((-width, 0.0), (width, 0.0), (0.68, 0.3), (-0.68, 0.3))),
        Piece("seat", box(-0.68, 0.24, 0.68, 0.36), 0.75),
        Piece("cushion", rounded(-0.42, -0.1, 0.42, 0.18, 0.1)),
        *[
            piece
            for k, x in enumerate((-0.66, 0.66))
            for piece in (
                Piece("armrest", box(x - 0.05, arm, x + 0.05, 0.16), 0.78, k),
                Piece("armrest", rounded(x - 0.14, arm - 0.12, x + 0.14, arm + 0.06, 0.07), 1.0, k),
            )
        ],
    ]


def cabinet(u):
    half, split, glass = u(0.66, 0.78), u(-0.16, -0.04), u(0.42, 0.54)
    doors = ((-half + 0.1, -0.04), (0.04, half - 0.1))
    return [
        Piece("mirror", rounded(-glass, -1.36, glass, -0.6, 0.3)),
        Piece("mirror", stroke([(-0.2, -0.9), (0.1, -1.2)], 0.06), 1.08),
        *[
            Piece("leg", polygon((x - 0.12, 0.7), (x + 0.12, 0.7), (x + 0.07, 1.02), (x - 0.07, 1.02)), 1.0, k)
            for k, x in enumerate((-half + 0.18, half - 0.18))
        ],
        Piece("body", box(-half, -0.72, half, 0.78)),
        Piece("body", box(-half - 0.07, -0.8, half + 0.07, -0.68), 0.75),
        Piece("drawer", rounded(-half + 0.1, -0.6, half - 0.1, split - 0.06, 0.04)),
        *[Piece("door", rounded(a, split, b, 0.7, 0.04), 1.0, k) for k, (a, b) in enumerate(doors)],
        *[Piece("door", rounded(a + 0.1, split + 0.12, b - 0.1, 0.58, 0.03), 0.84, k) for k, (a, b) in enumerate(doors)],
        Piece("handle", rounded(-0.26, split - 0.32, 0.26, split - 0.18, 0.05), 1.0, 0),
        Piece("handle", rounded(-0.17, split + 0.2, -0.07, split + 0.52, 0.04), 1.0, 1),
        Piece("handle", rounded(0.07, split + 0.2, 0.17, split + 0.52, 0.04), 1.0, 2),
    ]
