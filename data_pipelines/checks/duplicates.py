"""The same image twice: equal bytes, and pictures that look the same, above all in different splits."""

import collections

import numpy as np

from data_pipelines.checks.pictures import THUMBNAIL

MOST_BITS = 6  # of 64 that may differ
MOST_DIFFERENCE = 4.0  # mean absolute difference of the thumbnails, of 255
ROWS = 1024  # compared at a time


def report_copies(pictures, owners, findings, *, within=False):
    """Warns of copies among images: of equal bytes in two splits (with `within` also in one), and of pictures in two splits
    that look the same.

    pictures: {name: Picture}; owners: {name: {split or None: (file, entry) that names it first}}.
    """
    names = [name for name, picture in pictures.items() if picture.fault is None and owners.get(name)]
    equal = collections.defaultdict(list)
    for name in names:
        equal[pictures[name].digest].append(name)
    for group in equal.values():
        for name in group[1:]:
            _report_equal(group, name, owners, findings, within)
    for one, other in _alike([group[0] for group in equal.values()], pictures, owners):
        (file, entry), split = next(iter(owners[other].values())), next(iter(owners[one]))
        text = f"image {other} looks the same as {one} of split {split}; splits should not share images"
        findings.warning("image that looks like one of another split", file, entry, text)


def _report_equal(group, name, owners, findings, within):
    for split, (file, entry) in owners[name].items():
        before = group[: group.index(name)]
        elsewhere = [
            (other, known) for other in before for known in owners[other] if split is not None and known not in (split, None)
        ]
        if elsewhere:
            (other, known), kind = elsewhere[0], "copy of an image in another split"
            owner = owners[other][known][0]
            text = f"image {name} is the same file as {other} of {owner}; splits should not share images"
            findings.warning(kind, file, entry, text)
        elif within:
            findings.warning("image that is there twice", file, entry, f"image {name} is the same file as {before[0]}")


def _alike(names, pictures, owners):
    """Yields pairs of names in different splits that look the same; every name at most once as the second."""
    splits = collections.defaultdict(list)
    for name in names:
        found = [split for split in owners[name] if split is not None]
        if len(found) == 1:
            splits[found[0]].append(name)
    ordered = sorted(splits)
    for number, split in enumerate(ordered):
        for other in ordered[:number]:
            yield from _pairs(splits[other], splits[split], pictures)


def _pairs(ones, others, pictures):
    marks, small = _arrays(ones, pictures)
    for start in range(0, len(others), ROWS):
        block = others[start : start + ROWS]
        block_marks, block_small = _arrays(block, pictures)
        for row, mark in enumerate(block_marks):
            near = np.flatnonzero(np.bitwise_count(marks ^ mark) <= MOST_BITS)
            if not len(near):
                continue
            apart = np.abs(small[near].astype(np.int16) - block_small[row]).mean(1)
            if apart.min() <= MOST_DIFFERENCE:
                yield ones[near[apart.argmin()]], block[row]


def _arrays(names, pictures):
    marks = np.array([pictures[name].fingerprint for name in names], np.uint64)
    small = np.frombuffer(b"".join(pictures[name].thumbnail for name in names), np.uint8)
    return marks, small.reshape(len(names), THUMBNAIL * THUMBNAIL * 3)
