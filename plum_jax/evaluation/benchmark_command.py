"""`plum evaluate BENCHMARK` for the benchmarks beside PARTONOMY: questions -> predictions -> scores, three files in OUT."""

import collections
import contextlib
import dataclasses
import os
import sys
import time
from pathlib import Path

from plum_jax import __version__, cli, config_io, console
from plum_jax.errors import UserError
from plum_jax.evaluation import benchmarks
from plum_jax.evaluation.answered import Settings, score
from plum_jax.evaluation.asked import FILE_NAME, read_questions, write_questions
from plum_jax.run_record import RunRecord, sha256_of
from plum_jax.score import write_results
from plum_jax.switches import switch

PREDICTIONS = "predictions.jsonl"
METRICS = ("official", "contains")
OUT_HELP = "folder for questions, predictions, scores and tables; a run that was stopped goes on there"


def main(name, argv):
    """Entry point of `plum evaluate NAME`."""
    from plum_jax.checkpoint_flags import add_checkpoint_flags

    bench = benchmarks.module(name)
    parser = cli.Parser(prog=f"plum evaluate {name}", description=f"Score a checkpoint on {benchmarks.MODULES[name][1]}.")
    config_io.add_config_flag(parser, default=None)
    about_config = parser.epilog
    add_checkpoint_flags(parser, default="")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the data, as in docs/benchmarks.md")
    parser.add_argument("--split", help="which split; see below")
    parser.add_argument("--out", required=True, metavar="DIR", help=OUT_HELP)
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--devices", type=int, metavar="N", help="split the images over N devices (default all of this host)")
    parser.add_argument("--batch-images", type=int, default=8, metavar="N", help="images at a time (default 8)")
    parser.add_argument("--restart", action="store_true", help="begin again; without it a stopped run is continued")
    parser.add_argument("--questions-only", action="store_true", help="write OUT/questions.jsonl for plum score, run nothing")
    add_score_flags(parser, name)
    bench.add_flags(parser)
    if parser.epilog != about_config:  # argparse makes one paragraph of both
        parser.epilog = f"{parser.epilog}. {about_config}"
    args, overrides = config_io.parse_args(parser, argv)
    check(args)
    return make_questions(bench, name, args) if args.questions_only else evaluate(bench, name, args, overrides)


def add_score_flags(parser, name):
    """What the scores of a benchmark depend on, also in `plum score`."""
    if name in benchmarks.WITH_MASKS:
        parser.add_argument(
            "--no-target-pixels", type=int, metavar="N", help="a mask of fewer pixels is none (default 50 for gRefCOCO, else 0)"
        )
        parser.add_argument("--ignore255-as-fg", action="store_true", help="gmIoU takes ignored pixels for the target")
    else:
        parser.add_argument("--metric", choices=METRICS, help="contains: the substring metric of the reference as well")


def check(args):
    """UserError for values that no data makes right."""
    console.check_out(args.out)
    for flag, least in (("max_images", 1), ("devices", 1), ("batch_images", 1), ("no_target_pixels", 0)):
        value = getattr(args, flag, None)
        if value is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} {value}: is too small; give a larger number")
    if not args.checkpoint and not args.questions_only:
        raise UserError("--checkpoint: is missing; name a run folder, base weights or tiny, or pass --questions-only")


def make_questions(bench, name, args):
    """--questions-only: OUT/questions.jsonl and nothing else."""
    console.header(f"evaluate {name} --questions-only", args.out, device=False)
    data = bench.open_data(args)  # a fault there shows before anything is written
    if (Path(args.out) / PREDICTIONS).exists():  # which are about the questions that are there
        raise UserError(f"{Path(args.out) / PREDICTIONS}: belongs to a run of plum evaluate; give another --out")
    with RunRecord(args.out, f"evaluate {name} --questions-only") as record:
        count = write_questions(Path(args.out) / FILE_NAME, data.questions)
        _note(record, data)
    subset = console.only_first(args.max_images)
    print(f"Wrote {Path(args.out) / FILE_NAME} ({console.counted(count, 'question')}{_left_out(data.skipped)}){subset}")
    print(f"Next: plum score {name} --predictions=FILE --reference={Path(args.out) / FILE_NAME}")


def evaluate(bench, name, args, overrides):
    """Questions -> predictions -> scores."""
    data = bench.open_data(args)  # a fault there shows before anything is loaded or written
    from plum_jax.cache import enable_compilation_cache
    from plum_jax.checkpoint_flags import check_random, eval_config, local_devices
    from plum_jax.evaluation import journal
    from plum_jax.evaluation.asking import Sizes
    from plum_jax.inference import Model
    from plum_jax.loading import load_model

    enable_compilation_cache()
    console.header(f"evaluate {name}", args.out)
    loaded = load_model(args.checkpoint, base=args.base, which=args.which)
    check_random(loaded, args.allow_random)
    loaded = loaded._replace(config=eval_config(loaded.config, args.config, overrides))
    if args.restart:
        journal.discard(args.out)
    record = RunRecord(args.out, f"evaluate {name}", loaded.config, goes_on=True)
    record.note(checkpoint={"path": str(loaded.path), "sha256": loaded.sha256})
    _note(record, data)
    results = evaluate_data(
        bench, name, Model(loaded), data, args.out, settings_of(args, loaded.config),
        sizes=Sizes(args.batch_images, 2 * args.batch_images), devices=local_devices(args.devices), record=record,
        max_images=args.max_images,
    )  # fmt: skip
    print(table(results, bench.columns) + console.only_first(args.max_images))
    counts = results["counts"]
    print(
        f"Wrote {Path(args.out) / 'results.json'} and instances.jsonl ({console.counted(counts['scored'], 'question')}"
        f"{_left_out(data.skipped)})"
    )
    print(f"Next: plum score {name} --predictions={Path(args.out) / PREDICTIONS} --reference={Path(args.out) / FILE_NAME}")


def settings_of(args, config=None):
    """Flags, and where they are silent the switches of the config -> answered.Settings."""
    of_config = {} if config is None else config
    return Settings(
        getattr(args, "no_target_pixels", None),
        getattr(args, "ignore255_as_fg", False) or switch(of_config.get("eval", {}), "eval.ignore255_as_fg"),
        getattr(args, "metric", None) or switch(of_config.get("vqa", {}), "vqa.metric"),
    )


def evaluate_data(
    bench, name, model, data, out, settings, *, sizes=None, devices=None, restart=False, record=None, log=sys.stderr,
    max_images=None,
):  # fmt: skip
    """Runs a model on an opened data set and scores it; a run that was stopped continues.

    Args:
      bench, name: module of a benchmark. model: inference.Model. data: benchmarks.Data. out: folder. settings: Settings.
      sizes: asking.Sizes. devices: jax devices that share the images; None for the first one.
      restart: begin again where OUT holds predictions of another run, instead of refusing.
      record: RunRecord to enter once nothing can be refused any more.
      log: where progress goes; None for silence. max_images: how many images `data` was cut to, for results.json.

    Returns:
      The dictionary of results.json.

    Raises:
      UserError: no question, none that could be scored, predictions of another run in OUT.
    """
    from plum_jax.evaluation import asking

    began, out = time.monotonic(), Path(out)
    questions, about, journal = _open(model, data, out, restart)
    with record or contextlib.nullcontext():
        found = {prediction.index: prediction for prediction in journal.done}
        bar = console.Progress(total=len(questions), start=len(found), label=name, unit="q", stream=log) if log else None
        with bar or contextlib.nullcontext():
            for predictions in asking.run(model, data.root, questions, sizes, frozenset(found), devices=devices, log=log):
                journal.add(predictions)
                found.update({prediction.index: prediction for prediction in predictions})
                if bar:
                    bar.update(len(predictions))
        results, records = score_records(bench, name, read_questions(out / FILE_NAME), found, settings, journal.path)
        if not results["counts"]["scored"]:
            why = ", ".join(f"{n} x {reason}" for reason, n in results["counts"]["skipped"].items())
            raise UserError(
                f"{data.root}: nothing could be scored ({why}); restore the images, then begin again with --restart"
            )
        results.update(
            dataset=data.dataset, split=data.split, checkpoint={"path": str(model.path), "sha256": model.sha256},
            data={
                "path": str(data.root), "sha256": about["questions"], "n_instances": len(questions),
                "files": {str(path): sha256_of(path) for path in data.inputs},
            },
            seconds=round(time.monotonic() - began, 3),
        )  # fmt: skip
        results["counts"]["left_out"] = dict(+data.skipped)
        results["settings"].update({key: about[key] for key in ("max_new_tokens", "min_score")}, calibrated=model.calibrated)
        results["settings"]["max_images"] = max_images
        write_results(out, results, records)
    return results


def _open(model, data, out, restart):
    """Writes OUT/questions.jsonl -> ([(number, Asked without its target)], what decides what is predicted, Journal)."""
    from plum_jax.evaluation import asking
    from plum_jax.evaluation.journal import Journal

    made = out / f".{FILE_NAME}.new"  # what is there stays if it is of another run
    try:
        if not write_questions(made, data.questions):
            raise UserError(f"{data.root}: has no question to ask{_left_out(data.skipped)}; see docs/benchmarks.md")
        questions = [(i, dataclasses.replace(q, target=None, ignore=None)) for i, q in enumerate(read_questions(made))]
        about = {"questions": sha256_of(made), **settings_of_run(model)}
        journal = Journal(out, about, asking.order(questions), "restart" if restart else "refuse")
        os.replace(made, out / FILE_NAME)
    finally:
        made.unlink(missing_ok=True)
    return questions, about, journal


def settings_of_run(model):
    """Everything but the questions that decides what is predicted: only a run with the same settings is continued."""
    config = model.config
    switches = ("data.tokenizer_flavour", "data.clip_view", "eval.mc_dtype", "eval.span_scope", "eval.feedback")
    return {
        "version": __version__, "checkpoint": model.sha256, "min_score": model.min_score,
        "max_new_tokens": int(config.eval.max_new_tokens),
        "calibration": dataclasses.asdict(model.calibration) if model.calibrated else None,
        **{name: switch(config[name.partition(".")[0]], name) for name in switches},
    }  # fmt: skip


def score_records(bench, name, questions, predictions, settings, source, *, ignore_missing=False):
    """Questions and predictions -> (the dictionary of results.json, [record of instances.jsonl]).

    Args:
      questions: iterable of Asked. predictions: {index: Prediction}. source: file of the predictions, for messages.
    """
    records = list(score(questions, predictions, settings, source, ignore_missing=ignore_missing))
    scored = [record for record in records if "skipped" not in record]
    skipped = collections.Counter(record["skipped"] for record in records if "skipped" in record)
    return {
        "benchmark": name,
        "dataset": ", ".join(sorted({record["dataset"] for record in records})),
        "data": {"n_instances": len(records)},
        "protocols": bench.tables(scored),
        "counts": {"scored": len(scored), "skipped": dict(skipped)},
        "settings": dataclasses.asdict(settings),
        "version": __version__,
        "command": " ".join(sys.argv),
    }, records


def table(results, columns):
    """The lines that a command prints: rates in percent, counts as they are."""
    lines = []
    for protocol, groups in results["protocols"].items():
        shown = [column for column in columns if any(column in numbers for numbers in groups.values())]
        widths = [max(len(column), 8) for column in shown]
        lines.append(f"{protocol:<16}" + "  ".join(f"{column:>{w}}" for column, w in zip(shown, widths, strict=True)))
        for group, numbers in groups.items():
            cells = [_cell(numbers.get(column), w) for column, w in zip(shown, widths, strict=True)]
            lines.append(f"  {group:<14}" + "  ".join(cells))
    return "\n".join(lines)


def _cell(value, width):
    if value is None:
        return f"{'-':>{width}}"
    return f"{value:{width}d}" if isinstance(value, int) else f"{100 * value:{width}.1f}"


def _note(record, data):
    for path in data.inputs:
        record.input(path.name, path)
    record.note(left_out=dict(+data.skipped))


def _left_out(skipped):
    reasons = "; ".join(f"{count} x {reason}" for reason, count in sorted((+skipped).items()))
    return f"; left out: {reasons}" if reasons else ""
