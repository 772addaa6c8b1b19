"""`plum evaluate`: a checkpoint on a benchmark -> OUT/results.json and OUT/instances.jsonl."""

import contextlib
import json
import os
import shlex
import sys
import time
from pathlib import Path

from plum_jax import __version__, cli, config_io, console
from plum_jax.errors import UserError
from plum_jax.evaluation import benchmarks
from plum_jax.run_record import RunRecord, sha256_of, write_json
from plum_jax.switches import switch

BENCHMARKS = ("partonomy", *benchmarks.MODULES)
SWITCHES = ("mc_score", "mc_dtype", "tie", "empty_union", "span_scope", "feedback")  # of config.eval, written into the results


def main(argv=None):
    """Entry point of `plum evaluate`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(word.split("=")[0] == "--compare" for word in argv):
        from plum_jax import compare

        compare.main(argv)
        return
    if argv and argv[0] in benchmarks.MODULES:
        from plum_jax.evaluation import benchmark_command

        benchmark_command.main(argv[0], argv[1:])
        return
    parser = cli.Parser(
        prog="plum evaluate",
        description="Score a checkpoint on a benchmark. With --compare A B: two evaluations side by side (--compare --help).",
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    config_io.add_config_flag(parser, default=None)
    add_checkpoint_flags(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with images/ and partonomy_qa_pairs_SPLIT.json")
    parser.add_argument("--split", default="test", help="train, val, test or heldout (default test)")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--question-types", metavar="A,B", help="only these; default all in the file")
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--calibrate", action="store_true", help="fit mask scores on this split, beside the checkpoint")
    args, overrides = config_io.parse_args(parser, argv)
    console.check_out(args.out)
    types = None if args.question_types is None else [word.strip() for word in args.question_types.split(",")]
    questions_of(args.data, args.split, types, args.max_images)  # a fault there shows before anything is loaded or written
    from plum_jax.cache import enable_compilation_cache
    from plum_jax.loading import load_model

    enable_compilation_cache()
    console.header(f"evaluate {args.benchmark}", args.out)
    loaded = load_model(args.checkpoint, base=args.base)
    check_random(loaded, args.allow_random)
    loaded = loaded._replace(config=eval_config(loaded.config, args.config, overrides))
    check_calibrate(loaded, args.calibrate)
    with RunRecord(args.out, "evaluate", loaded.config) as record:
        record.input("questions", question_path(args.data, args.split))
        record.note(checkpoint={"path": str(loaded.path), "sha256": loaded.sha256})
        results = evaluate_folder(
            loaded, args.data, args.split, args.out, question_types=types, max_images=args.max_images, calibrate=args.calibrate
        )
    print(table(results["summary"]))
    print(f"Wrote {Path(args.out) / 'results.json'} and instances.jsonl ({results['counts']['scored']} questions)")
    checkpoint = shlex.quote(args.checkpoint)
    print(f"Next: plum predict IMAGE --checkpoint={checkpoint} --prompt='What visible parts does ... have?' --out=preds")


def local_devices(count):
    """The first `count` devices of this host, None for all. UserError when there are not so many."""
    import jax

    devices = jax.local_devices()
    if count is not None and count > len(devices):
        raise UserError(f"--devices {count}: this host has {len(devices)}; give at most so many")
    return devices[:count]


def add_checkpoint_flags(parser, default=None):
    """--checkpoint, --base and --allow-random, of every command that runs a trained model."""
    shown = f" (default {default})" if default else ""
    text = f"a run folder, base weights of plum convert, or the word tiny{shown}"
    parser.add_argument("--checkpoint", required=default is None, default=default, help=text)
    parser.add_argument("--base", metavar="DIR", help="where the base weights of the run are now, if they have moved")
    parser.add_argument("--allow-random", action="store_true", help="run a model some of whose parts were never trained")


def check_random(loaded, allowed):
    """UserError when a part of the model is random, unless that is wanted; then one line on stderr."""
    from plum_jax.base import PARTS

    if not loaded.missing:
        return
    parts = ", ".join(PARTS[part] for part in loaded.missing)
    if not allowed:
        raise UserError(f"{loaded.path}: {parts} never trained, random; train first, or pass --allow-random")
    print(f"warning: {parts} never trained, random", file=sys.stderr)


def eval_config(saved, spec, overrides):
    """The checkpoint's config with what may differ at evaluation: a config file must be the one that was trained.

    Raises:
      UserError: the file describes another model, or an override touches the model.
    """
    if spec is None:
        config = saved.copy_and_resolve_references()
        for override in overrides:
            config_io.apply_override(config, override)
    else:
        config = config_io.load_config(spec, overrides)
    wrong = [key for key in config_io.differences(saved, config, ignore=()) if key.startswith(("model.", "tokenizer"))]
    if wrong and spec is None:
        raise UserError(f"--config.{wrong[0]}: belongs to the checkpoint and cannot be changed; leave it out")
    if wrong:
        raise UserError(f"{spec}: describes another model than the checkpoint ({wrong[0]}); leave --config out")
    return config


def question_path(folder, split):
    """The question file of a split. UserError when the folder has none."""
    from data_pipelines.partonomy.records import question_file

    path = question_file(folder, split)
    if not path.is_file():
        have = sorted(p.stem.rpartition("_")[2] for p in Path(folder).glob("partonomy_qa_pairs_*.json"))
        fix = f"it has the splits {', '.join(have)}" if have else "make one with plum data make --out DIR"
        raise UserError(f"{path}: no such question file; {fix}")
    return path


def questions_of(folder, split, types, max_images):
    """-> (question file, its questions of some types about the first images). UserError when there are none."""
    from data_pipelines.partonomy.records import read_questions

    source = question_path(folder, split)
    questions = select(read_questions(source), types, max_images, source)
    missing = next((q.image_path for q in questions if not (Path(folder) / q.image_path).is_file()), None)
    if missing is not None:
        raise UserError(f"{Path(folder) / missing}: no such image, but {source} names it; restore it or remove its questions")
    return source, questions


def evaluate_folder(
    loaded, folder, split, out, *, question_types=None, max_images=None, calibrate=False, sizes=None, log=sys.stderr
):
    """Scores a model on one split under both protocols and writes OUT/results.json and OUT/instances.jsonl.

    Args:
      loaded: LoadedModel (or inference.Model). folder, split: a PARTONOMY folder. out: created where missing.
      question_types: only these. max_images: only the first ones, in file order.
      calibrate: fit the mask scores on the result and write calibration.json into the run folder of the checkpoint.
      sizes: runner.Sizes. log: where progress goes; None for silence.

    Returns:
      The dictionary of results.json (design 1), with `summary` (M of design 1) added.

    Raises:
      UserError: broken questions, an unreadable image, an unknown question type.
    """
    from plum_jax.evaluation import calibration, partonomy, runner
    from plum_jax.evaluation.outcome import prediction_of
    from plum_jax.inference import Model

    began = time.monotonic()
    model = loaded if isinstance(loaded, Model) else Model(loaded)
    check_calibrate(model, calibrate)
    source, questions = questions_of(folder, split, question_types, max_images)
    switches = {name: switch(model.config.eval, f"eval.{name}") for name in SWITCHES}
    scorer = partonomy.Scorer(split, source, switches)
    bar = console.Progress(total=len(questions), label=f"evaluate {split}", unit="q", stream=log) if log else None
    records = []
    with bar or contextlib.nullcontext():
        done = (lambda n: bar.update(n)) if bar else None
        for outcome in runner.run(model, folder, questions, source, sizes, done):
            hw = outcome.images.original_hw[outcome.image]
            records.append(scorer.score(outcome.question, prediction_of(model, outcome), hw))
    records.sort(key=lambda r: r["instance_id"])
    results = {
        "benchmark": "partonomy",
        "split": split,
        "checkpoint": {"path": str(model.path), "sha256": model.sha256},
        "data": {"path": str(source), "sha256": sha256_of(source), "n_instances": len(questions)},
        "protocols": partonomy.protocols(records),
        "summary": partonomy.summary(records),
        "counts": {"scored": len(records), "skipped": {}},
        "settings": {
            **switches, "min_score": model.min_score, "calibrated": model.calibrated,
        },
        "seconds": round(time.monotonic() - began, 3),
        "version": __version__,
        "command": " ".join(sys.argv),
    }  # fmt: skip
    results["calibration"] = _calibrate(model, records, calibrate, calibration, partonomy)
    write_jsonl(Path(out) / "instances.jsonl", records)
    write_json(Path(out) / "results.json", results)
    return results


def check_calibrate(model, fit):
    """UserError when the curve would have no place."""
    if fit and not model.path:
        raise UserError("--calibrate: the model has no run folder to write calibration.json into; give a trained checkpoint")


def _calibrate(model, records, fit, calibration, partonomy):
    """Reports how far mask scores are from the IoU they promise; with `fit`, writes the curve that closes the gap."""
    raw, iou = partonomy.calibration_pairs(records)
    report = {"n_masks": len(raw), "error": calibration.expected_error(model.calibration, raw, iou)}
    if not fit:
        return report
    curve = calibration.fit(raw, iou, model.sha256)
    if curve is None:
        print(f"warning: {len(raw)} masks are too few to calibrate mask scores; they stay raw", file=sys.stderr)
        return report
    model.calibration = curve
    path = calibration.save(curve, model.run_folder)
    return {**report, "path": str(path), "error_after": calibration.expected_error(curve, raw, iou)}


def select(questions, types, max_images, source):
    """The questions of some types about the first images. UserError for a type that the file does not have."""
    if max_images is not None and max_images < 1:
        raise UserError(f"--max-images {max_images}: is too small; give 1 or more")
    have = sorted({q.question_type for q in questions})
    for name in types or ():
        if name not in have:
            raise UserError(f"{source}: has no questions of type {name!r}; it has {', '.join(have)}")
    questions = [q for q in questions if types is None or q.question_type in types]
    if max_images is not None:
        paths = set(list(dict.fromkeys(q.image_path for q in questions))[:max_images])
        questions = [q for q in questions if q.image_path in paths]
    if not questions:
        raise UserError(f"{source}: holds no question to score; check the split and --max-images")
    return questions


def write_jsonl(path, records):
    """One JSON object a line, under a temporary name until complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)
    os.replace(temporary, path)


def table(summary):
    """Summary M -> the lines that the command prints, in percent."""
    columns = ("part_accuracy", "object_accuracy", "span_f1", "gmiou_macro", "gmiou_micro", "gmiou_macro_published")
    show = lambda value: f"{100 * value:10.1f}" if value is not None else "         -"  # noqa: E731
    heads = ("part acc", "obj acc", "span F1", "gmIoU mac", "gmIoU mic", "published", "false mask", "n")
    lines = [f"{'question type':<28}" + "".join(f"{head:>11}" for head in heads)]
    for name, m in summary["by_question_type"].items():
        cells = [show(m[key]) for key in (*columns, "false_mask_rate")] + [f"{m['n_instances']:10d}"]
        lines.append(f"{name:<28} " + " ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
