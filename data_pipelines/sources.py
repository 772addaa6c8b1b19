"""`config.data.sources`: which data sets a run mixes, from where, in what proportions."""

import dataclasses
import fractions
import importlib
import math
from pathlib import Path

from data_pipelines.kinds import FAMILIES, KINDS, WITHOUT_MASKS
from plum_jax.errors import UserError
from plum_jax.paths import check_local

KEYS = ("name", "weight", "root", "split", "datasets", "options")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One data set of a run."""

    name: str  # of KINDS
    weight: float
    root: str | list  # folder, or several
    split: str
    options: dict

    @property
    def grounded(self):
        return KINDS[self.name].family not in WITHOUT_MASKS


def entries(data):
    """config.data.sources -> [Entry]; a family stands for several. UserError names the dictionary, its value and the fix.

    Each source is a dictionary of `name`, a family or a data set, and `weight`, its share of the draws in any unit. Optional:
    `root`, a folder below config.data.root (default: that folder itself), or a tuple of several, which explanatory takes;
    `split` ("train"); for a family `datasets`, those of it to use (default: FAMILIES); `options`, a dictionary of more
    arguments for the class that reads it.
    """
    found = []
    for number, source in enumerate(data.sources):
        found.extend(_expand(source, data, f"config.data.sources[{number}]"))
    return found


def _expand(source, data, where):
    if not isinstance(source, dict) or not isinstance(source.get("name"), str):
        raise UserError(f"{where}: {source!r} is not a source; write {{'name': 'refer', 'weight': 5.0}}")
    unknown = sorted(source.keys() - set(KEYS))
    if unknown:
        raise UserError(f"{where}: key {unknown[0]!r} is not known; use {', '.join(KEYS)}")
    name, weight, root = source["name"], source.get("weight"), source.get("root", "")
    if type(weight) not in (int, float) or not 0 < weight < math.inf:
        raise UserError(f"{where}.weight: {weight!r} is not a positive number; set it, or leave the source out")
    if name not in KINDS and name not in FAMILIES:
        raise UserError(f"{where}.name: {name!r} is not known; use {', '.join(dict.fromkeys([*FAMILIES, *KINDS]))}")
    if not root and not data.root:
        raise UserError("config.data.root: is empty; pass --config.data.root=DIR, the folder that holds the data sets")
    for folder in (data.root, *(root if isinstance(root, tuple) else (root,))):
        check_local(folder, "copy it with gcloud storage rsync -r, or mount the bucket with gcsfuse")
    names = tuple(source.get("datasets", FAMILIES.get(name, (name,))))
    wrong = [x for x in names if x not in KINDS or (x != name and KINDS[x].family != name)]
    if wrong or not names:
        known = ", ".join(x for x in KINDS if name in (x, KINDS[x].family))
        raise UserError(f"{where}.datasets: {wrong[0] if wrong else 'nothing'!r} is no data set of {name}; use {known}")
    options = source.get("options", {})
    if not isinstance(options, dict):
        raise UserError(f"{where}.options: {options!r} is not a dictionary; write {{'argument': value}}")
    folder = [str(Path(data.root, x)) for x in root] if isinstance(root, tuple) else str(Path(data.root, root))
    return [Entry(x, weight / len(names), folder, source.get("split", "train"), options) for x in names]


def open_source(entry, per_image):
    """Entry -> its `Source`: what `plum data build` wrote, where the root holds that, else the raw files.

    UserError where the files are not there or an option is not known.
    """
    kind = KINDS[entry.name]
    if isinstance(entry.root, str):
        from data_pipelines import arrayrecord  # knows the sources by their names here

        built = arrayrecord.find_built(entry.root, entry.name, entry.split)
        if built:
            return arrayrecord.ArrayRecordSource(built, split=entry.split, per_image=per_image, **entry.options)
    module, _, name = kind.place.partition(":")
    options = {"split": entry.split, "per_image": per_image, **dict(kind.options), **entry.options}
    make = getattr(importlib.import_module(module), name)
    try:
        return make(entry.root, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"config.data.sources: {entry.name}: {error}; correct its options {entry.options}") from error


def grounded_pair(data):
    """config.data.grounded, and where that is empty the (n, m) that the weights of the sources say.

    With weights 9 : 5 : 1 for data with masks and 5 for conversations without, 15 of 20 images have masks: (3, 4). Then every
    data set is drawn in proportion to its weight. An (n, m) that is set wins: the weights hold among the data with masks and
    among those without, and n of every m images are of the first kind. Data of one kind alone: (1, 1).
    """
    if len(data.grounded) or not data.get("sources"):
        return tuple(data.grounded)
    weights = {True: fractions.Fraction(0), False: fractions.Fraction(0)}
    for number, source in enumerate(data.sources):
        parts = _expand(source, data, f"config.data.sources[{number}]")
        for entry in parts:
            weights[entry.grounded] += fractions.Fraction(source["weight"]).limit_denominator(1000) / len(parts)
    if not weights[True] or not weights[False]:
        return (1, 1)
    share = weights[True] / (weights[True] + weights[False])
    return share.numerator, share.denominator
