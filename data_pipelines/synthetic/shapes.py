"""Polygons that drawings are made of: float32[n, 2] arrays of (x, y) with y pointing down, in the units of the drawing."""

from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """One filled polygon. Pieces are painted in list order, later ones cover earlier ones."""

    part: str | None  # part it belongs to; None is decoration that no part owns
    points: np.ndarray  # float32[n, 2]
    tone: float = 1.0  # factor on the brightness of the part's colour
    entry: int = 0  # pieces of a part with the same entry share one mask; the left and right wheel do not


def polygon(*points):
    return np.asarray(points, np.float32)


def box(x0, y0, x1, y1):
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def ellipse(cx, cy, rx, ry=None, angle=0.0, count=28):
    """Ellipse turned by `angle` degrees; a circle when `ry` is left out."""
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return turn(np.stack([rx * np.cos(t), (rx if ry is None else ry) * np.sin(t)], 1), angle) + polygon((cx, cy))


def rounded(x0, y0, x1, y1, radius, count=5):
    """Rectangle whose corners are quarter circles of `radius` (at most half the shorter side)."""
    radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    corners = (
        (x1 - radius, y1 - radius, 0),
        (x0 + radius, y1 - radius, 1),
        (x0 + radius, y0 + radius, 2),
        (x1 - radius, y0 + radius, 3),
    )
    t = np.linspace(0, np.pi / 2, count)
    arcs = [
        polygon((x, y)) + radius * np.stack([np.cos(t + k * np.pi / 2), np.sin(t + k * np.pi / 2)], 1) for x, y, k in corners
    ]
    return np.concatenate(arcs).astype(np.float32)


def stroke(points, width, end_width=None):
    """Polyline as a polygon of the given width, which changes linearly to `end_width` along the points."""
    points = np.asarray(points, np.float32)
    direction = np.gradient(points, axis=0)
    normal = np.stack([-direction[:, 1], direction[:, 0]], 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    half = np.linspace(width, width if end_width is None else end_width, len(points))[:, None] / 2
    return np.concatenate([points + normal * half, (points - normal * half)[::-1]]).astype(np.float32)


def bend(start, control, end, count=14):
    """Points of a quadratic Bezier curve, for `stroke` and for curved outlines."""
    t = np.linspace(0, 1, count)[:, None]
    start, control, end = (np.asarray(p, np.float32) for p in (start, control, end))
    return ((1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end).astype(np.float32)


def turn(points, degrees, centre=(0.0, 0.0)):
    """Points rotated about `centre`, clockwise on the screen."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    return (np.asarray(points, np.float32) - polygon(centre)) @ matrix + polygon(centre)
