"""Trains and evaluates the tiny model in float32 and in bfloat16, and says whether the results differ by more than noise.

    python -m tools.compare_precision --out precision --table benchmarks

Both types are trained from the same seeds, and the differences between pairs are held against how much they vary (paired t
interval). Stopped at any time, the same command goes on. OUT/TYPE-SEED are run folders; precision.md and precision.json are
written into OUT, and into --table.
"""

import argparse
import math
import os
import shutil
import statistics
from pathlib import Path

from plum_jax import cli, console
from plum_jax.errors import UserError
from plum_jax.run_record import RunRecord, versions, write_json, write_text
from tools import study_table

CONFIG, SPLIT = "configs/tiny.py", "test"
LOSSES = ("loss", "language", "tag", "shape", "bce")  # of metrics.csv: means over the last rows
LAST_ROWS = 3
TYPES = ("float32", "bfloat16")


def main(argv=None):
    parser = cli.Parser(prog="compare_precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; one that holds this comparison is continued")
    parser.add_argument("--steps", type=int, help="of every training (default: those of configs/tiny.py)")
    parser.add_argument("--seeds", default="0,1,2", help="that both types are trained from (default 0,1,2)")
    parser.add_argument("--images", type=int, default=0, help="of the test split that are evaluated (default 0: all)")
    parser.add_argument("--data", type=Path, help="dataset folder; default: OUT/data, rendered with seed 0")
    parser.add_argument("--splits", default="train=8000,val=120,test=200", help="of the data that is rendered")
    parser.add_argument("--table", type=Path, help="also write precision.md and precision.json there, such as benchmarks")
    args = parser.parse_args(argv)
    seeds = args.seeds.split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(seeds) < 2 or len(set(map(int, seeds))) < len(seeds):
        raise UserError(f"--seeds {args.seeds!r}: are not two or more different numbers with commas; give such as 0,1,2")
    if (args.steps is not None and args.steps < 1) or args.images < 0:
        raise UserError(f"--steps {args.steps}, --images {args.images}: give 1 step or more, and 0 (all) images or more")
    from plum_jax.cache import enable_compilation_cache

    console.check_out(args.out)
    enable_compilation_cache()
    console.header("compare_precision", args.out)
    with RunRecord(args.out, "compare_precision", vars(args)) as record:
        found = compare(args, [(dtype, int(seed)) for seed in seeds for dtype in TYPES], record)
    if found is None:
        return 0
    for folder in filter(None, (args.out, args.table)):
        write_json(folder / "precision.json", found)
        write_text(folder / "precision.md", page(found))
    print(f"\n{page(found)}\nWrote {args.table or args.out}: precision.md and precision.json")
    return 0


def compare(args, runs, record):
    """Trains and evaluates what is missing -> what precision.json holds, None after SIGTERM."""
    folder = args.data or _render(args.out / "data", args.splits)
    results = []
    for number, (dtype, seed) in enumerate(runs, 1):
        name = f"{dtype}-{seed}"
        print(f"\n[{number}/{len(runs)}] {name}", flush=True)
        config, work = config_of(dtype, seed, args.steps, folder), args.out / name
        asked = {"steps": config.train.steps, "images": args.images, "data": str(folder)}
        result = study_table.read(work / "result.json")
        if result.get("asked") != asked:
            with record.timing(name):
                scores = run_one(config, work, args.images)
            if scores is None:
                record.note(status="preempted")
                return None
            result = {"asked": asked, **scores}
            write_json(work / "result.json", result)
        results.append({"type": dtype, "seed": seed, "train": result["train"], "test": result["test"]})
    settings = {"steps": config.train.steps, "images": args.images, "data": str(args.data or f"rendered: {args.splits}")}
    about = {"settings": settings, "versions": versions(), "device": console.device_line(), "runs": results}
    return {**about, "rows": rows(results)}


def _render(folder, splits):
    from data_pipelines.make import Arguments, make_dataset, parse_split_sizes

    make_dataset(folder, Arguments(0, parse_split_sizes(splits)), workers=os.cpu_count() or 1)
    return folder


def config_of(dtype, seed, steps, folder):
    """configs/tiny.py with activations of a type."""
    from plum_jax.config_io import load_config

    config = load_config(CONFIG)
    config.name, config.seed, config.model.dtype, config.data.folder = f"precision_{dtype}", seed, dtype, str(folder)
    config.train.update(steps=steps or config.train.steps, save_every=50)
    config.optim.warmup_steps = min(config.optim.warmup_steps, max(1, config.train.steps // 10))
    return config


def run_one(config, work, images):
    """One training and its evaluation -> {"train": {loss: value}, "test": {metric: value}}; None after SIGTERM."""
    import jax

    from plum_jax.evaluation.folder import evaluate_folder
    from plum_jax.loading import load_model
    from plum_jax.logger import read_metrics
    from plum_jax.train import train

    if train(config, work).preempted:
        return None
    loaded = load_model(work)
    shutil.rmtree(work / "eval", ignore_errors=True)
    protocols = ("published", "middle", "end_to_end")
    results = evaluate_folder(loaded, config.data.folder, SPLIT, work / "eval", max_images=images or None, protocols=protocols)
    jax.clear_caches()  # the programs of the other type are others
    last = read_metrics(work)[-LAST_ROWS:]
    losses = {name: sum(row[name] for row in last) / len(last) for name in LOSSES if name in last[0]}
    return {"train": losses, "test": study_table.scores(results)}


def rows(runs):
    """Runs of both types from the same seeds -> [{"part", "metric", "float32": [value of each seed], "bfloat16": [...]}], of
    what all of them have."""
    found = []
    for part in ("train", "test"):
        for name in runs[0][part]:
            values = {dtype: [run[part].get(name) for run in runs if run["type"] == dtype] for dtype in TYPES}
            known = all(isinstance(x, (int, float)) and math.isfinite(x) for x in sum(values.values(), []))
            if known and name != "n_instances":
                found.append({"part": part, "metric": name, **values})
    return found


def page(found):
    """precision.md."""
    settings, noise = found["settings"], 0
    images = f"the first {settings['images']} images" if settings["images"] else "all images"
    seeds = list(dict.fromkeys(run["seed"] for run in found["runs"]))
    lines = [
        "# float32 and bfloat16", "",
        f"`configs/tiny.py`, {settings['steps']} steps from the seeds {', '.join(map(str, seeds))} in both types, evaluated on "
        f"{images} of the {SPLIT} split ({settings['data']}). Losses are means over the last {LAST_ROWS} rows of metrics.csv. "
        "Means and standard deviations over the seeds; the difference is bfloat16 minus float32 of the same seed, on average, "
        "with the 95 % interval of that mean (Student's t).", "",
        "| | float32 | bfloat16 | difference | holds zero |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in found["rows"]:
        differences = [low - full for full, low in zip(row["float32"], row["bfloat16"], strict=True)]
        mean, width = statistics.mean(differences), study_table.half_width(differences)
        noise += abs(mean) <= width
        cells = [*(study_table.spread(row[dtype]) for dtype in TYPES), f"{mean:+.3f} ± {width:.3f}", _yes(abs(mean) <= width)]
        lines.append(f"| {row['part']}: {row['metric'].replace('_', ' ')} | {' | '.join(cells)} |")
    lines += [
        "", f"{noise} of {len(found['rows'])} differences are within noise: their interval holds zero.", "",
        f"Made by `python -m tools.compare_precision --steps {settings['steps']} --images {settings['images']} "
        f"--seeds {','.join(map(str, seeds))}` on {found['device']}, jax {found['versions']['jax']}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _yes(condition):
    return "yes" if condition else "no"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="compare_precision"))
