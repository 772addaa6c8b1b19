"""`plum data questions`: annotations of parts -> a PARTONOMY folder with questions of all types (docs/questions.md)."""

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

from plum_jax.errors import UserError

MAKER = "plum data questions 1"  # change the number when the same arguments give other data
FORMATS = ("paco_lvis", "pascal_part", "partimagenet", "core", "coco", "descriptor")
DEFAULT_SPLITS = "train=0.8,val=0.2"


def main(argv=None):
    from plum_jax.console import check_out, duration, header

    arguments = _parser().parse_args(argv)
    sources, plan = _check(arguments)
    check_out(arguments.out)
    stream = sys.stderr if arguments.json else sys.stdout
    header("data questions", arguments.out, device=False, stream=stream)
    began = time.monotonic()
    dataset, reused = make_questions(arguments, sources, plan)
    report = dataset["report"]
    if arguments.json:
        print(json.dumps({"folder": arguments.out, "reused": reused, **report}, indent=1, ensure_ascii=False))
        return 0
    print(_text(report))
    if reused:
        print(f"{arguments.out} is complete already, made from the same files with the same arguments.")
    else:
        print(f"Wrote {arguments.out} in {duration(time.monotonic() - began)}.")
    print(f"Next: plum data check {arguments.out}")
    return 0


def _parser():
    from data_pipelines.partonomy.records import QUESTION_TYPES

    parser = argparse.ArgumentParser(
        prog="plum data questions",
        description="Convert annotations of parts, split them by image, and ask every type of PARTONOMY question about them.",
    )
    add = parser.add_argument
    add("source", nargs="+", help="annotation file (core: folder); several as NAME=FILE keep the splits of the source")
    add("--format", required=True, choices=FORMATS, help="what the source is")
    add("--images", help="folder that its image paths start from; {split} stands for NAME (core: default SOURCE/images)")
    add("--out", required=True, help="folder to write")
    add("--hierarchy", metavar="FILE", help="coco: YAML {object: [part categories]}; default: categories are named object:part")
    add("--synonyms", metavar="FILE", help="YAML list of groups of part names that mean the same")
    add("--object-names", metavar="FILE", help="YAML or JSON {object label: name to use}")
    add("--part-names", metavar="FILE", help="YAML or JSON {part name: name to use}")
    add("--types", default=",".join(QUESTION_TYPES), metavar="A,B", help="question types (default: all ten)")
    add("--splits", metavar="NAME=SHARE,...", help=f"shares of the images (default {DEFAULT_SPLITS})")
    add("--exclude", metavar="FILE", help="names or COCO ids of images not to use, one a line: those of an evaluation set")
    add("--map", action="append", default=[], metavar="OLD=NEW", help="descriptor: replace the start of image paths")
    add("--ambiguous", choices=("keep", "draw", "drop"), default="keep",
        help="several objects of a kind in an image: note a highlight_box (default), draw it, or do not ask")  # fmt: skip
    add("--mismatched-masks", choices=("drop", "nearest", "error"), default="drop", help="mask of another size than its image")
    add("--part-graph", choices=("seen", "given"), default="seen", help="parts of an object: seen in the data, or also given")
    add("--mutations-max", type=int, choices=(2, 3), default=3, help="most changes in a wrong answer (released: 2)")
    add("--seed", type=int, default=0, help="of splits and questions (default 0)")
    add("--link", action="store_true", help="symbolic links to the images instead of copies")
    add("--save-descriptor", metavar="FILE", help="also write the converted annotations as a part dataset descriptor")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    add("--overwrite", action="store_true", help="replace questions that were made from other things")
    add("--json", action="store_true", help="print the report as one JSON object")
    return parser


def _check(arguments):
    """Wrong use before any file is read -> ({split or "": path}, Plan)."""
    from data_pipelines.partonomy.build import Plan
    from data_pipelines.partonomy.records import QUESTION_TYPES
    from data_pipelines.partonomy.splits import parse_splits

    if not 1 <= arguments.workers <= 256:
        raise UserError(f"--workers: {arguments.workers} is not between 1 and 256; give another")
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed: {arguments.seed} is not between 0 and 2^63 - 1; give another")
    if arguments.hierarchy and arguments.format != "coco":
        raise UserError(f"--hierarchy is for --format coco; {arguments.format} says itself what is part of what")
    if arguments.map and arguments.format != "descriptor":
        raise UserError("--map is for --format descriptor; for other sources --images says where the images are")
    types = tuple(arguments.types.split(","))
    unknown = [kind for kind in types if kind not in QUESTION_TYPES]
    if unknown:
        raise UserError(f"--types: {unknown[0]!r} is no question type; use {', '.join(QUESTION_TYPES)}")
    sources = _sources(arguments.source)
    if "" not in sources and arguments.splits:
        raise UserError("--splits: the sources are splits already; give one SOURCE without NAME=, or leave --splits out")
    shares = tuple(parse_splits(arguments.splits or DEFAULT_SPLITS).items()) if "" in sources else None
    if not arguments.images and arguments.format != "core":
        raise UserError("--images: give the folder that the image paths of the source start from")
    types = tuple(kind for kind in QUESTION_TYPES if kind in types)
    return sources, Plan(
        shares, types, arguments.seed, arguments.mutations_max, arguments.ambiguous, arguments.mismatched_masks,
        arguments.part_graph, arguments.link,
    )  # fmt: skip


def _sources(texts):
    """One path -> {"": path}, several NAME=path -> {name: path}, in order."""
    sources = {}
    for text in texts:
        match = re.fullmatch(r"([A-Za-z0-9-]+)=(.+)", text) if not os.path.exists(text) else None
        name, path = match.groups() if match else ("", text)
        if name in sources or ("" in (*sources, name) and len(texts) > 1):
            raise UserError(f"SOURCE: {text!r} is one of several; write each as NAME=FILE with different names")
        if not os.path.exists(path):
            raise UserError(f"{path}: no such file or folder; give the annotations of the source")
        sources[name] = path
    return sources


def make_questions(arguments, sources, plan):
    """-> (content of dataset.json, whether it was there already)."""
    from data_pipelines.partonomy.resume import find_existing, resumable_folder

    files = {name: getattr(arguments, name) for name in ("hierarchy", "synonyms", "object_names", "part_names", "exclude")}
    inputs = {
        "maker": MAKER,
        "format": arguments.format,
        "images": {name: _images(arguments, name, path) for name, path in sources.items()},
        "map": arguments.map,
        "sources": {name: {"path": path, "sha256": _digest(path)} for name, path in sources.items()},
        "files": {name: {"path": path, "sha256": _digest(path)} for name, path in files.items() if path},
        "plan": dataclasses.asdict(plan),
    }
    fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    existing = find_existing(arguments.out, MAKER, fingerprint, arguments.overwrite)
    if existing is not None:
        if arguments.save_descriptor:
            _save(arguments.save_descriptor, _convert(arguments, sources)[0])
        return existing, True
    with resumable_folder(arguments.out, fingerprint) as (work, data):
        dataset = _make(arguments, sources, plan, work, data)
        dataset["arguments"] = {**inputs, "fingerprint": fingerprint}
        for name, value in (("dataset.json", dataset), ("report.json", dataset["report"])):
            (data / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return dataset, False


def _digest(path):
    """SHA-256 of a file; of a folder that of names, sizes and times, as it may hold many images."""
    path, digest = Path(path), hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            status = file.stat()
            digest.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error


def _images(arguments, split, path):
    folder = arguments.images.replace("{split}", split) if arguments.images else os.path.join(path, "images")
    return os.path.abspath(folder)


def _convert(arguments, sources):
    """-> ({split: Descriptor}, Counter of what was left out)."""
    from data_pipelines.partonomy.categories import read_hierarchy
    from data_pipelines.partonomy.sources import convert

    hierarchy = read_hierarchy(arguments.hierarchy) if arguments.hierarchy else None
    converted, counts = {}, collections.Counter()
    for split, path in sources.items():
        converted[split], left_out = convert(path, arguments.format, hierarchy)
        counts += left_out
    return converted, counts


def _make(arguments, sources, plan, work, data):
    from data_pipelines.partonomy.build import build
    from data_pipelines.partonomy.questions import canonical
    from data_pipelines.partonomy.sources import gather, read_excluded, read_names
    from data_pipelines.partonomy.synonyms import read_synonyms
    from data_pipelines.processes import processes

    key = read_synonyms(arguments.synonyms) if arguments.synonyms else canonical
    names = tuple(read_names(path) if path else None for path in (arguments.object_names, arguments.part_names))
    excluded = read_excluded(arguments.exclude) if arguments.exclude else set()
    converted, counts = _convert(arguments, sources)
    if arguments.save_descriptor:
        _save(arguments.save_descriptor, converted)
    folders = {split: _images(arguments, split, path) for split, path in sources.items()}
    descriptor, split_of, left_out = gather(converted, folders, excluded, dict(_pair(text) for text in arguments.map))
    splits = [name for name, _ in plan.shares] if plan.shares else list(sources)
    with processes(arguments.workers) as run:
        report = build(work, data, descriptor, splits, None if plan.shares else split_of, plan, names=names, key=key, run=run)
    report["left_out"] = dict((counts + left_out + report["left_out"]).most_common())
    graphs = {name: report.pop(name) for name in ("part_graph", "instance_graph")}
    name = descriptor.dataset_name
    return {"name": name, "seed": plan.seed, "parts": report["parts"], "objects": report["objects"],
            "splits": report["splits"], **graphs, "report": report}  # fmt: skip


def _pair(text):
    old, sign, new = text.partition("=")
    if not sign or not old:
        raise UserError(f"--map: {text!r} is not OLD=NEW; give the start of the paths and what stands for it")
    return old, new


def _save(path, converted):
    from data_pipelines.partonomy.descriptor import write_descriptor

    for split, descriptor in converted.items():
        target = Path(path)
        write_descriptor(target.with_name(f"{target.stem}_{split}{target.suffix}") if split else target, descriptor)


def _text(report):
    lines = [f"{report['instances']} objects in {report['images']} images, {len(report['objects'])} kinds of object, "
             f"{len(report['parts'])} kinds of part"]  # fmt: skip
    for split, counts in report["splits"].items():
        lines.append(f"  {split}: {counts['images']} images, {counts['instances']} objects, {counts['questions']} questions")
        lines += [f"    {number:>8} {kind}" for kind, number in counts["types"].items()]
    if report["ambiguous"]:
        lines.append(f"{report['ambiguous']} objects are one of several of their kind in their image (--ambiguous)")
    if report["multi_instance_possible"]:
        lines.append(f"{report['multi_instance_possible']} may be several objects together: the source does not tell")
    for what, merged in (("objects", report["merged_objects"]), ("parts", report["merged_parts"])):
        lines += [f"{what} called {name!r} now: {', '.join(labels)}" for name, labels in merged.items()]
    lines += ["left out or changed:"] if report["left_out"] else []
    lines += [f"  {number:>8} {reason}" for reason, number in report["left_out"].items()]
    lines += ["questions that could not be asked:"] if report["no_question"] else []
    for kind, reasons in report["no_question"].items():
        lines += [f"  {number:>8} {kind}: {reason}" for reason, number in reasons.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    from plum_jax.cli import run

    raise SystemExit(run(main))
