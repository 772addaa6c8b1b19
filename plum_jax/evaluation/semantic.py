"""`plum evaluate semantic`: every class that an image has once (D 4.2, D 5.6)."""

import os
from pathlib import Path

from data_pipelines.naming import fill
from data_pipelines.semantic import LAYOUTS, LabelMapSource
from data_pipelines.templates.semantic import ANSWERS, QUESTIONS
from plum_jax.errors import UserError
from plum_jax.evaluation import prompts
from plum_jax.evaluation.asked import Asked
from plum_jax.evaluation.benchmarks import Data
from plum_jax.evaluation.mask_tables import MASK_COLUMNS, mask_tables
from plum_jax.evaluation.segments import class_summary

columns = ("miou_of_classes_present", *MASK_COLUMNS)


def main(argv=None):
    """Entry point of `plum score semantic`."""
    from plum_jax.evaluation import benchmark_score

    benchmark_score.main("semantic", argv)


def add_flags(parser):
    parser.add_argument("--dataset", choices=sorted(LAYOUTS), required=True)
    parser.add_argument("--ask-void", action="store_true", help="Mapillary's void classes are asked for too, not left out")
    prompts.add_flag(parser)
    parser.set_defaults(split="val")
    parser.epilog = "splits: val, train"


def open_data(args):
    source = LabelMapSource(args.data, dataset=args.dataset, split=args.split, ask_void=args.ask_void)
    asking = prompts.template(args.question, QUESTIONS[0])
    questions = _questions(source, args, asking)
    return Data(args.dataset, args.split, Path(args.data), questions, list(source.index_files), source.skipped)


def _questions(source, args, asking):
    for index in range(len(source))[: args.max_images]:
        try:
            record, ignore = source.record(index), source.ignored(index)
        except UserError:
            source.skipped["label map not readable or without a class"] += 1
            continue
        for name, mask in record["classes"]:
            given, span = fill(ANSWERS[0], name)
            yield Asked(
                f"{args.dataset}/{args.split}/{record['key']}#{name}", os.path.relpath(record["image"], args.data),
                fill(asking, name)[0], dataset=args.dataset, name=name, given=given, span=span, target=mask, ignore=ignore,
            )  # fmt: skip


def tables(records):
    return mask_tables(records, class_summary)
