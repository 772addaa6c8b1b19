"""`plum quickstart`: synthetic data -> train the tiny model -> evaluate before and after -> predict -> report.

Every stage leaves its result in the output folder and is skipped when it is there already: the same command goes on where it
stopped.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
from pathlib import Path

from plum_jax.errors import UserError

CONFIG = "configs/tiny.py"
SPLITS, FAST_SPLITS = "train=8000,val=120,test=200", "train=1600,val=60,test=80"
FAST_STEPS = 220
PROMPT = "What visible parts does the object in the image have?"
N_PREDICTIONS = 8
HIGHER = ("span_f1", "gmiou_macro", "gmiou_micro", "gmiou_macro_published", "part_accuracy", "object_accuracy")
TABLE = (
    ("span_f1", "phrases found (span F1)"),
    ("gmiou_macro", "masks, end to end, per question"),
    ("gmiou_micro", "masks, end to end, per mask"),
    ("gmiou_macro_published", "masks, published protocol"),
    ("part_accuracy", "right list of parts (chance 0.20)"),
    ("object_accuracy", "right object, all types (chance 0.20)"),
    ("false_mask_rate", "false masks"),
)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="plum quickstart", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder to write (default: quickstart)")
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the model (default 0)")
    parser.add_argument("--data", type=Path, help="use this dataset folder instead of rendering one")
    parser.add_argument("--steps", type=int, help="training steps (default: those of configs/tiny.py)")
    parser.add_argument("--fast", action="store_true", help="fewer images and steps: minutes instead of a quarter of an hour")
    parser.add_argument("--require-improvement", action="store_true", help="fail when a metric is not better than untrained")
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps: {args.steps} is not a positive number; give 1 or more")

    from plum_jax.config_io import load_config
    from plum_jax.console import check_out

    check_out(args.out)
    config = load_config(CONFIG)
    config.seed = args.seed
    config.train.steps = args.steps or (FAST_STEPS if args.fast else config.train.steps)
    results = quickstart(args.out, config, data=args.data, split_sizes=FAST_SPLITS if args.fast else SPLITS)
    if results is None:
        return 0
    failed = not_improved(results["before"], results["after"])
    if args.require_improvement and failed:
        print(f"Not better than the untrained model: {', '.join(failed)}")
        return 1
    return 0


def leave(out, run, number):
    """A signal that ends training when there is nothing to save."""
    from plum_jax.preemption import leave_run
    from plum_jax.run_record import mark_stopped

    leave_run(run, number)
    mark_stopped(out, "preempted" if number == signal.SIGTERM else "stopped")


def quickstart(out, config, *, data=None, split_sizes=SPLITS):
    """The stages, one after the other.

    Args:
      out: folder. config: ConfigDict; its data folder is set here. data: dataset folder, rendered when None.

    Returns:
      What results.json holds, or None when training was preempted.
    """
    from plum_jax import checkpoint, console, loading
    from plum_jax.cache import enable_compilation_cache
    from plum_jax.preemption import Preemption
    from plum_jax.report import write_report
    from plum_jax.run_record import RunRecord, write_json
    from plum_jax.train import train

    out.mkdir(parents=True, exist_ok=True)
    enable_compilation_cache()
    console.header("quickstart", out)
    run = out / "run"
    with RunRecord(out, "quickstart", config) as record:
        with stage(record, 1, "data"):
            config.data.folder = str(data or make_data(out / "data", config.seed, split_sizes))
        with stage(record, 2, "train"), Preemption(functools.partial(leave, out, run)) as preemption:
            if train(config, run, preemption).preempted:
                record.note(status="preempted")
                return None
        with stage(record, 3, "evaluate"):
            before = evaluate(loading.initial_model(config), config, run, "test")
            trained = loading.load_model(run)
            evaluate(trained, config, run, "val", calibrate=True)
            after = evaluate(trained, config, run, "test")
            checkpoint.install_tiny(run)
        with stage(record, 4, "predict"):
            predict_some(trained, config, out / "predictions")
        with stage(record, 5, "report"):
            results = {
                "config": config.name,
                "seed": config.seed,
                "train": {"steps": trained.step, **training_time(run, config)},
                "before": before,
                "after": after,
                "report": "report.html",
            }
            write_json(out / "results.json", results)
            facts = write_report(out, out / "report.html")
    print(f"\nIdentification with label, {after['n_instances']} questions of the test split:\n{table(before, after)}\n")
    print(f"Wrote {out}: results.json, run/, predictions/, and the model as checkpoint `tiny`")
    print(f"Report: {facts['report']} ({console.size(facts['bytes'])}, open in a browser)")
    print(f'Next: plum predict YOUR_IMAGES --checkpoint=tiny --prompt="{PROMPT}" --out={out}/yours')
    return results


@contextlib.contextmanager
def stage(record, number, name):
    """Says which stage begins, and notes in run.json how long it took."""
    print(f"\n[{number}/5] {name}", flush=True)
    with record.timing(name):
        yield


def make_data(folder, seed, split_sizes):
    """Renders the dataset, or finds it there already."""
    from data_pipelines.make import Arguments, make_dataset, parse_split_sizes

    make_dataset(folder, Arguments(seed, parse_split_sizes(split_sizes)), workers=os.cpu_count() or 1)
    return folder


def evaluate(loaded, config, run, split, *, calibrate=False):
    """M of design 1 for a model on a split, from run/eval/STEP/SPLIT when the same model was scored there on the same file."""
    from plum_jax.evaluation.folder import evaluate_folder
    from plum_jax.evaluation.question_set import question_path
    from plum_jax.run_record import sha256_of

    out = run / "eval" / str(loaded.step) / split
    wanted = {"checkpoint": loaded.sha256, "data": sha256_of(question_path(config.data.folder, split))}
    results = _read_json(out / "results.json")
    found = {name: results.get(name, {}).get("sha256") for name in wanted}
    if found == wanted and (out / "instances.jsonl").is_file():
        print(f"{out} is complete already")
    else:
        results = evaluate_folder(loaded, config.data.folder, split, out, calibrate=calibrate, changed="restart")
    return results["summary"]


def predict_some(loaded, config, out):
    """Answers PROMPT about the first images of the test split, unless this model did so already."""
    from data_pipelines.partonomy.records import read_questions
    from plum_jax.evaluation.question_set import question_path
    from plum_jax.inference import Model
    from plum_jax.predict import predict

    written = _read_json(out / "predictions.json").get("settings", {})
    if (written.get("checkpoint"), written.get("prompt")) == (loaded.sha256, PROMPT):
        print(f"{out} is complete already")
        return
    shutil.rmtree(out, ignore_errors=True)
    paths = dict.fromkeys(q.image_path for q in read_questions(question_path(config.data.folder, "test")))
    predict(Model(loaded), [Path(config.data.folder) / path for path in list(paths)[:N_PREDICTIONS]], PROMPT, out)


def training_time(run, config):
    """{"seconds", "images_per_second"} of all updates of a run folder, whatever number of starts they took; no compilation."""
    from plum_jax.logger import read_metrics

    seconds, step = 0.0, 0
    for row in read_metrics(run):
        seconds += (row["step"] - step) * config.data.global_batch / row["images_per_second"]
        step = row["step"]
    return {"seconds": round(seconds, 1), "images_per_second": round(step * config.data.global_batch / max(seconds, 1e-9), 1)}


def _read_json(path):
    """{} for a file that is missing or was cut short: its stage is done again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def not_improved(before, after):
    """Names of the metrics that are not better after training. A false-mask rate may not rise, unless there were no masks."""
    failed = [name for name in HIGHER if after[name] is None or after[name] <= (before[name] or 0.0)]
    false_before, false_after = before["false_mask_rate"], after["false_mask_rate"]
    if false_before is not None and false_after is not None and false_after > false_before:
        failed.append("false_mask_rate")
    return failed


def table(before, after):
    """The two models side by side, as text."""
    width = max(len(name) for _, name in TABLE)
    lines = [f"  {'':<{width}}  untrained  trained"]
    lines += [f"  {name:<{width}}  {_number(before[key]):>9}  {_number(after[key]):>7}" for key, name in TABLE]
    return "\n".join(lines)


def _number(value):
    return "-" if value is None else f"{value:.3f}"
