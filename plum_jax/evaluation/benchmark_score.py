"""`plum score BENCHMARK` for the benchmarks beside PARTONOMY: predictions of any model and the questions -> results.json."""

import json
import sys

from plum_jax import cli, console
from plum_jax.errors import UserError
from plum_jax.evaluation import benchmarks
from plum_jax.evaluation.asked import MASK, WORDS, read_questions
from plum_jax.evaluation.benchmark_command import add_score_flags, score_records, settings_of, table
from plum_jax.evaluation.benchmark_predictions import predictions_of
from plum_jax.run_record import RunRecord, sha256_of


def main(name, argv=None):
    """Entry point of `plum score NAME`."""
    parser = cli.Parser(
        prog=f"plum score {name}", description=f"Score predictions of any model on {benchmarks.MODULES[name][1]}."
    )
    add = parser.add_argument
    add("--predictions", required=True, metavar="FILE", help="JSON or JSON lines, as in docs/benchmarks.md")
    add("--reference", required=True, metavar="FILE", help="questions.jsonl of plum evaluate, or an official file of vqa, pope")
    add("--out", metavar="DIR", help="write results.json, instances.jsonl and run.json there")
    add("--ignore-missing", action="store_true", help="leave out, and count, what has no prediction; else it is an error")
    add("--json", action="store_true", help="print results.json and nothing else")
    add_score_flags(parser, name)
    args = parser.parse_args(argv)
    if args.out is not None:
        console.check_out(args.out)
    if getattr(args, "no_target_pixels", None) is not None and args.no_target_pixels < 0:
        raise UserError(f"--no-target-pixels {args.no_target_pixels}: is negative; give 0 or more")
    console.header(f"score {name}", args.out, device=False, stream=sys.stderr if args.json else None)
    settings = settings_of(args)
    if args.out is None:
        results, _ = score_files(name, args.predictions, args.reference, settings, ignore_missing=args.ignore_missing)
    else:
        from plum_jax.score import write_results

        with RunRecord(args.out, f"score {name}") as record:
            record.input("reference", args.reference)
            record.input("predictions", args.predictions)
            results, records = score_files(name, args.predictions, args.reference, settings, ignore_missing=args.ignore_missing)
            write_results(args.out, results, records)
    if args.json:
        print(json.dumps(results, indent=2, allow_nan=False))
        return
    print(table(results, benchmarks.module(name).columns))
    counts = results["counts"]
    reasons = "".join(f", {n} left out: {reason}" for reason, n in counts["skipped"].items())
    print(f"{console.counted(counts['scored'], 'question')} scored{reasons}")
    print("Wrote nothing; pass --out=DIR" if args.out is None else f"Wrote {args.out}/results.json and instances.jsonl")


def score_files(name, predictions, reference, settings, *, ignore_missing=False):
    """Two files -> (results.json as a dictionary, [record of instances.jsonl]).

    Args:
      name: of benchmarks.MODULES. settings: answered.Settings.
      ignore_missing: what has no prediction is left out and counted instead of being an error.
    """
    questions = read_reference(name, reference)
    if not questions:
        raise UserError(f"{reference}: has no question; give the questions.jsonl of plum evaluate {name}")
    if len({question.id for question in questions}) < len(questions):
        raise UserError(f"{reference}: has two questions of one id; write it again with plum evaluate {name} --questions-only")
    found = predictions_of(predictions, questions)
    results, records = score_records(
        benchmarks.module(name), name, questions, found, settings, predictions, ignore_missing=ignore_missing
    )  # fmt: skip
    results["checkpoint"] = {"path": None, "sha256": None}
    results["data"].update(path=str(reference), sha256=sha256_of(reference))
    results["predictions"] = {"path": str(predictions), "sha256": sha256_of(predictions)}
    return results, records


def read_reference(name, path):
    """[Asked] of a questions.jsonl or, of vqa and pope, an official question file. UserError for one of another benchmark."""
    if name not in benchmarks.WITH_MASKS and not _is_ours(path):
        from plum_jax.evaluation.vqa_files import POPE, read_official

        dataset, questions = read_official(path)
        if (dataset == POPE) != (name == "pope"):
            raise UserError(f"{path}: is a file of {dataset}; use plum score {'pope' if dataset == POPE else 'vqa'}")
        return questions
    questions = list(read_questions(path))
    datasets = {question.dataset for question in questions}
    known = benchmarks.DATASETS[name]
    wrong = sorted(datasets - set(known))
    kinds = {MASK, WORDS} if name == "hallucination" else {MASK} if name in benchmarks.WITH_MASKS else {WORDS}
    other = next((question for question in questions if question.kind not in kinds), None)
    if other is not None:
        raise UserError(f"{path}: question {other.id} has the kind {other.kind}, which {name} does not have; correct it")
    if wrong:
        raise UserError(f"{path}: has questions of {wrong[0]!r}, which {name} does not have; it has {', '.join(known)}")
    return questions


def _is_ours(path):
    """Whether the first line is a question of questions.jsonl."""
    try:
        with open(path, encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"id", "prompt"} <= first.keys()
