"""What the commands about data have in common: how a check reads, and the flags for it."""

import dataclasses
import os

from plum_jax.errors import UserError

PATHS = "a folder of questions, a root of training data sets (docs/data), or COCO files that are splits of one data set"


@dataclasses.dataclass(frozen=True)
class Options:
    workers: int = 2
    max_images: int | None = None  # of each data set, evenly spaced
    follow_links: bool = False
    expect: str | None = None  # "partonomy-core"
    split: str | None = None  # of a root; None: train, and val where there is one
    samples: int = 50  # of a root: records of each split that are drawn


def add_flags(parser):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="threads that read images (default: cores)")
    parser.add_argument("--follow-links", action="store_true", help="read images behind links that lead out of the folder")


def check_flags(arguments):
    """UserError for numbers that mean nothing."""
    for name in ("workers", "max_images", "max", "samples"):
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give a whole number from 1")
