"""`plum evaluate hallucination`: parts that an image of a PARTONOMY folder has, and parts that it does not have.

In the way of POPE (Li et al., EMNLP 2023): to the visible parts of an image come as many absent ones, drawn at random, by how
frequent they are in the file (popular), or by how often they occur together with the parts that are there (adversarial).
About each part there are two questions: whether it is visible, and to segment it. They are about the whole image and all of
its objects, so no box is drawn into it.
"""

import collections
import zlib
from pathlib import Path

import numpy as np

from data_pipelines.masks import decode_segmentation, encode_rle
from data_pipelines.naming import fill
from data_pipelines.partonomy.records import read_questions
from data_pipelines.templates.semantic import ANSWERS, QUESTIONS
from plum_jax.errors import UserError
from plum_jax.evaluation import prompts
from plum_jax.evaluation.asked import WORDS, Asked
from plum_jax.evaluation.benchmarks import Data
from plum_jax.evaluation.mask_tables import OPEN, TEACHER_FORCED, by_group, of_protocol
from plum_jax.evaluation.pope import yes_no_of
from plum_jax.evaluation.question_set import question_path
from plum_jax.evaluation.vqa_files import POPE_SPLITS, YES_NO

IS_VISIBLE = "Is this part visible in the image: {name}?"
DATASET = "parts"
columns = (
    "accuracy",
    "f1",
    "yes_ratio",
    "n_questions",
    "false_mask_rate",
    "mask_rate_of_visible",
    "giou_mean_over_visible",
    "n_absent",
)


def main(argv=None):
    """Entry point of `plum score hallucination`."""
    from plum_jax.evaluation import benchmark_score

    benchmark_score.main("hallucination", argv)


def add_flags(parser):
    parser.add_argument("--per-image", type=int, default=3, metavar="N", help="visible parts, and absent ones of each kind (3)")
    parser.add_argument("--seed", type=int, default=0)
    prompts.add_flag(parser)
    parser.set_defaults(split="test")
    parser.epilog = "--data: a PARTONOMY folder, as of plum evaluate partonomy"


def open_data(args):
    if args.per_image < 1:
        raise UserError(f"--per-image {args.per_image}: is too small; give 1 or more")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: is negative; give 0 or more")
    path = question_path(args.data, args.split)
    visible = visible_parts(read_questions(path))
    skipped = collections.Counter()
    questions = _questions(visible, args, prompts.template(args.question, QUESTIONS[0]), path, skipped)
    return Data(DATASET, args.split, Path(args.data), questions, [path], skipped)


def visible_parts(questions):
    """[Question] -> {image path: {part: [entries of D 1.3]}}: all that the file shows in an image, of all its objects."""
    images = {}
    for question in questions:
        parts = images.setdefault(question.image_path, {})
        for part, entries in question.segmentations.items():
            known = parts.setdefault(part, [])
            known.extend(entry for entry in entries if entry not in known)
    return images


class Absent:
    """Draws parts that an image does not have.

    Args:
      visible: {image: parts}. What no annotation shows counts as absent: a file with gaps makes mistakes of right answers.
    """

    def __init__(self, visible):
        self.parts = sorted({part for parts in visible.values() for part in parts})
        place = {part: i for i, part in enumerate(self.parts)}
        shown = np.zeros((len(visible), len(self.parts)), np.int64)
        for row, parts in enumerate(visible.values()):
            shown[row, [place[part] for part in parts]] = 1
        self._place, self._frequency, self._together = place, shown.sum(0), shown.T @ shown

    def draw(self, parts, count, rng):
        """{part: [kinds that chose it]} of parts that are not among `parts`, up to `count` of each kind of POPE_SPLITS."""
        there = [self._place[part] for part in parts]
        left = np.setdiff1d(np.arange(len(self.parts)), there)
        order = {  # equally frequent ones in alphabetical order
            "random": rng.permutation(left),
            "popular": left[np.argsort(-self._frequency[left], kind="stable")],
            "adversarial": left[np.lexsort((-self._frequency[left], -self._together[left][:, there].sum(1)))],
        }
        drawn = {}
        for kind in POPE_SPLITS:
            for i in order[kind][:count]:
                drawn.setdefault(self.parts[i], []).append(kind)
        return drawn


def _questions(visible, args, asking, path, skipped):
    absent = Absent(visible)
    for image in list(visible)[: args.max_images]:
        parts = visible[image]
        rng = np.random.default_rng([args.seed, zlib.crc32(image.encode())])
        chosen = sorted(rng.permutation(sorted(parts))[: args.per_image].tolist())
        for part in chosen:
            try:
                target = _united(parts[part])
            except (ValueError, TypeError):
                skipped["part whose mask is not readable"] += 1
                continue
            yield from _about(image, part, POPE_SPLITS, "yes", target, asking)
        for part, kinds in absent.draw(parts, len(chosen), rng).items():
            yield from _about(image, part, tuple(kinds), "no", None, asking)


def _about(image, part, groups, label, target, asking):
    more = dict(dataset=DATASET, groups=groups, name=part)
    yield Asked(f"{image}#{part}#visible", image, fill(IS_VISIBLE, part)[0] + YES_NO, kind=WORDS, references=(label,), **more)
    given, span = fill(ANSWERS[0], part)
    yield Asked(f"{image}#{part}#mask", image, fill(asking, part)[0], given=given, span=span, target=target, **more)


def _united(entries):
    masks = [decode_segmentation(entry) for entry in entries]
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError("masks of different sizes")
    return encode_rle(np.any(masks, axis=0))


def tables(records):
    """ "yes_no": POPE's numbers; "teacher_forced" and "open": of the masks."""
    said = [r for r in records if "said" in r]
    protocols = {"yes_no": {name: yes_no_of(some) for name, some in by_group(said).items()}}
    for protocol in (TEACHER_FORCED, OPEN):
        answered = of_protocol(records, protocol)
        if answered:
            protocols[protocol] = {name: false_masks(some) for name, some in by_group(answered).items()}
    return protocols


def false_masks(records):
    """Scored mask questions -> how often an absent part got a mask, and how good the masks of visible ones are."""
    there, absent = ([r for r in records if r["has_target"] == wanted] for wanted in (True, False))
    mean = lambda values: float(np.mean(values)) if values else None  # noqa: E731
    return {
        "false_mask_rate": mean([r["pixels"] > 0 for r in absent]),
        "mask_rate_of_visible": mean([r["pixels"] > 0 for r in there]),
        "giou_mean_over_visible": mean([r["iou"] for r in there]),
        "n_absent": len(absent),
        "n_visible": len(there),
    }
