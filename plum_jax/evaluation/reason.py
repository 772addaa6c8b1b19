"""`plum evaluate reason`: ReasonSeg, every query once (D 4.5, D 5.6)."""

import os
import warnings
from pathlib import Path

from data_pipelines.naming import SLOT
from data_pipelines.reason import ReasonSeg, response
from data_pipelines.templates.reason import LONG, SHORT
from plum_jax.evaluation import prompts
from plum_jax.evaluation.asked import Asked
from plum_jax.evaluation.benchmarks import Data
from plum_jax.evaluation.mask_tables import MASK_COLUMNS, mask_tables

columns = MASK_COLUMNS


def main(argv=None):
    """Entry point of `plum score reason`."""
    from plum_jax.evaluation import benchmark_score

    benchmark_score.main("reason", argv)


def add_flags(parser):
    parser.add_argument("--responses", metavar="FILE", help="JSON {stem: [response to each query]}; default beside the images")
    prompts.add_flag(parser)
    parser.set_defaults(split="val")
    parser.epilog = "splits: val, test, train; tables for short and long queries, and for the first query of each image"


def open_data(args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about queries without a response, which the results count
        source = ReasonSeg(args.data, split=args.split, responses=args.responses)
    skipped = source.skipped
    if source.without_response:
        print(f"{source.without_response} queries have no response; their teacher-forced answer is a carrier sentence")
    return Data("reason_seg", args.split, Path(args.data), _questions(source, args), list(source.index_files), skipped)


def _questions(source, args):
    templates = [prompts.template(args.question, text[0].replace("{query}", SLOT)) for text in (SHORT, LONG)]
    for index in range(len(source))[: args.max_images]:
        record, ignore = source.record(index), source.ignored(index)
        for number, query in enumerate(record["queries"]):
            given, start, end = response(record, number, "response")
            groups = ("long" if record["is_sentence"] else "short", *(("first_query",) if number == 0 else ()))
            yield Asked(
                f"reason_seg/{record['key']}#{number}", os.path.relpath(record["image"], args.data),
                templates[record["is_sentence"]].replace(SLOT, query), dataset="reason_seg", groups=groups, name=query,
                given=given, span=(start, end), target=record["mask"], ignore=ignore,
            )  # fmt: skip


def tables(records):
    return mask_tables(records)
