"""`plum evaluate pope`: yes or no about objects, and how often yes (Li et al., EMNLP 2023; D 5.7)."""

import numpy as np

from plum_jax.errors import UserError
from plum_jax.evaluation.mask_tables import by_group
from plum_jax.evaluation.vqa_files import POPE, POPE_SPLITS, open_files, question_file
from plum_jax.evaluation.word_metrics import yes_no_summary

columns = ("accuracy", "precision", "recall", "f1", "yes_ratio", "n_questions")


def main(argv=None):
    """Entry point of `plum score pope`."""
    from plum_jax.evaluation import benchmark_score

    benchmark_score.main("pope", argv)


def add_flags(parser):
    parser.epilog = f"splits: {', '.join(POPE_SPLITS)}, or several with commas; default all"


def open_data(args):
    splits = args.split.split(",") if args.split else list(POPE_SPLITS)
    for split in splits:
        if split not in POPE_SPLITS:
            raise UserError(f"--split {split}: POPE has {', '.join(POPE_SPLITS)}")
    if len(set(splits)) < len(splits):
        raise UserError(f"--split {args.split}: names a split twice; give each once")
    return open_files(args, POPE, ",".join(splits), [question_file(POPE, split) for split in splits])


def tables(records):
    """ "official": the numbers of each split; "all" is all splits together, which no paper reports."""
    protocols = {"official": {name: yes_no_of(some) for name, some in by_group(records).items()}}
    scored = [r for r in records if "contains" in r]
    if scored:
        protocols["contains"] = {
            name: {"accuracy": float(np.mean([r["contains"] for r in some])), "n_questions": len(some)}
            for name, some in by_group(scored).items()
        }
    return protocols


def yes_no_of(records):
    """`yes_no_summary` of scored records."""
    return yes_no_summary([(r["said"], r["references"][0], r["clear"]) for r in records])
