"""The canonical training record: one image, or none, with conversations about it and the masks that their spans name.

Every family of data (D 4) yields `Sample`s. Spans are known by construction: who writes an answer says where in it the names
stand and which mask each of them owns.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from data_pipelines.conversation import Span
from data_pipelines.images import BoxedImage, StoredImage

FAMILIES = ("semantic", "refer", "reason", "explanatory", "vqa")
NO_MASK = -1


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One conversation. The first question starts with `<image>` and a line break where the sample has an image."""

    turns: tuple[tuple[str, str], ...]  # (question, answer)
    spans: tuple[Span, ...] = ()  # in text order, apart from each other
    masks: tuple[int, ...] = ()  # for each span an index into Sample.masks, or NO_MASK
    names: tuple[str, ...] = ()  # for each span what its mask is called, where the answer may say it otherwise; (): as it says


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one draw from a data set trains on."""

    family: str  # of FAMILIES
    dataset: str  # "ade20k", "refcoco+", ...
    key: str  # unique in its data set, for messages and accounts
    image: str | StoredImage | BoxedImage | None  # path, file or either with a box (`load_image` reads all); None: text alone
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


class StorableSource(Source, Protocol):
    """A source whose records can be stored with everything that a later draw needs (`plum data build`).

    `sample(index, rng)` must be the same as `drawing(**options)(record(index), rng)` with those options of the constructor
    that concern the draw (questions per image, templates). So training reads the same samples from the folder and from a build.

    Attributes:
      index_files: paths of the files that list its records; their hashes tell whether a build is of the same data.
      faults: [(key, reason, message)] of the records counted in `skipped`.
      parts: part vocabulary, or () in families without one.
    """

    index_files: tuple
    faults: list
    parts: tuple

    def record(self, index: int) -> dict:
        """Everything about record `index` as plain JSON, with "key" (unique) and "image" (path, or None).

        Masks are segmentation entries of D 1.3: any dictionary with "size" and "counts" or "polygon", at any depth. Nothing
        is drawn here. Raises UserError for a record that cannot be read.
        """
        ...

    @classmethod
    def drawing(cls, **options) -> Callable[[dict, np.random.Generator], Sample]:
        """What makes a `Sample` from such a record; it reads no file and can be pickled.

        The "image" of the record, a path, a StoredImage or None, goes into the sample as it is, or with a box drawn.
        """
        ...
