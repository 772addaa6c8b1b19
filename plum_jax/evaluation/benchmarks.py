"""The benchmarks of `plum evaluate` and `plum score` beside PARTONOMY, by name, and what each of their modules has.

A module has
  main(argv): entry point of `plum score NAME`.
  add_flags(parser): the flags of its data, beside --data, --split and --max-images.
  open_data(args): -> Data.
  tables(records): scored questions (of `answered.score`) -> {protocol: {group: numbers}}.
  columns: the numbers that are printed.
Its imports are NumPy only: scoring needs no model.
"""

import collections
import dataclasses
import importlib
from collections.abc import Iterable
from pathlib import Path

MODULES = {
    "refer": ("plum_jax.evaluation.refer", "refCOCO, refCOCO+, refCOCOg, refCLEF and gRefCOCO"),
    "reason": ("plum_jax.evaluation.reason", "ReasonSeg"),
    "semantic": ("plum_jax.evaluation.semantic", "ADE20K, COCO-Stuff and Mapillary Vistas"),
    "vqa": ("plum_jax.evaluation.vqa", "TextVQA and GQA"),
    "pope": ("plum_jax.evaluation.pope", "POPE: objects that are there, and that are not"),
    "hallucination": ("plum_jax.evaluation.hallucination", "parts that are there, and that are not"),
}

DATASETS = {
    "refer": ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco"),
    "reason": ("reason_seg",),
    "semantic": ("ade20k", "cocostuff", "mapillary"),
    "vqa": ("textvqa", "gqa"),
    "pope": ("pope",),
    "hallucination": ("parts",),
}
WITH_MASKS = ("refer", "reason", "semantic", "hallucination")


@dataclasses.dataclass
class Data:
    """An opened data set."""

    dataset: str
    split: str
    root: Path  # that image paths are relative to
    questions: Iterable  # of Asked, made while they are read
    inputs: list  # files that list them, whose hashes the results keep
    skipped: collections.Counter  # {reason: how many images or questions were left out}; complete when all are read


def module(name):
    """The module of a benchmark."""
    return importlib.import_module(MODULES[name][0])
