"""Drawings of animals: `draw(u)` -> list of Piece in painting order, where `u(low, high)` is a random number."""

import numpy as np

from data_pipelines.synthetic.shapes import Piece, bend, ellipse, polygon, stroke


def face(part, x, y, size):
    """A dark eye with a light spot, drawn as detail of `part`."""
    return [Piece(part, ellipse(x, y, size), 0.2), Piece(part, ellipse(x + 0.3 * size, y - 0.3 * size, 0.35 * size), 2.0)]


def bird(u):
    lift, long, plump = u(-0.35, -0.15), u(1.1, 1.3), u(0.4, 0.46)
    feather = np.concatenate([bend((0.3, -0.08), (0.1, 0.55), (-0.62, 0.22)), bend((-0.62, 0.22), (-0.3, -0.25), (0.3, -0.08))])
    return [
        Piece("leg", stroke([(-0.08, 0.4), (-0.1, 0.92)], 0.1), 1.0, 0),
        Piece("leg", stroke([(-0.2, 0.93), (0.1, 0.93)], 0.1), 1.0, 0),
        Piece("leg", stroke([(0.2, 0.4), (0.2, 0.92)], 0.1), 1.0, 1),
        Piece("leg", stroke([(0.1, 0.93), (0.4, 0.93)], 0.1), 1.0, 1),
        Piece(
            "tail",
            polygon((-0.4, -0.02), (-long, lift - 0.08), (-long + 0.08, lift + 0.1), (-long + 0.02, lift + 0.3), (-0.4, 0.3)),
        ),
        Piece("body", ellipse(0.0, 0.12, 0.64, plump, -14)),
        Piece(
            "crest", polygon((0.34, -0.5), (0.2, -0.86), (0.42, -0.76), (0.5, -1.0), (0.62, -0.78), (0.8, -0.9), (0.76, -0.5))
        ),
        Piece("beak", polygon((0.76, -0.6), (1.32, -0.34), (0.76, -0.14))),
        Piece("head", ellipse(0.58, -0.38, 0.31)),
        *face("head", 0.66, -0.44, 0.075),
        Piece("wing", feather),
        Piece("wing", stroke(bend((-0.5, 0.2), (-0.1, 0.3), (0.12, 0.12)), 0.04), 0.72),
    ]


def cat(u):
    curl, back, foot = u(-1.05, -0.8), u(-0.26, -0.18), 0.92
    legs = [
        Piece("leg", stroke([(x, 0.2), (x, foot)], 0.19), t, k)
        for k, (x, t) in enumerate(((-0.52, 1.0), (-0.26, 0.82), (0.2, 0.82), (0.44, 1.0)))
    ]
    trunk = np.concatenate(
        [
            bend((-0.72, 0.36), (-0.86, back), (-0.3, back)),
            bend((0.2, back), (0.74, -0.34), (0.64, 0.34)),
            bend((0.62, 0.38), (0.0, 0.56), (-0.7, 0.4)),
        ]
    )
    return [
        Piece("tail", stroke(bend((-0.6, 0.0), (-1.3, 0.0), (-1.0, curl), 16), 0.2, 0.16)),
        *legs,
        Piece("body", trunk),
        Piece("body", stroke(bend((-0.4, back + 0.02), (-0.36, 0.0), (-0.4, 0.14)), 0.07), 0.78),
        Piece("body", stroke(bend((-0.12, back + 0.02), (-0.08, 0.0), (-0.12, 0.14)), 0.07), 0.78),
        Piece("collar", ellipse(0.54, -0.1, 0.36, 0.17, -18)),
        Piece("ear", polygon((0.28, -0.58), (0.3, -1.08), (0.62, -0.72)), 1.0, 0),
        Piece("ear", polygon((0.68, -0.72), (1.0, -1.08), (1.02, -0.58)), 1.0, 1),
        Piece("head", ellipse(0.65, -0.46, 0.4, 0.34)),
        *face("head", 0.52, -0.5, 0.07),
        *face("head", 0.8, -0.5, 0.07),
        Piece("head", polygon((0.6, -0.36), (0.72, -0.36), (0.66, -0.29)), 0.45),
        Piece("head", stroke(bend((0.53, -0.25), (0.66, -0.16), (0.79, -0.25)), 0.035), 0.45),
    ]


def fish(u):
    deep, fan, high = u(0.44, 0.52), u(0.42, 0.54), u(-0.95, -0.8)
    t = np.linspace(-0.42 * np.pi, 0.42 * np.pi, 18)
    snout = np.stack([-0.05 + 0.82 * np.cos(t), deep * np.sin(t)], 1)
    edge = bend(snout[-1], (0.36, 0.0), snout[0], 10)[1:-1]
    return [
        Piece("tail", polygon((-0.66, -0.06), (-1.2, -fan), (-1.04, 0.0), (-1.2, fan), (-0.66, 0.06))),
        Piece("fin", polygon((-0.46, -deep + 0.14), (-0.36, high), (0.2, high + 0.2), (0.3, -deep + 0.1)), 1.0, 0),
        Piece("fin", polygon((-0.34, deep - 0.12), (-0.4, -high - 0.12), (0.06, deep - 0.02)), 1.0, 1),
        Piece("body", ellipse(-0.05, 0.0, 0.82, deep)),
        *[Piece("body", stroke(bend((x, -0.22), (x - 0.12, 0.0), (x, 0.22)), 0.05), 0.78) for x in (-0.5, -0.3)],
        Piece("head", np.concatenate([snout, edge])),
        Piece("head", stroke(bend((0.74, 0.14), (0.62, 0.2), (0.54, 0.12)), 0.035), 0.45),
        Piece("gill", stroke(bend((0.14, -0.34), (-0.1, 0.0), (0.14, 0.34)), 0.15)),
        Piece("eye", ellipse(0.5, -0.12, 0.17)),
        Piece("eye", ellipse(0.53, -0.12, 0.08), 0.15),
    ]
