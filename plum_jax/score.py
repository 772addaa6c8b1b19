"""`plum score partonomy`: prediction files of any model and the question file -> results.json. No model, no accelerator.

The other benchmarks of `plum score` have modules of their own in the table of commands (cli.COMMANDS).
"""

import json
import shlex
import sys
from pathlib import Path

from plum_jax import __version__, cli, console
from plum_jax.errors import UserError
from plum_jax.evaluation.part_names import add_synonyms_flag, synonyms_of
from plum_jax.run_record import RunRecord, sha256_of, write_json

MEASURE_HELP = "which of choice_scores chooses end to end (default: answer_mean, or the only one there is)"


def main(argv=None):
    """Entry point of `plum score partonomy`."""
    parser = cli.Parser(
        prog="plum score partonomy",
        description="Score prediction files of any model (docs/predictions.md), or of the published code.",
    )
    add = parser.add_argument
    add("--predictions", required=True, nargs="+", metavar="FILE", help="JSON or JSON lines; several files add up")
    add("--reference", required=True, metavar="FILE", help="the question file, partonomy_qa_pairs_SPLIT.json")
    add("--images", metavar="DIR", help="folder of the images: check that masks have the size of the upright image")
    add("--out", metavar="DIR", help="write results.json, instances.jsonl and run.json there")
    add("--question-types", metavar="A,B", help="only these; default all that the predictions answer")
    add("--ignore-missing", action="store_true", help="leave out what has no prediction; by default it counts as wrong")
    add("--measure", metavar="NAME", help=MEASURE_HELP)
    add("--tie", choices=("wrong", "first"), default="wrong", help="end to end, of equal best scores (default wrong)")
    add("--empty-union", choices=("one", "zero", "skip"), default="one", help="IoU of two empty masks (default one)")
    add_synonyms_flag(parser)
    add("--json", action="store_true", help="print results.json and nothing else")
    args = parser.parse_args(argv)
    if args.out is not None:
        console.check_out(args.out)
    types = None if args.question_types is None else [word.strip() for word in args.question_types.split(",")]
    options = dict(
        types=types, images=args.images, ignore_missing=args.ignore_missing, measure=args.measure, tie=args.tie,
        empty_union=args.empty_union, synonyms=args.synonyms, log=sys.stderr,
    )  # fmt: skip
    console.header("score partonomy", args.out, device=False, stream=sys.stderr if args.json else None)
    if args.out is None:
        results, _ = score_files(args.predictions, args.reference, **options)
    else:
        with RunRecord(args.out, "score") as record:
            record.input("questions", args.reference)
            if args.synonyms is not None:
                record.input("synonyms", args.synonyms)
            for number, path in enumerate(args.predictions):
                record.input(f"predictions {number}", path)
            results, records = score_files(args.predictions, args.reference, **options)
            write_results(args.out, results, records)
    if args.json:
        print(json.dumps(results, indent=2, allow_nan=False))
    else:
        _print(results, args)


def _print(results, args):
    from plum_jax.evaluation.score_table import account, table

    print("\n".join(table(results["protocols"])))
    print("\n".join(account(results["counts"])))
    if args.out is None:
        again = shlex.join(["plum", "score", "partonomy", "--predictions", *args.predictions, "--reference", args.reference])
        print(f"Wrote nothing\nNext: {again} --out=scores")
        return
    scored = console.counted(results["counts"]["scored"], "question")
    print(f"Wrote {Path(args.out) / 'results.json'}, instances.jsonl and run.json ({scored})")
    print(f"Next: plum report {shlex.quote(args.out)}, or plum evaluate --compare {shlex.quote(args.out)} OTHER")


def score_files(
    paths, reference, *, types=None, images=None, ignore_missing=False, measure=None, tie="wrong", empty_union="one",
    synonyms=None, log=None,
):  # fmt: skip
    """Scores prediction files.

    Args:
      paths: prediction files. reference: the question file. types: only these question types.
      images: folder of the images, to compare their sizes with the masks; None: not looked at.
      ignore_missing: leave out what has no prediction instead of counting it as wrong.
      measure, tie: the rule of the end-to-end choices. empty_union: IoU of two empty masks.
      synonyms: file of part names that mean the same, for what is compared by rules. log: stream for progress.

    Returns:
      (results.json as a dictionary, [record of instances.jsonl]).

    Raises:
      UserError: a file cannot be read, an entry is wrong, or does not belong to the questions.
    """
    from data_pipelines.partonomy.records import read_questions
    from data_pipelines.question_files import PATTERN, split_of
    from plum_jax.evaluation import claims, partonomy
    from plum_jax.evaluation.collect import ImageSizes, collect, complete

    bar = (lambda items, label: console.Progress(items, label=label, stream=log)) if log else (lambda items, label: items)
    source = Path(reference)
    if source.is_dir():
        raise UserError(f"{source}: is a folder; give the question file in it, partonomy_qa_pairs_SPLIT.json")
    questions = read_questions(source)
    if not questions:
        raise UserError(f"{source}: holds no question; give the question file that the predictions are about")
    key, synonyms = synonyms_of(synonyms)
    collected, hw = collect(paths, questions, source, bar), ImageSizes(questions, source)
    todo, counts = complete(questions, collected, hw, ignore_missing)
    todo, counts = _only(todo, counts, types, source)
    if images is not None:
        check_images(images, questions, todo, hw)
    settings = {"mc_score": measure_of(todo, measure), "tie": tie, "empty_union": empty_union, "synonyms": synonyms}
    split = split_of(source) if PATTERN.match(source.name) else source.stem
    scorer = partonomy.Scorer(split, source, settings, key)
    records = []
    for item in bar(todo, "score"):
        index = item.prediction.index
        records.append(_record(scorer.score(questions[index], item.prediction, hw(index)), item))
    by_index = {item.prediction.index: record for item, record in zip(todo, records, strict=True)}
    reports = [claims.check_claim(c, by_index) for c in collected.claims if by_index.keys() >= set(c.indices)]
    for sentence in (sentence for report in reports for sentence in claims.warnings(report)):
        print(f"warning: {sentence}", file=sys.stderr)
    n_skipped = sum(counts["skipped"].values())
    return {
        "benchmark": "partonomy",
        "split": split,
        "checkpoint": {"path": None, "sha256": None},
        "predictions": [{**file, "sha256": sha256_of(file["path"])} for file in collected.files],
        "data": {"path": str(source), "sha256": sha256_of(source), "n_instances": len(questions)},
        "protocols": partonomy.protocols(records, settings["mc_score"], tie),
        "summary": partonomy.summary(records, n_skipped),
        "counts": counts,
        "claims": reports,
        "settings": settings,
        "version": __version__,
        "command": " ".join(sys.argv),
    }, records


def _only(todo, counts, types, source):
    """Those of some question types."""
    if types is None:
        return todo, counts
    have = sorted({item.prediction.question_type for item in todo})
    for name in types:
        if name not in have:
            raise UserError(
                f"--question-types {name}: the predictions answer no such question of {source}; have {', '.join(have)}"
            )
    kept = [item for item in todo if item.prediction.question_type in types]
    skipped = {**counts["skipped"], "type_not_wanted": len(todo) - len(kept)}
    return kept, {**counts, "scored": len(kept), "skipped": skipped}


def _record(record, item):
    """A record, with what the model should have answered and did not."""
    if not item.unanswered:
        return record
    record["unanswered"] = list(item.unanswered)
    if "part" in item.unanswered:  # no part named
        record["part_matches_rules"] = {key: [0, 0, len(record["gt_parts"])] for key in record["part_matches_rules"]}
    return record


def measure_of(todo, wanted):
    """The measure of choice_scores that chooses end to end. UserError when the wanted one is nowhere."""
    names = dict.fromkeys(m for item in todo for lists in item.prediction.choice_scores.values() for m in lists)
    if wanted is not None and wanted not in names:
        raise UserError(f"--measure {wanted}: no prediction has it; have {', '.join(names) or 'no choice scores'}")
    if wanted is None and len(names) == 1:
        return next(iter(names))
    return wanted or "answer_mean"


def check_images(folder, questions, todo, hw):
    """UserError when an image is missing, unreadable, or has another size, upright, than its masks."""
    from data_pipelines.folders import within
    from data_pipelines.images import load_image

    seen = set()
    for item in todo:
        path = questions[item.prediction.index].image_path
        if path in seen:
            continue
        seen.add(path)
        found = load_image(within(folder, path, follow_links=True)).shape[:2]
        if found != tuple(hw(item.prediction.index)):
            raise UserError(
                f"{Path(folder) / path}: is {list(found)} upright, its masks are {list(hw(item.prediction.index))}; "
                "give the images that the question file was made from"
            )


def write_results(out, results, records):
    """OUT/instances.jsonl, then OUT/results.json."""
    from plum_jax.run_record import write_text

    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    write_text(Path(out) / "instances.jsonl", lines)
    write_json(Path(out) / "results.json", results)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
