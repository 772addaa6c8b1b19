"""`plum data check ROOT --dataset NAME`: opens a data set of training as the training run does and samples records of it."""

import os
import warnings
from pathlib import Path

import numpy as np

from data_pipelines.checks.findings import Findings, image_size
from data_pipelines.expected import EXPECTED, EXPECTED_ANNOTATIONS
from data_pipelines.images import StoredImage, load_image
from data_pipelines.kinds import KINDS
from data_pipelines.masks import decode_segmentation
from data_pipelines.sources import Entry, open_source
from plum_jax import cli
from plum_jax.console import progress
from plum_jax.errors import UserError

NAMES = {"vqa": "llava_instruct_150k", "reason": "reason_seg"}  # in the tables of expected counts
FIRST = 5  # names shown for each reason


def main(argv):
    """Exit status 0: fine or warnings only, 1: errors, 2 (UserError): nothing to check."""
    parser = cli.Parser(prog="plum data check", description="Open a data set of training and draw records from it.")
    parser.add_argument("root", help="folder of all data sets, as in docs/data")
    parser.add_argument("--dataset", required=True, choices=list(KINDS), help="name of the data set")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--samples", type=int, default=50, help="records to draw; default: 50")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(argv)
    root, name, found = Path(arguments.root), arguments.dataset, Findings()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the data sets")
    if arguments.samples < 0:
        raise UserError(f"--samples is {arguments.samples}; give 0 or more")
    numbers = {"root": str(root), "dataset": name, "split": arguments.split}
    for path in _special(root):
        found.error(path, None, "is a pipe, socket or device, which would never end; remove it (nothing was opened)")
    source = None if found.errors else _open(numbers, found)
    if source is not None:
        numbers |= _counts(source, name, arguments.split, found)
        _check_samples(source, arguments.samples, found)
    return found.finish(numbers, [f"{key}: {value}" for key, value in numbers.items()], arguments.json)


def _special(root):
    """Files below a folder whose reading could wait for ever."""
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if os.path.exists(path) and not os.path.isfile(path):
                yield path


def _open(numbers, found):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            source = open_source(Entry(numbers["dataset"], 1.0, numbers["root"], numbers["split"], {}), 3)
        except (UserError, OSError, RecursionError) as error:
            return found.error(numbers["root"], None, str(error))
    for warning in said:
        found.warn(numbers["root"], None, str(warning.message))
    return source


def _counts(source, name, split, found):
    known = NAMES.get(name, name)
    listed = getattr(source, "listed", len(source))
    expected = EXPECTED.get(known, {}).get(split)
    if expected is not None and listed != expected:
        found.warn(source.dataset, None, f"{listed} images or conversations were found, the complete data set has {expected}")
    first = {}
    for key, reason, _ in getattr(source, "faults", ()):
        first.setdefault(reason, []).append(str(key))
    skipped = {reason: {"count": count, "first": first.get(reason, [])[:FIRST]} for reason, count in source.skipped.items()}
    for reason, entry in skipped.items():
        names = f" ({', '.join(entry['first'])})" if entry["first"] else ""
        found.warn(source.dataset, None, f"{entry['count']} left out: {reason}{names}")
    annotations = EXPECTED_ANNOTATIONS.get(known)
    return {
        "records": len(source), "listed": listed, "expected": expected, "expected_annotations": annotations, "skipped": skipped
    }  # fmt: skip


def _check_samples(source, samples, found):
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(source), min(samples, len(source)), replace=False)).tolist()
    for index in progress(chosen, label="records"):
        try:
            sample = source.sample(index, np.random.default_rng(index))
            if sample.image is None:
                continue
            stored = isinstance(sample.image, StoredImage)
            size = load_image(sample.image).shape[:2] if stored else image_size(sample.image)
            for mask in sample.masks:
                shape = (decode_segmentation(mask) if isinstance(mask, dict) else mask).shape
                if shape != size:
                    found.error(sample.image, index, f"a mask is {shape[0]} x {shape[1]}, the image {size[0]} x {size[1]}")
        except (UserError, ValueError, OSError, MemoryError) as error:
            found.error(source.dataset, index, str(error))
