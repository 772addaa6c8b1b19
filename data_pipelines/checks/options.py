"""What the commands about data have in common: how a check reads, and the flags for it."""

import dataclasses
import os

from plum_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    workers: int = 2
    max_images: int | None = None  # of each data set, evenly spaced
    follow_links: bool = False
    expect: str | None = None  # "partonomy-core"


def add_flags(parser):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="threads that read images (default: cores)")
    parser.add_argument("--follow-links", action="store_true", help="read images behind links that lead out of the folder")


def check_flags(arguments):
    """UserError for numbers that mean nothing."""
    for name in ("workers", "max_images", "max"):
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give a whole number from 1")
