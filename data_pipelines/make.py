"""`plum data make`: renders a synthetic PARTONOMY in the released layout (D 1.5), pictures, masks and all question types.

The result depends on the arguments alone: every example has its own random numbers, keyed by seed, split and index, so any
number of workers writes the same bytes. Everything is written to a folder beside the target, which is renamed at the end.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

from data_pipelines.processes import processes
from data_pipelines.synthetic.scenes import SPLITS, Difficulty
from plum_jax.errors import UserError

CHUNK = 50  # examples that a worker makes at a time
DEFAULT_SPLITS = "train=8000,val=200,test=300,heldout=200"
MAKERS = re.compile(r"plum data make \d+")
MAKER = "plum data make 1"  # change the number when the same arguments give other data


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a dataset is a function of. Written to dataset.json to recognise a folder that is already there."""

    seed: int
    split_sizes: tuple[tuple[str, int], ...]
    image_size: int = 128
    questions_per_image: int = 10
    difficulty: Difficulty = Difficulty()

    def as_json(self):
        return json.loads(json.dumps({"maker": MAKER, **dataclasses.asdict(self)}))


def make_dataset(out, arguments, *, workers=1, overwrite=False):
    """Writes the dataset folder and returns the content of its dataset.json. A folder with the same arguments is reused.

    Raises:
      UserError: `out` cannot be written, is a file, a folder of other things, or a dataset of other arguments without
        `overwrite`.
    """
    out = Path(out).resolve()
    try:
        existing = _existing(out, arguments, overwrite)
        _remove_stale(out)
        if existing is not None:
            return existing
        out.parent.mkdir(parents=True, exist_ok=True)
        building = _temporary(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}: {error.filename}); give another --out") from error
    try:
        building.chmod(0o755)
        dataset = _build(building, arguments, workers)
        if out.exists():
            old = _temporary(out)
            os.replace(out, old / "replaced")
            os.replace(building, out)
            shutil.rmtree(old)
        else:
            os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return dataset


def _temporary(out):
    """A new folder .NAME.HOST-PID.xxxxxxxx beside `out`, which says who is writing it."""
    return Path(tempfile.mkdtemp(prefix=f".{out.name}.{socket.gethostname()}-{os.getpid()}.", dir=out.parent))


def _remove_stale(out):
    """Removes what a killed run for the same `out` left beside it. Other machines' folders stay: nobody can ask."""
    if not out.parent.is_dir():
        return
    pattern = re.compile(rf"{re.escape(f'.{out.name}.{socket.gethostname()}-')}(?P<pid>\d+)\.[a-z0-9_]{{8}}")
    for path in sorted(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink() and not _alive(int(match["pid"])):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid):
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def read_dataset(folder):
    """dataset.json of a folder that this command wrote, else None."""
    try:
        dataset = json.loads((Path(folder) / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    arguments = dataset.get("arguments") if isinstance(dataset, dict) else None
    maker = arguments.get("maker") if isinstance(arguments, dict) else None
    return dataset if isinstance(maker, str) and MAKERS.fullmatch(maker) else None


def _existing(out, arguments, overwrite):
    """The dataset that is already in `out`, None when it has to be made."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f"{out}: is a file; give --out a folder")
    if not any(out.iterdir()):
        return None
    dataset = read_dataset(out)
    if dataset is None:
        raise UserError(f"{out}: holds other files, which plum data make will not replace; give --out a new or empty folder")
    if dataset["arguments"] == arguments.as_json() and not overwrite:
        if not _is_complete(out, dataset, arguments):
            raise UserError(f"{out}: holds an incomplete or edited dataset; give another --out, or --overwrite to replace it")
        return dataset
    if not overwrite:
        raise UserError(f"{out}: holds a dataset made with other arguments; give another --out, or --overwrite to replace it")
    return None


def _is_complete(out, dataset, arguments):
    """Whether dataset.json counts every split and every question file is there."""
    splits = dataset.get("splits")
    return isinstance(splits, dict) and all(
        isinstance(splits.get(split), dict)
        and {"images", "questions"} <= splits[split].keys()
        and (out / f"partonomy_qa_pairs_{split}.json").is_file()
        for split, _ in arguments.split_sizes
    )


def _build(folder, arguments, workers):
    """Pictures first, then questions: wrong answers depend on which parts occur together in the whole dataset."""
    from data_pipelines.partonomy.questions import QuestionGenerator
    from data_pipelines.partonomy.samplers import ObjectSampler, PartSampler
    from data_pipelines.synthetic.objects import INSTANCE_GRAPH, PART_GRAPH

    chunks = [(s, i, min(i + CHUNK, n)) for s, n in arguments.split_sizes for i in range(0, n, CHUNK)]
    with processes(workers) as run:
        made = _collect(run, make_pictures, [(arguments, folder, *chunk) for chunk in chunks], arguments, "pictures")
        seen = [i["parts"] for split in made if split != "heldout" or len(made) == 1 for i in made[split]]
        generator = QuestionGenerator(PART_GRAPH, PartSampler(seen), ObjectSampler(INSTANCE_GRAPH, PART_GRAPH))
        jobs = [(arguments, generator, made[split][start:stop], split, start, stop) for split, start, stop in chunks]
        asked = _collect(run, make_questions, jobs, arguments, "questions")
    lines = {split: [line for image in images for line in image] for split, images in asked.items()}
    for split, texts in lines.items():
        (folder / f"partonomy_qa_pairs_{split}.json").write_text("[\n" + ",\n".join(texts) + "\n]\n", encoding="utf-8")
    dataset = describe(arguments, {s: {"images": len(made[s]), "questions": len(lines[s])} for s in made})
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1) + "\n", encoding="utf-8")
    return dataset


def _collect(run, function, jobs, arguments, label):
    """{split: results of function(job), one per image, in order}, with progress. A job ends in (split, start, stop)."""
    from plum_jax.console import Progress

    results = {}
    with Progress(total=sum(n for _, n in arguments.split_sizes), label=label, unit="image") as bar:
        for (*_, split, start, stop), result in zip(jobs, run(function, jobs), strict=True):
            results.setdefault(split, []).extend(result)
            bar.update(stop - start)
    return results


def describe(arguments, counts):
    """Content of dataset.json."""
    from data_pipelines.synthetic.instances import HELD_OUT
    from data_pipelines.synthetic.objects import INSTANCE_GRAPH, PART_GRAPH, PARTS

    return {
        "name": "synthetic PARTONOMY",
        "seed": arguments.seed,
        "parts": list(PARTS),
        "objects": sorted(PART_GRAPH),
        "splits": counts,
        "part_graph": PART_GRAPH,
        "instance_graph": INSTANCE_GRAPH,
        "held_out": {label: list(pair) for label, pair in HELD_OUT.items()},
        "arguments": arguments.as_json(),
    }


def make_pictures(job):
    """Renders the examples [start, stop) of a split into folder/images/split -> [{"image_path", "label", "parts", "masks"}]."""
    from data_pipelines.synthetic import instances as examples

    arguments, folder, split, start, stop = job
    directory = folder / "images" / split
    directory.mkdir(parents=True, exist_ok=True)
    instances = []
    for index in range(start, stop):
        label, picture, masks = examples.make_instance(arguments.seed, split, index, arguments.image_size, arguments.difficulty)
        rng = examples.generator(arguments.seed, split, index, examples.PICTURE_FILE)
        path = examples.save_picture(picture, directory / f"{index:06d}", rng)
        instance = {"image_path": path.relative_to(folder).as_posix(), "label": label, "parts": sorted(masks)}
        instances.append({**instance, "masks": examples.encode_masks(masks)})
    return instances


def make_questions(job):
    """-> for every instance the JSON texts of its questions, in the order of QUESTION_TYPES."""
    from data_pipelines.synthetic import instances as examples

    arguments, generator, instances, split, start, _ = job
    texts = []
    for index, instance in enumerate(instances, start):
        rng = examples.generator(arguments.seed, split, index, examples.QUESTIONS)
        head = json.dumps({"image_path": instance["image_path"], "image_label": instance["label"]})
        lines = []
        for question_type in _types(arguments.questions_per_image, rng):
            question = generator.generate(instance["label"], instance["parts"], question_type, rng)
            if question is not None:  # the masks are the same text for all questions about an image
                lines.append(f'{head[:-1]}, {json.dumps(question)[1:-1]}, "segmentations": {instance["masks"]}}}')
        texts.append(lines)
    return texts


def _types(count, rng):
    """`count` question types in the order of QUESTION_TYPES: identification with label, and others at random."""
    from data_pipelines.partonomy.records import QUESTION_TYPES

    first = "identification_with_label"
    others = [t for t in QUESTION_TYPES if t != first]
    chosen = {first, *(others[k] for k in rng.permutation(len(others))[: count - 1])}
    return [t for t in QUESTION_TYPES if t in chosen]


def parse_split_sizes(text):
    """'train=80,val=20' -> (("train", 80), ("val", 20)), in the order of SPLITS."""
    sizes = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        if name not in SPLITS or name in sizes or not number.isdecimal() or int(number) < 1:
            raise UserError(
                f"--split-sizes: {item!r} in {text!r}; write name=images with different names of {', '.join(SPLITS)}"
            )
        sizes[name] = int(number)
    return tuple((name, sizes[name]) for name in SPLITS if name in sizes)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="plum data make", description="Render a synthetic PARTONOMY: images, masks, questions."
    )
    parser.add_argument("--out", required=True, help="folder to write; must be new, empty, or a dataset of the same arguments")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same data (default 0)")
    parser.add_argument("--split-sizes", default=DEFAULT_SPLITS, help=f"images per split (default {DEFAULT_SPLITS})")
    parser.add_argument("--image-size", type=int, default=128, help="longer side in pixels, 64 to 1024 (default 128)")
    parser.add_argument("--questions-per-image", type=int, default=10, help="question types per image, 1 to 10 (default 10)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that was made with other arguments")
    args = parser.parse_args(argv)
    for name, low, high in (
        ("seed", 0, 2**63 - 1),
        ("image_size", 64, 1024),
        ("questions_per_image", 1, 10),
        ("workers", 1, 256),
    ):
        if not low <= getattr(args, name) <= high:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not between {low} and {high}; give another")

    from plum_jax.console import check_out, duration, header

    check_out(args.out)
    header("data make", args.out, device=False)
    began = time.monotonic()
    arguments = Arguments(args.seed, parse_split_sizes(args.split_sizes), args.image_size, args.questions_per_image)
    reused = not args.overwrite and read_dataset(args.out) is not None
    dataset = make_dataset(args.out, arguments, workers=args.workers, overwrite=args.overwrite)
    counts = ", ".join(f"{name} {n['images']} images, {n['questions']} questions" for name, n in dataset["splits"].items())
    if reused:
        print(f"{args.out} is complete already, made with the same arguments: {counts}.")
    else:
        print(f"Wrote {args.out} in {duration(time.monotonic() - began)}: {counts}.")
    print(f"Next: plum train --config=configs/tiny.py --config.data.folder={args.out} --workdir=runs/tiny")
    return 0


if __name__ == "__main__":
    from plum_jax.cli import run

    raise SystemExit(run(main))
