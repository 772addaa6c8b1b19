"""`plum evaluate vqa`: TextVQA by soft accuracy, GQA by exact match (D 5.7)."""

import numpy as np

from plum_jax.evaluation.mask_tables import by_group
from plum_jax.evaluation.vqa_files import GQA, TEXTVQA, open_files, question_file

columns = ("accuracy", "n_questions")
SPLITS = {TEXTVQA: "val", GQA: "testdev"}


def main(argv=None):
    """Entry point of `plum score vqa`."""
    from plum_jax.evaluation import benchmark_score

    benchmark_score.main("vqa", argv)


def add_flags(parser):
    parser.add_argument("--dataset", choices=sorted(SPLITS), required=True)
    parser.epilog = "default split: val of TextVQA, testdev (balanced) of GQA"


def open_data(args):
    split = args.split or SPLITS[args.dataset]
    return open_files(args, args.dataset, split, [question_file(args.dataset, split)])


def tables(records):
    protocols = {}
    for protocol in ("official", "contains"):
        scored = [r for r in records if protocol in r]
        if scored:
            protocols[protocol] = {
                name: {"accuracy": float(np.mean([r[protocol] for r in some])), "n_questions": len(some)}
                for name, some in by_group(scored).items()
            }
    return protocols
