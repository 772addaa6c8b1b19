"""Plots as SVG: well formed, inside their frame, and with their numbers in words."""

import re
import xml.etree.ElementTree

import pytest

from plum_jax.report import plots

BINS = [{"low": k / 10, "high": (k + 1) / 10, "n_masks": 2 * (k % 3), "score": k / 10 + 0.05, "iou": k / 10} for k in range(10)]


def read(svg):
    """SVG -> (element, its words); every point lies in the frame."""
    root = xml.etree.ElementTree.fromstring(str(svg))
    width, height = (float(x) for x in root.get("viewBox").split()[2:])
    for node in root.iter():
        for axis, limit in (("cx", width), ("cy", height), ("x", width), ("y", height)):
            assert node.get(axis) is None or -1 <= float(node.get(axis)) <= limit + 1
        for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", node.get("d") or ""):
            assert -1 <= float(x) <= width + 1 and -1 <= float(y) <= height + 1
    return root, root.get("aria-label")


def test_intervals():
    rows = [("identification <x>", [(0, "a", 0.5, 0.25, 0.75), (1, "b", 1.0, 1.0, 1.0)]), ("other", [(0, "a", 0.0, 0.0, 0.1)])]
    root, words = read(plots.interval_chart("masks", rows))
    assert "identification <x>, a: 0.50, from 0.25 to 0.75" in words
    whiskers = [node for node in root.iter() if (node.get("class") or "").startswith("whisker")]
    assert len(whiskers) == 3
    start, end = (float(x) for x in re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", whiskers[0].get("d"))[0])
    assert end - start == pytest.approx(0.5 * (plots.WIDTH - 14 - 150), abs=0.2)


def test_reliability():
    root, words = read(plots.reliability_chart([("a", BINS), ("none", [{**b, "n_masks": 0} for b in BINS])]))
    marks = [node for node in root.iter() if (node.get("class") or "").startswith("mark")]
    assert len(marks) == sum(b["n_masks"] > 0 for b in BINS)
    assert "a: score 0.15, IoU 0.10, 2 masks" in words and "none" not in words


def test_areas():
    root, words = read(plots.area_chart(["under 1 %", "1 % to 5 %", "5 % and more"], [("a", [(None, 0), (0.5, 3), (1.0, 9)])]))
    assert "a, 1 % to 5 %: 0.50, 3 parts" in words and "under" not in words
    assert len([node for node in root.iter() if (node.get("class") or "").startswith("join")]) == 1


def test_series_differ_in_shape():
    shapes = {str(plots.marker(k, 5, 5)).partition(">")[2] for k in range(plots.SERIES)}
    assert len(shapes) == plots.SERIES
    assert plots.marker(0, 5, 5) == plots.marker(plots.SERIES, 5, 5)
