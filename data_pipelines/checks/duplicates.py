"""The same image twice: equal bytes, and pictures that look the same, above all in different splits."""

import collections

import numpy as np

from data_pipelines.checks.pictures import THUMBNAIL

MOST_BITS = 6  # of 64 that may differ
MOST_DIFFERENCE = 4.0  # mean absolute difference of the thumbnails, of 255
ROWS = 1024  # compared at a time


def report_copies(pictures, owners, findings):
    """Notes copies among images.

    pictures: {name: Picture}; owners: {name: {split or None: (file, entry) that names it first}}. Copies in two splits are an
    error for equal bytes, a warning for pictures that look the same. Equal bytes within one split: a warning.
    """
    names = [name for name, picture in pictures.items() if picture.fault is None and owners.get(name)]
    equal = collections.defaultdict(list)
    for name in names:
        equal[pictures[name].digest].append(name)
    for group in equal.values():
        for name in group[1:]:
            _report_equal(group[0], name, owners, findings)
    for one, other in _alike([group[0] for group in equal.values()], pictures, owners):
        ((split, (file, entry)),) = list(owners[other].items())[:1]
        text = f"image {other} looks the same as {one} of split {next(iter(owners[one]))}; a copy in two splits spoils scores"
        findings.warning("image that looks like one of another split", file, entry, text)


def _report_equal(one, other, owners, findings):
    for split, (file, entry) in owners[other].items():
        elsewhere = next((known for known in owners[one] if known not in (split, None)), None)
        if split is not None and elsewhere is not None:
            text = f"image {other} is byte for byte {one} of split {elsewhere}; splits must not share images"
            findings.error("copy of an image in another split", file, entry, text)
        else:
            findings.warning("image that is there twice", file, entry, f"image {other} is byte for byte the same as {one}")


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
