"""A folder with every data set of the paper's mixture, in the layouts of docs/data, and two subsets of PARTONOMY."""

import numpy as np
import test_part_annotations as parts
import test_reason as reason
import test_refer as refer
import test_semantic as semantic
import test_vqa as vqa
from fixtures_folders import blocks, box, box_mask, run_lengths
from fixtures_partonomy import write_folder

REFER = {"refclef": "refs(unc).p", "refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}


def write_mixture(root):
    """The folder that --config.data.root names: semantic and part labels, referring expressions, LLaVA-Instruct, ReasonSeg."""
    semantic.ade20k(root, {f"ADE_train_{k:08}": np.roll(blocks(0, 1, 3, 150), 7 * k, axis=1) for k in range(3)})
    semantic.cocostuff(root, blocks(0, 95, 181, 255))
    semantic.mapillary(root, blocks(0, 1, 2, 3))
    corners = [(0, 0, 9, 9), (20, 0, 30, 9), (5, 5, 40, 30)]
    parts.pascal(root, [(1, 1 + k, [box(*c)]) for k, c in enumerate(corners)])
    categories = ({"name": "trash_can"}, {"name": "trash_can:lid"}, {"name": "dog_(animal)"})
    found = [(1, 1, [box(0, 0, 20, 30)]), (1, 2, [box(0, 0, 20, 5)]), (1, 3, run_lengths(box_mask((30, 5, 50, 35))))]
    parts.paco(root, found, categories, images=("train2017/000000000010.jpg",))
    for name, file in REFER.items():
        refs = [refer.ref(1, 1, "man in red", "left guy."), refer.ref(1, 2, "the dog")]
        refer.folder(root, refs, [(1, [box(0, 0, 20, 30)]), (1, [box(30, 5, 50, 35)])], name, file)
    vqa.write(root, [vqa.entry(k) for k in range(3)])
    said = {"a": reason.SAID, "b": reason.SAID}
    reason.write(root, {name: reason.annotation() for name in "ab"}, said=said, explained={"a": "They dig with paws."})
    return root


def write_partonomy(root):
    """A folder of question files for each of two subsets."""
    for number, subset in enumerate(("paco_lvis", "pascal_part")):
        write_folder(root / subset, images=3, seed=number)
        write_folder(root / subset, images=1, seed=9, split="val")
    return root
