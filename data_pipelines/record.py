"""The canonical training record: one image, or none, with conversations about it and the masks that their spans name.

Every family of data (D 4) yields `Sample`s. Spans are known by construction: who writes an answer says where in it the names
stand and which mask each of them owns.
"""

import collections
import dataclasses
from typing import Protocol

import numpy as np

from data_pipelines.conversation import Span

FAMILIES = ("semantic", "refer", "reason", "explanatory", "vqa")
NO_MASK = -1


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One conversation. The first question starts with `<image>` and a line break where the sample has an image."""

    turns: tuple[tuple[str, str], ...]  # (question, answer)
    spans: tuple[Span, ...] = ()  # in text order, apart from each other
    masks: tuple[int, ...] = ()  # for each span an index into Sample.masks, or NO_MASK


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one draw from a data set trains on."""

    family: str  # of FAMILIES
    dataset: str  # "ade20k", "refcoco+", ...
    key: str  # unique in its data set, for messages and accounts
    image: str | None  # path; None for text alone
    dialogues: tuple[Dialogue, ...]
    masks: tuple = ()  # each uint8[H, W] or a segmentation entry of D 1.3, of the size of the upright image


class Source(Protocol):
    """A data set that can be read in any order. Opening it checks its files; a bad record is counted there, not met later.

    Attributes:
      family, dataset: as of its samples. grounded: whether its samples may have masks (False: SAM need not see the image).
      skipped: {reason: number of records that were left out when it was opened}.
    """

    family: str
    dataset: str
    grounded: bool
    skipped: collections.Counter

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Record number `index` with everything random drawn from `rng`. Raises UserError for a record that cannot be read."""
        ...
