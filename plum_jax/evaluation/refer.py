"""`plum evaluate refer`: referring expressions, every sentence of every expression once (D 4.3, D 5.6)."""

import os
from pathlib import Path

from data_pipelines.naming import fill
from data_pipelines.refer import LAYOUTS, SPLITS, ReferSource
from data_pipelines.templates.refer import ANSWERS, QUESTIONS
from plum_jax.evaluation import prompts
from plum_jax.evaluation.asked import Asked
from plum_jax.evaluation.benchmarks import Data
from plum_jax.evaluation.mask_tables import MASK_COLUMNS, mask_tables

columns = MASK_COLUMNS


def main(argv=None):
    """Entry point of `plum score refer`."""
    from plum_jax.evaluation import benchmark_score

    benchmark_score.main("refer", argv)


def add_flags(parser):
    parser.add_argument("--dataset", choices=sorted(LAYOUTS), required=True)
    parser.add_argument("--split-by", metavar="NAME", help="division into splits (default unc, for refcocog umd)")
    prompts.add_flag(parser)
    parser.set_defaults(split="val")
    parser.epilog = f"splits: {', '.join(SPLITS)}"


def open_data(args):
    source = ReferSource(args.data, dataset=args.dataset, split=args.split, split_by=args.split_by, every_sentence=True)
    asking = prompts.template(args.question, QUESTIONS[0])
    return Data(
        args.dataset, args.split, Path(args.data), _questions(source, args, asking), list(source.index_files), source.skipped
    )


def _questions(source, args, asking):
    for index in range(len(source))[: args.max_images]:
        record = source.record(index)
        for number, (phrase, slot) in enumerate(record["phrases"]):
            given, span = fill(ANSWERS[0], phrase)
            yield Asked(
                f"{args.dataset}/{args.split}/{record['key']}#{number}", os.path.relpath(record["image"], args.data),
                fill(asking, phrase)[0], dataset=args.dataset, name=phrase, given=given, span=span,
                target=None if slot is None else record["masks"][slot],
            )  # fmt: skip


def tables(records):
    return mask_tables(records)
