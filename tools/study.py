"""A study of PLUM's design on the synthetic data, in one command: trains and evaluates five variants of the tiny model.

    python -m tools.study --out study                      # 600 steps, 5 variants x 3 seeds: some hours on two cores
    python -m tools.study --out study300 --steps 300 --table benchmarks  # half of that: the committed table

The variants differ in one thing each from the first: feedback on, tagged spans, KL weight 0.1. Stopped at any time, the same
command goes on. OUT/runs/VARIANT-SEED are run folders; OUT/study.json and OUT/study.md are written after every run.
"""

import argparse
import os
import shutil
import time
from pathlib import Path

from plum_jax import cli, console
from plum_jax.errors import UserError
from plum_jax.run_record import RunRecord, versions, write_json, write_text
from tools import study_table

CONFIG, SPLIT = "configs/tiny.py", "test"
VARIANTS = {  # name -> what it changes in the config
    "base": {},
    "no_feedback": {"model.feedback": False},
    "seg_token": {"model.grounding": "seg_token", "model.llama.vocab_size": 1025, "model.llama.vocab_multiple": 1},
    "kl_0": {"loss.reference": 0.0},
    "kl_1": {"loss.reference": 1.0},
}
COMMON = {"loss.reference": 0.1, "data.max_tokens": 80}  # 8 more than in configs/tiny.py: room for <seg>, the same for all


def main(argv=None):
    parser = cli.Parser(prog="study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; one that holds this study is continued")
    parser.add_argument("--steps", type=int, help="of every training (default: those of configs/tiny.py)")
    parser.add_argument("--images", type=int, default=0, help="of the test split that are evaluated (default 0: all)")
    parser.add_argument("--seeds", default="0,1,2", help="of the model and the order of the data (default 0,1,2)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"default: {','.join(VARIANTS)}")
    parser.add_argument("--data", type=Path, help="dataset folder; default: OUT/data, rendered with seed 0")
    parser.add_argument("--splits", default="train=8000,val=120,test=200", help="of the data that is rendered")
    parser.add_argument("--table", type=Path, help="also write study.md and study.json there, such as benchmarks")
    args = parser.parse_args(argv)
    settings = check(args)
    from plum_jax.cache import enable_compilation_cache

    console.check_out(args.out)
    enable_compilation_cache()
    console.header("study", args.out)
    with RunRecord(args.out, "study", settings) as record:
        folder = args.data or render(args.out / "data", args.splits)
        study = run_all(args.out, settings, str(folder), record)
        if study is None:
            record.note(status="preempted")
            return 0
    for name in ("study.md", "study.json") if args.table else ():
        args.table.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.out / name, args.table / name)
    print(f"\n{study_table.table(study)}\n")
    print(f"Wrote {args.table or args.out}: study.md and study.json")
    print(f"Next: plum report {args.out / 'runs' / run_name(settings['variants'][0], settings['seeds'][0])}")
    return 0


def check(args):
    """Arguments -> the settings that decide what a run gives. UserError when they are wrong, or not those of OUT."""
    from plum_jax.config_io import load_config

    variants = args.variants.split(",")
    wrong = [name for name in variants if name not in VARIANTS]
    if wrong:
        raise UserError(f"--variants {wrong[0]!r}: is not known; use {', '.join(VARIANTS)}")
    if not all(word.isdecimal() for word in args.seeds.split(",")):
        raise UserError(f"--seeds {args.seeds!r}: are not numbers with commas; give such as 0,1,2")
    config = load_config(CONFIG)
    steps = config.train.steps if args.steps is None else args.steps
    if steps < 1 or args.images < 0:
        raise UserError(f"--steps {steps}, --images {args.images}: give 1 step or more, and 0 (all) images or more")
    seeds = [int(word) for word in args.seeds.split(",")]
    settings = {"steps": steps, "images": args.images, "data": str(args.data) if args.data else f"rendered: {args.splits}"}
    found = study_table.read(args.out / "study.json").get("settings", {})
    other = [key for key in settings if key in found and found[key] != settings[key]]
    if other:
        key = other[0]
        raise UserError(f"{args.out}: holds a study with {key} {found[key]}, not {settings[key]}; give another --out")
    return {**settings, "steps_of_config": config.train.steps, "seeds": seeds, "variants": variants}


def render(folder, splits):
    from data_pipelines.make import Arguments, make_dataset, parse_split_sizes

    make_dataset(folder, Arguments(0, parse_split_sizes(splits)), workers=os.cpu_count() or 1)
    return folder


def run_all(out, settings, folder, record):
    """Trains and evaluates what is missing -> what study.json holds, None after SIGTERM."""
    names = [(variant, seed) for seed in settings["seeds"] for variant in settings["variants"]]
    study, times = {"settings": settings, "versions": versions(), "device": console.device_line(), "runs": []}, []
    for number, (variant, seed) in enumerate(names, 1):
        left = f"; about {console.duration(sum(times) / len(times) * (len(names) - number + 1))} left" if times else ""
        print(f"\n[{number}/{len(names)}] {variant}, seed {seed}{left}", flush=True)
        work = out / "runs" / run_name(variant, seed)
        config = config_of(variant, seed, settings["steps"], folder)
        asked = {"settings": {key: settings[key] for key in ("steps", "images", "data")}, "variant": variant, "seed": seed}
        result, began = study_table.read(work / "result.json"), time.monotonic()
        if result.get("asked") != asked:
            with record.timing(f"{variant}-{seed}"):
                scores = run_one(config, work, settings["images"])
            if scores is None:
                return None
            result = {"asked": asked, **scores}
            write_json(work / "result.json", result)
            times.append(time.monotonic() - began)
        study["runs"].append({"variant": variant, "seed": seed, **{k: v for k, v in result.items() if k != "asked"}})
        write_json(out / "study.json", study)
        write_text(out / "study.md", study_table.page(study))
    return study


def run_name(variant, seed):
    return f"{variant}-{seed}"


def config_of(variant, seed, steps, folder):
    """configs/tiny.py with what a variant changes."""
    from plum_jax.config_io import load_config

    config = load_config(CONFIG)
    for key, value in {**COMMON, **VARIANTS[variant], "seed": seed, "train.steps": steps, "data.folder": folder}.items():
        part, _, name = key.rpartition(".")
        place = config
        for word in filter(None, part.split(".")):
            place = place[word]
        place[name] = value
    config.name = f"study_{variant}"
    config.train.save_every = 50  # what a kill costs at most
    config.optim.warmup_steps = min(config.optim.warmup_steps, max(1, steps // 10))
    return config


def run_one(config, work, images):
    """One training and its evaluation -> {"parameters", "train_seconds", "test": {metric: value}}; None after SIGTERM."""
    import jax

    from plum_jax.evaluation.folder import evaluate_folder
    from plum_jax.loading import load_model
    from plum_jax.models.plum import PlumConfig, build
    from plum_jax.params import count
    from plum_jax.quickstart import training_time
    from plum_jax.train import train

    if train(config, work).preempted:
        return None
    loaded = load_model(work)
    out = work / "eval" / str(loaded.step) / SPLIT
    results = evaluate_folder(
        loaded, config.data.folder, SPLIT, out, max_images=images or None, protocols=("published", "middle", "end_to_end"),
        changed="restart",
    )  # fmt: skip
    jax.clear_caches()  # the programs of the next variant are others
    return {
        "parameters": count(build(PlumConfig.from_dict(config.model))[1]),
        "train_seconds": training_time(work, config)["seconds"],
        "test": study_table.scores(results),
    }


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="study"))
