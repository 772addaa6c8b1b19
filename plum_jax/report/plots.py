"""Plots of an evaluation as inline SVG: intervals, reliability of mask scores, score by size of the part.

Series differ in shape as well as in colour, and the numbers stand again in words for a screen reader.
"""

import math
from itertools import pairwise

from markupsafe import Markup, escape

from plum_jax.report.charts import mapping, short

SERIES = 6  # looks that can be told apart; more series repeat them
WIDTH = 340
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def marker(series, x, y, size=4.0):
    """SVG of the shape of a series around a point."""
    s, tall, wide = size, 1.3 * size, 1.25 * size
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}"/>',
        f'<path d="M{x - s:.1f} {y - s:.1f}h{2 * s:.1f}v{2 * s:.1f}h{-2 * s:.1f}z"/>',
        f'<path d="M{x:.1f} {y - tall:.1f}l{wide:.1f} {2 * tall:.1f}h{-2 * wide:.1f}z"/>',
        f'<path d="M{x:.1f} {y - tall:.1f}L{x + tall:.1f} {y:.1f}L{x:.1f} {y + tall:.1f}L{x - tall:.1f} {y:.1f}z"/>',
        f'<path d="M{x:.1f} {y + tall:.1f}l{wide:.1f} {-2 * tall:.1f}h{-2 * wide:.1f}z"/>',
        f'<path d="M{x - 1.5 * s:.1f} {y - 0.5 * s:.1f}h{3 * s:.1f}v{s:.1f}h{-3 * s:.1f}z"/>',
    )
    return f'<g class="mark s{series % SERIES}">{shapes[series % SERIES]}</g>'


def legend_key(series):
    """The shape of a series for the legend."""
    return Markup(f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{marker(series, 7, 7)}</svg>')


def interval_chart(title, rows):
    """Points with their intervals, one line a row.

    Args:
      rows: [(name of the row, [(series, name of the series, value, low, high)])], numbers from 0 to 1.
    """
    left, right, step = 150, 14, 12
    heights = [step * len(points) + 10 for _, points in rows]
    height = sum(heights) + 26
    place = mapping(0.0, 1.0, left, WIDTH - right)
    body = _vertical_grid(place, 4, height - 22, height - 8)
    y, words = 6.0, []
    for (name, points), tall in zip(rows, heights, strict=True):
        body += f'<text x="{left - 8}" y="{y + tall / 2:.1f}" text-anchor="end">{escape(_cut(name))}</text>'
        for k, (series, label, value, low, high) in enumerate(points):
            at = y + step * (k + 0.5)
            body += f'<path class="whisker s{series % SERIES}" d="M{place(low):.1f} {at:.1f}H{place(high):.1f}"/>'
            body += marker(series, place(value), at, 3.4)
            words.append(f"{name}, {label}: {value:.2f}, from {low:.2f} to {high:.2f}")
        y += tall
    return _svg(WIDTH, height, f"{title}. {'; '.join(words)}", body)


def reliability_chart(series):
    """Mean IoU against mean score, a mark for every bin, larger with more masks. On the diagonal scores keep their word.

    Args:
      series: [(name, bins of calibration.reliability)].
    """
    left, right, top, bottom, height = 46, 14, 10, 40, 300
    across, up = mapping(0.0, 1.0, left, WIDTH - right), mapping(0.0, 1.0, height - bottom, top)
    body = _vertical_grid(across, top, height - bottom, height - bottom + 16) + _horizontal_grid(up, left, WIDTH - right)
    body += f'<path class="ideal" d="M{across(0):.1f} {up(0):.1f}L{across(1):.1f} {up(1):.1f}"/>'
    body += _axis_names(left, right, top, bottom, height, "mean score of the masks", "mean IoU")
    words = []
    for k, (name, bins) in enumerate(series):
        points = [(across(b["score"]), up(b["iou"]), b) for b in bins if b["n_masks"]]
        most = max((b["n_masks"] for _, _, b in points), default=1)
        body += _line(k, [(x, y) for x, y, _ in points])
        body += "".join(marker(k, x, y, 2.5 + 4 * math.sqrt(b["n_masks"] / most)) for x, y, b in points)
        words += [f"{name}: score {b['score']:.2f}, IoU {b['iou']:.2f}, {b['n_masks']} masks" for _, _, b in points]
    return _svg(WIDTH, height, f"Reliability of mask scores. {'; '.join(words)}", body)


def area_chart(labels, series):
    """Mean IoU by size of the part.

    Args:
      labels: of the bins, small to large. series: [(name, [(mean IoU or None, number of parts)])], one entry a bin.
    """
    left, right, top, bottom, height = 46, 14, 10, 74, 300
    across, up = mapping(-0.5, len(labels) - 0.5, left, WIDTH - right), mapping(0.0, 1.0, height - bottom, top)
    body, words = _horizontal_grid(up, left, WIDTH - right), []
    for k, label in enumerate(labels):
        x, y = across(k), height - bottom + 14
        body += f'<text x="{x:.1f}" y="{y}" text-anchor="end" transform="rotate(-32 {x:.1f} {y})">{escape(label)}</text>'
    body += _axis_names(left, right, top, bottom, height, "share of the image", "mean IoU")
    for k, (name, bins) in enumerate(series):
        points = [(across(j), up(iou)) for j, (iou, _) in enumerate(bins) if iou is not None]
        body += _line(k, points) + "".join(marker(k, x, y) for x, y in points)
        words += [f"{name}, {label}: {iou:.2f}, {n} parts" for label, (iou, n) in zip(labels, bins, strict=True) if n]
    return _svg(WIDTH, height, f"Mean IoU by size of the part. {'; '.join(words)}", body)


def _line(series, points):
    return "".join(
        f'<path class="join s{series % SERIES}" d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}"/>' for (a, b), (c, d) in pairwise(points)
    )


def _vertical_grid(place, top, bottom, text_y):
    return "".join(
        f'<path class="grid" d="M{place(t):.1f} {top}V{bottom}"/>'
        f'<text x="{place(t):.1f}" y="{text_y}" text-anchor="middle">{short(t)}</text>'
        for t in TICKS
    )


def _horizontal_grid(place, left, right):
    return "".join(
        f'<path class="grid" d="M{left} {place(t):.1f}H{right}"/>'
        f'<text x="{left - 6}" y="{place(t) + 4:.1f}" text-anchor="end">{short(t)}</text>'
        for t in TICKS
    )


def _axis_names(left, right, top, bottom, height, across, up):
    middle = (top + height - bottom) / 2
    return (
        f'<text x="{(left + WIDTH - right) / 2:.1f}" y="{height - 5}" text-anchor="middle">{across}</text>'
        f'<text x="10" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 10 {middle:.1f})">{up}</text>'
    )


def _cut(name, length=26):
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _svg(width, height, words, body):
    return Markup(f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}">{body}</svg>')
