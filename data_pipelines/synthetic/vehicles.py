"""Drawings of vehicles: `draw(u)` -> list of Piece in painting order, where `u(low, high)` is a random number."""

from data_pipelines.synthetic.shapes import Piece, box, ellipse, polygon, rounded


def wheel(x, y, radius, entry):
    """Tyre, rim and hub."""
    return [
        Piece("wheel", ellipse(x, y, radius), 1.0, entry),
        Piece("wheel", ellipse(x, y, 0.55 * radius), 2.3, entry),
        Piece("wheel", ellipse(x, y, 0.2 * radius), 1.2, entry),
    ]


def car(u):
    top, slant, r = u(-0.52, -0.44), u(0.18, 0.3), u(0.23, 0.26)
    hull = polygon(
        (-1, 0.42), (-1.03, 0.12), (-0.95, 0.0), (-0.64, -0.04), (-0.64 + slant, top), (0.56 - slant, top), (0.58, -0.04),
        (0.96, 0.06), (1.05, 0.2), (1.03, 0.42),
    )  # fmt: skip
    inset = 0.06
    return [
        Piece("roof rack", box(-0.34, top - 0.06, -0.25, top + 0.04), 0.8),
        Piece("roof rack", box(0.16, top - 0.06, 0.25, top + 0.04), 0.8),
        Piece("roof rack", rounded(-0.48, top - 0.2, 0.4, top - 0.05, 0.04)),
        Piece("spoiler", polygon((-0.92, -0.16), (-0.8, -0.16), (-0.78, 0.04), (-0.92, 0.04)), 0.75),
        Piece("spoiler", polygon((-1.2, -0.34), (-0.68, -0.28), (-0.68, -0.12), (-1.14, -0.14))),
        Piece("body", hull),
        Piece("body", box(-1.0, 0.33, 1.02, 0.42), 0.72),
        Piece("window", polygon((-0.52, -0.05), (-0.58 + slant + inset, top + inset), (-0.06, top + inset), (-0.06, -0.05))),
        Piece("window", polygon((0.03, -0.05), (0.03, top + inset), (0.5 - slant, top + inset), (0.48, -0.05)), 1.0, 1),
        Piece("door", rounded(-0.28, 0.0, 0.3, 0.36, 0.05)),
        Piece("door", rounded(-0.22, 0.06, -0.06, 0.1, 0.02), 0.55),
        Piece("headlight", ellipse(0.9, 0.17, u(0.16, 0.18), 0.15)),
        *wheel(-0.56, 0.42, r, 0),
        *wheel(0.57, 0.42, r, 1),
    ]


def truck(u):
    roof, r, back = u(-0.7, -0.58), u(0.19, 0.22), u(0.2, 0.27)
    return [
        Piece(None, box(-0.98, 0.24, 0.98, 0.36), 0.5),
        Piece("cargo box", rounded(-1.02, roof, back, 0.26, 0.04)),
        Piece("cargo box", box(-0.72, roof + 0.08, -0.68, 0.18), 0.78),
        Piece("cargo box", box(-0.42, roof + 0.08, -0.38, 0.18), 0.78),
        Piece("cargo box", box(-0.12, roof + 0.08, -0.08, 0.18), 0.78),
        Piece("cab", polygon((0.32, 0.3), (0.32, -0.42), (0.72, -0.42), (0.92, -0.06), (1.06, 0.02), (1.06, 0.3))),
        Piece("exhaust pipe", rounded(0.2, roof - 0.28, 0.33, 0.16, 0.05)),
        Piece("exhaust pipe", polygon((0.18, roof - 0.28), (0.18, roof - 0.36), (0.4, roof - 0.36), (0.33, roof - 0.2)), 0.75),
        Piece("window", polygon((0.44, -0.32), (0.68, -0.32), (0.84, -0.03), (0.44, -0.03))),
        Piece("headlight", ellipse(0.96, 0.14, 0.16, 0.14)),
        *wheel(-0.72, 0.38, r, 0),
        *wheel(-0.24, 0.38, r, 1),
        *wheel(0.68, 0.38, r, 2),
    ]


def train(u):
    r, flare, stack = u(0.19, 0.22), u(0.06, 0.14), u(-0.82, -0.7)
    return [
        Piece(None, box(-0.98, 0.2, 0.88, 0.32), 0.5),
        Piece("chimney", polygon((0.48, -0.28), (0.46 - flare, stack), (0.74 + flare, stack), (0.7, -0.28))),
        Piece("chimney", box(0.44 - flare, stack - 0.07, 0.76 + flare, stack + 0.03), 0.75),
        Piece("boiler", rounded(-0.4, -0.32, 0.9, 0.24, 0.12)),
        Piece("boiler", box(0.1, -0.32, 0.16, 0.24), 0.7),
        Piece("cab", box(-1.0, -0.62, -0.36, 0.26)),
        Piece("cab", rounded(-1.1, -0.74, -0.28, -0.6, 0.05), 0.72),
        Piece("window", rounded(-0.86, -0.48, -0.5, -0.1, 0.04)),
        Piece("headlight", ellipse(0.9, -0.12, 0.17)),
        Piece("bumper", polygon((0.86, 0.18), (0.98, 0.18), (1.26, 0.58), (0.8, 0.58))),
        *wheel(-0.7, 0.4, r, 0),
        *wheel(-0.1, 0.4, r, 1),
        *wheel(0.48, 0.4, r, 2),
    ]


def airplane(u):
    span, sweep, fin = u(0.72, 0.85), u(0.3, 0.45), u(-0.72, -0.6)
    body = polygon(
        (-1.08, -0.14), (-0.9, -0.18), (0.6, -0.2), (0.86, -0.14), (1.02, 0.0), (0.86, 0.14), (0.6, 0.2), (-0.6, 0.17)
    )
    return [
        Piece("wing", polygon((0.28, -0.1), (0.2 - sweep, -span), (-0.08 - sweep, -span), (-0.22, -0.1)), 0.88, 1),
        Piece("tail", polygon((-0.58, -0.1), (-0.9, fin), (-1.16, fin), (-1.04, -0.06))),
        Piece("propeller", ellipse(1.04, 0.0, 0.09, 0.42)),
        Piece("wheel", ellipse(0.6, 0.34, 0.13), 1.0, 0),
        Piece("wheel", ellipse(0.6, 0.34, 0.06), 2.3, 0),
        Piece("wheel", ellipse(-0.5, 0.34, 0.13), 1.0, 1),
        Piece("wheel", ellipse(-0.5, 0.34, 0.06), 2.3, 1),
        Piece("fuselage", body),
        Piece("propeller", polygon((0.98, -0.08), (1.12, 0.0), (0.98, 0.08)), 0.75),
        *[Piece("window", rounded(x, -0.13, x + 0.17, 0.04, 0.05), 1.0, k) for k, x in enumerate((-0.34, -0.04, 0.26, 0.56))],
        Piece("wing", polygon((0.24, 0.08), (0.16 - sweep, span), (-0.16 - sweep, span), (-0.3, 0.08)), 1.0, 0),
        Piece("engine", rounded(-0.24, 0.34, 0.26, 0.54, 0.1)),
        Piece("engine", box(0.12, 0.34, 0.18, 0.54), 0.72),
    ]


def sailboat(u):
    tip, boom, jib = u(-1.0, -0.86), u(0.68, 0.85), u(-0.66, -0.52)
    return [
        Piece("rudder", polygon((-0.9, 0.46), (-1.12, 0.46), (-1.1, 1.04), (-0.72, 1.04), (-0.7, 0.7))),
        Piece("mast", box(-0.06, -1.1, 0.06, 0.46)),
        Piece("flag", polygon((0.0, -1.38), (0.58, -1.2), (0.0, -1.0))),
        Piece("sail", polygon((0.1, tip), (0.12, 0.24), (boom, 0.24), (0.5, -0.3))),
        Piece("sail", polygon((-0.1, tip + 0.16), (-0.1, 0.14), (jib, 0.14)), 0.88, 1),
        Piece("cabin", rounded(-0.62, 0.17, 0.02, 0.5, 0.07)),
        Piece("cabin", box(-0.66, 0.17, 0.06, 0.24), 0.75),
        Piece("hull", polygon((-1.0, 0.42), (1.06, 0.38), (0.86, 0.7), (0.6, 0.92), (-0.62, 0.92), (-0.86, 0.74))),
        Piece("hull", polygon((-1.0, 0.42), (1.06, 0.38), (1.02, 0.47), (-0.97, 0.5)), 0.72),
        *[Piece("window", ellipse(x, 0.67, 0.11), 1.0, k) for k, x in enumerate((-0.45, 0.02, 0.49))],
    ]
