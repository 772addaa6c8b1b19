"""`plum evaluate`: a checkpoint on a benchmark -> OUT/predictions.jsonl, OUT/instances.jsonl and OUT/results.json."""

import shlex
import sys
from pathlib import Path

from plum_jax import cli, config_io, console
from plum_jax.checkpoint_flags import add_checkpoint_flags, check_random, eval_config, local_devices
from plum_jax.errors import UserError
from plum_jax.evaluation import benchmarks
from plum_jax.evaluation.folder import PROTOCOLS, check_calibrate, evaluate_folder
from plum_jax.evaluation.part_names import add_synonyms_flag, synonyms_of
from plum_jax.evaluation.question_set import question_path, questions_of
from plum_jax.run_record import RunRecord

ABOUT = {
    "partonomy": "PARTONOMY: ten types of questions about parts, choices and masks",
    **{name: about for name, (_, about) in benchmarks.MODULES.items()},
}
OUT_HELP = "folder for predictions, scores and tables; a run that was stopped goes on there"
OVERVIEW = """usage: plum evaluate BENCHMARK --checkpoint=W --data=DIR --out=E [options]
       plum evaluate --compare A B [options]

Score a checkpoint on a benchmark:

{benchmarks}

  --compare A B  two evaluations of the same questions side by side: folders of plum evaluate or plum score

plum evaluate BENCHMARK --help and plum evaluate --compare --help show the options; docs/metrics.md and docs/benchmarks.md
say what is measured. plum score takes the predictions of any other model.
"""


def main(argv=None):
    """Entry point of `plum evaluate`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(word.split("=")[0] == "--compare" for word in argv):
        from plum_jax import compare

        compare.main(argv)
    elif argv and argv[0] in benchmarks.MODULES:
        from plum_jax.evaluation import benchmark_command

        benchmark_command.main(argv[0], argv[1:])
    elif argv and argv[0] == "partonomy":
        partonomy(argv[1:])
    elif argv and argv[0] in ("-h", "--help"):
        print(OVERVIEW.format(benchmarks="\n".join(f"  {name:<15}{about}" for name, about in ABOUT.items())), end="")
    else:
        what = f"{argv[0]!r} is not a benchmark" if argv else "no benchmark is named"
        raise UserError(f"{what}; give one of {', '.join(ABOUT)} as the first word; see plum evaluate --help")


def partonomy(argv):
    """`plum evaluate partonomy`."""
    parser = cli.Parser(
        prog="plum evaluate partonomy",
        description="Score a checkpoint on PARTONOMY (docs/metrics.md). plum evaluate --help lists the other benchmarks.",
    )
    config_io.add_config_flag(parser, default=None)
    add_checkpoint_flags(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with images/ and partonomy_qa_pairs_SPLIT.json")
    parser.add_argument("--split", default="test", help="train, val, test or heldout (default test)")
    parser.add_argument("--out", required=True, metavar="DIR", help=OUT_HELP)
    parser.add_argument("--question-types", metavar="A,B", help="only these; default all in the file")
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--protocols", default=",".join(PROTOCOLS), metavar="A,B", help="of %(default)s (default all)")
    parser.add_argument("--devices", type=int, metavar="N", help="split the images over N devices (default all of this host)")
    parser.add_argument("--batch-images", type=int, default=16, metavar="N", help="images at a time (default 16)")
    parser.add_argument("--restart", action="store_true", help="begin again; without it a stopped run is continued")
    add_synonyms_flag(parser)
    parser.add_argument("--calibrate", action="store_true", help="fit mask scores on this split, beside the checkpoint")
    args, overrides = config_io.parse_args(parser, argv)
    console.check_out(args.out)
    types = None if args.question_types is None else [word.strip() for word in args.question_types.split(",")]
    protocols = parse_protocols(args.protocols)
    check_numbers(args)
    synonyms_of(args.synonyms)
    questions_of(args.data, args.split, types, args.max_images)  # a fault there shows before anything is loaded or written
    from plum_jax.cache import enable_compilation_cache
    from plum_jax.evaluation import journal
    from plum_jax.evaluation.runner import Sizes
    from plum_jax.loading import load_model

    enable_compilation_cache()
    console.header("evaluate partonomy", args.out)
    loaded = load_model(args.checkpoint, base=args.base, which=args.which)
    check_random(loaded, args.allow_random)
    loaded = loaded._replace(config=eval_config(loaded.config, args.config, overrides))
    check_calibrate(loaded, args.calibrate)
    if args.restart:
        journal.discard(args.out)
    n = args.batch_images
    record = RunRecord(args.out, "evaluate", loaded.config, goes_on=True)
    record.input("questions", question_path(args.data, args.split))
    if args.synonyms is not None:
        record.input("synonyms", args.synonyms)
    record.note(checkpoint={"path": str(loaded.path), "sha256": loaded.sha256})
    results = evaluate_folder(
        loaded, args.data, args.split, args.out, question_types=types, max_images=args.max_images, calibrate=args.calibrate,
        sizes=Sizes(n, 2 * n, 2 * n), protocols=protocols, devices=local_devices(args.devices), record=record,
        synonyms=args.synonyms,
    )  # fmt: skip
    print(table(results["summary"]) + console.only_first(results["settings"]["max_images"]))
    counts = results["counts"]
    skipped = "".join(f", {n} skipped: {reason}" for reason, n in counts["skipped"].items())
    written = "results.json, instances.jsonl and predictions.jsonl"
    print(f"Wrote {Path(args.out)}: {written} ({console.counted(counts['scored'], 'question')}{skipped})")
    checkpoint = shlex.quote(args.checkpoint)
    print(f"Next: plum predict IMAGE --checkpoint={checkpoint} --prompt='What visible parts does ... have?' --out=preds")


def parse_protocols(text):
    """'published,middle' -> tuple, in the order of PROTOCOLS. UserError for another word."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in PROTOCOLS:
            raise UserError(f"--protocols {word!r}: is not known; use {', '.join(PROTOCOLS)}")
    return tuple(name for name in PROTOCOLS if name in words)


def check_numbers(args):
    """UserError for a number among the arguments that makes no sense."""
    for name, value in (("--batch-images", args.batch_images), ("--devices", args.devices)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: is too small; give 1 or more")


def table(summary):
    """Summary M -> the lines that the command prints, in percent."""
    columns = ("part_accuracy", "object_accuracy", "span_f1", "gmiou_macro", "gmiou_micro", "gmiou_macro_published")
    show = lambda value: f"{100 * value:10.1f}" if value is not None else "         -"  # noqa: E731
    heads = ("part acc", "obj acc", "span F1", "gmIoU mac", "gmIoU mic", "published", "false mask", "n")
    lines = [f"{'question type':<28}" + "".join(f"{head:>11}" for head in heads)]
    for name, m in summary["by_question_type"].items():
        cells = [show(m[key]) for key in (*columns, "false_mask_rate")] + [f"{m['n_instances']:10d}"]
        lines.append(f"{name:<28} " + " ".join(cells))
    lines.append("In percent: end to end, but for `published`, the gmIoU mac of that protocol; results.json has all protocols")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
