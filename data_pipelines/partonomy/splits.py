"""Splits of instances by photograph (D 1.7): no photograph is in two of them, and the result depends on the seed alone."""

import collections
import re

import numpy as np

from plum_jax.errors import UserError

COCO_STYLE = ("paco_lvis", "pascal_part", "partimagenet")  # whose image names never end in -1


def parse_splits(text):
    """'train=0.8,val=0.2' -> {"train": 0.8, "val": 0.2}. UserError when the shares do not add up to 1."""
    shares = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        good = re.fullmatch(r"[A-Za-z0-9-]+", name) and name not in shares and re.fullmatch(r"[0-9]*\.?[0-9]+", number)
        if not good or not 0 < float(number) <= 1:
            raise UserError(f"--splits: {item!r} in {text!r}; write name=share with different names and shares above 0")
        shares[name] = float(number)
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"--splits: the shares of {text!r} add up to {sum(shares.values()):g}; make it 1")
    return shares


def photographs(descriptor):
    """{image path: photograph} of a descriptor. The reference's copies with a box drawn, <stem>-<k><ext>, are of <stem><ext>.

    Such a name counts as a copy in the sources for which the reference drew boxes, elsewhere only beside its original (D15).
    """
    paths = {instance.image_path for instance in descriptor.instances}
    known = {}
    for instance in descriptor.instances:
        original = re.sub(r"-\d+(\.\w+)$", r"\1", instance.image_path)
        copy = descriptor.dataset_name in COCO_STYLE or original in paths
        known[instance.image_path] = instance.source_image or (original if copy else instance.image_path)
    return known


def split_photographs(instances, shares, seed):
    """{photograph: split} for [(photograph, label)], stratified by label.

    A photograph counts for one of its labels, drawn at random. The photographs of every label, shuffled, are dealt out one by
    one to the split that lacks most to its share. (Rounding down within every label, as the reference does, would put all
    labels with a single photograph into the last split.)
    """
    labels = collections.defaultdict(set)
    for photograph, label in instances:
        labels[photograph].add(label)
    rng, strata = np.random.default_rng([seed, 1]), collections.defaultdict(list)
    for photograph in sorted(labels):
        choices = sorted(labels[photograph])
        strata[choices[rng.integers(len(choices))]].append(photograph)
    names, dealt, split_of = list(shares), dict.fromkeys(shares, 0), {}
    for label in sorted(strata):
        for k in rng.permutation(len(strata[label])):
            total = len(split_of) + 1
            name = max(names, key=lambda name, total=total: (shares[name] * total - dealt[name], -names.index(name)))
            dealt[name] += 1
            split_of[strata[label][k]] = name
    return split_of
