"""Trains and evaluates the tiny model in float32 and in bfloat16, and says whether the results differ by more than noise.

    python -m tools.compare_precision --out precision --table benchmarks

Noise is what another seed changes: float32 is trained with two seeds, bfloat16 with the first of them. Stopped at any time, the
same command goes on. OUT/TYPE-SEED are run folders; precision.md and precision.json are written into OUT, and into --table.
"""

import argparse
import math
import os
import shutil
from pathlib import Path

from plum_jax import cli, console
from plum_jax.errors import UserError
from plum_jax.run_record import RunRecord, versions, write_json, write_text
from tools import study_table

CONFIG, SPLIT = "configs/tiny.py", "test"
LOSSES = ("loss", "language", "tag", "shape", "bce")  # of metrics.csv: means over the last rows
LAST_ROWS = 3


def main(argv=None):
    parser = cli.Parser(prog="compare_precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; one that holds this comparison is continued")
    parser.add_argument("--steps", type=int, help="of every training (default: those of configs/tiny.py)")
    parser.add_argument("--seeds", default="0,1", help="two seeds: of both types, and of float32 alone (default 0,1)")
    parser.add_argument("--images", type=int, default=0, help="of the test split that are evaluated (default 0: all)")
    parser.add_argument("--data", type=Path, help="dataset folder; default: OUT/data, rendered with seed 0")
    parser.add_argument("--splits", default="train=8000,val=120,test=200", help="of the data that is rendered")
    parser.add_argument("--table", type=Path, help="also write precision.md and precision.json there, such as benchmarks")
    args = parser.parse_args(argv)
    seeds = args.seeds.split(",")
    if len(seeds) != 2 or not all(seed.isdecimal() for seed in seeds) or seeds[0] == seeds[1]:
        raise UserError(f"--seeds {args.seeds!r}: are not two different numbers with a comma; give such as 0,1")
    if (args.steps is not None and args.steps < 1) or args.images < 0:
        raise UserError(f"--steps {args.steps}, --images {args.images}: give 1 step or more, and 0 (all) images or more")
    from plum_jax.cache import enable_compilation_cache

    console.check_out(args.out)
    enable_compilation_cache()
    console.header("compare_precision", args.out)
    with RunRecord(args.out, "compare_precision", vars(args)) as record:
        found = compare(args, [("float32", seeds[0]), ("float32", seeds[1]), ("bfloat16", seeds[0])], record)
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
    results = {}
    for number, (dtype, seed) in enumerate(runs, 1):
        name = f"{dtype}-{seed}"
        print(f"\n[{number}/{len(runs)}] {name}", flush=True)
        config, work = config_of(dtype, int(seed), args.steps, folder), args.out / name
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
        results[name] = {key: value for key, value in result.items() if key != "asked"}
    settings = {"steps": config.train.steps, "images": args.images, "data": str(args.data or f"rendered: {args.splits}")}
    about = {"settings": settings, "versions": versions(), "device": console.device_line(), "runs": results}
    return {**about, "rows": rows(*results.values())}


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


def rows(first, other, low):
    """[{"part", "metric", "float32", "other_seed", "bfloat16"}]: float32, float32 with another seed, bfloat16."""
    found = []
    for part in ("train", "test"):
        for name, value in first[part].items():
            values = [value, other[part].get(name), low[part].get(name)]
            if all(isinstance(x, (int, float)) and math.isfinite(x) for x in values) and name != "n_instances":
                found.append(
                    {"part": part, "metric": name, **dict(zip(("float32", "other_seed", "bfloat16"), values, strict=True))}
                )
    return found


def page(found):
    """precision.md."""
    settings = found["settings"]
    images = f"the first {settings['images']} images" if settings["images"] else "all images"
    lines = [
        "# float32 and bfloat16", "",
        f"`configs/tiny.py`, {settings['steps']} steps, evaluated on {images} of the {SPLIT} split ({settings['data']}). "
        "*another seed* is float32 once more: what changes without a change. Losses are means over the last "
        f"{LAST_ROWS} rows of metrics.csv.", "",
        "| | float32 | another seed | bfloat16 | difference of the seed | difference of the type |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in found["rows"]:
        values = [row[key] for key in ("float32", "other_seed", "bfloat16")]
        differences = [values[1] - values[0], values[2] - values[0]]
        cells = [f"{x:.3f}" for x in values] + [f"{x:+.3f}" for x in differences]
        lines.append(f"| {row['part']}: {row['metric'].replace('_', ' ')} | {' | '.join(cells)} |")
    share = sum(abs(row["bfloat16"] - row["float32"]) <= abs(row["other_seed"] - row["float32"]) for row in found["rows"])
    lines += [
        "", f"The type changes {share} of {len(found['rows'])} numbers by no more than the seed does.", "",
        f"Made by `python -m tools.compare_precision --steps {settings['steps']} --images {settings['images']}` on "
        f"{found['device']}, jax {found['versions']['jax']}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="compare_precision"))
