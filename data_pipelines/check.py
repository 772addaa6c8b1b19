"""`plum data check DIR`: reads every question and image of a PARTONOMY folder and reports every fault."""

import argparse
import collections
import json
from pathlib import Path

from data_pipelines.conversation import answer_spans
from data_pipelines.images import load_image
from data_pipelines.masks import decode_segmentation
from data_pipelines.partonomy.records import load_entries, parse_question
from data_pipelines.question_files import question_files
from plum_jax.errors import UserError


def main(argv=None):
    """Exit status 0: no problem, 1: problems, 2 (UserError): nothing to check."""
    parser = argparse.ArgumentParser(
        prog="plum data check",
        description="Read every question file and image of a folder with the readers of the training run.",
    )
    parser.add_argument("folder", help="dataset folder: *_qa_pairs_{train,val,test}.json and images/")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(argv)
    report = check_folder(arguments.folder)
    print(json.dumps(report, indent=2, ensure_ascii=False) if arguments.json else _text(report))
    return 1 if report["problems"] else 0


def check_folder(folder):
    """-> {"folder", "files": {name: counts}, "problems": [{"file", "entry", "problem"}]}. UserError without question files."""
    folder, paths = Path(folder), question_files(folder)
    problems, files, images, owners = [], {}, {}, {}

    def note(file, entry, problem):
        problems.append({"file": file, "entry": entry, "problem": problem})

    for path in paths:
        files[path.name] = _check_file(path, folder, images, owners, note)
    _check_parts(folder, files, note)
    for counts in files.values():
        del counts["part_names"]
    return {"folder": str(folder), "files": files, "problems": problems}


def _check_file(path, folder, images, owners, note):
    """Notes the faults of one question file and returns its counts. `images`: {path: size or None}, read once each."""
    counts = {"questions": 0, "images": 0, "objects": 0, "parts": 0, "masks": 0, "empty_masks": 0}
    types, seen, objects, parts, checked = collections.Counter(), set(), set(), set(), {}
    try:
        entries = load_entries(path)
        if not entries:
            note(path.name, None, "holds no question")
    except UserError as error:
        note(path.name, None, _shorten(error, path))
        entries = []
    for index, entry in enumerate(entries):
        try:
            question = parse_question(entry, path, index)
        except UserError as error:
            note(path.name, index, _shorten(error, path).removeprefix(f"entry {index}: "))
            continue
        counts["questions"] += 1
        types[question.question_type] += 1
        seen.add(question.image_path)
        objects.add(question.image_label)
        parts |= question.segmentations.keys()
        for choice, names in zip(question.answer_choices, question.answer_parts, strict=True):
            try:
                answer_spans(choice, names)
            except ValueError as error:
                note(path.name, index, str(error))
        if question.image_path not in images:
            images[question.image_path] = _image_size(folder, question.image_path, path.name, index, note)
        other = owners.setdefault(question.image_path, path.name)
        if other != path.name:
            note(path.name, index, f"image {question.image_path} is also in {other}; splits must not share images")
            owners[question.image_path] = path.name
        known = checked.setdefault(question.image_path, [])
        if question.segmentations not in known:
            known.append(question.segmentations)
            _check_masks(question, images[question.image_path], counts, lambda text, index=index: note(path.name, index, text))
    counts.update(images=len(seen), objects=len(objects), parts=len(parts), part_names=parts, types=dict(sorted(types.items())))
    return counts


def _image_size(folder, image_path, file, index, note):
    try:
        return load_image(folder / image_path).shape[:2]
    except UserError as error:
        note(file, index, str(error))
        return None


def _check_masks(question, size, counts, note):
    """Every mask must decode, be as large as the image and hold a pixel."""
    for part, entries in question.segmentations.items():
        for entry in entries:
            counts["masks"] += 1
            try:
                mask = decode_segmentation(entry)
            except ValueError as error:
                note(f"mask of {part!r}: {error}")
                continue
            if size is not None and mask.shape != size:
                note(f"mask of {part!r} is {mask.shape[0]} x {mask.shape[1]}, the upright image {size[0]} x {size[1]}")
            if not mask.any():
                counts["empty_masks"] += 1
                note(f"mask of {part!r} is empty")


def _check_parts(folder, files, note):
    """The part vocabulary of dataset.json must hold every part of the question files."""
    path = folder / "dataset.json"
    if not path.is_file():
        return
    try:
        vocabulary = set(json.loads(path.read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        note(path.name, None, f"has no readable list of parts ({error!r})")
        return
    for name, counts in files.items():
        for part in sorted(counts["part_names"] - vocabulary):
            note(name, None, f"part {part!r} is not among the parts of dataset.json")


def _shorten(error, path):
    return str(error).removeprefix(f"{path}: ")


def _text(report):
    lines = [f"{report['folder']}"]
    for name, counts in report["files"].items():
        numbers = ", ".join(
            f"{counts[key]} {key.replace('_', ' ')}" for key in ("questions", "images", "objects", "parts", "masks")
        )
        lines.append(f"  {name}: {numbers}")
        lines += [f"    {count:>7} {kind}" for kind, count in counts["types"].items()]
    for number, problem in enumerate(report["problems"], 1):
        entry = "" if problem["entry"] is None else f" entry {problem['entry']}"
        lines.append(f"{number}. {problem['file']}{entry}: {problem['problem']}")
    lines.append(f"{len(report['problems'])} problems" if report["problems"] else "no problems")
    return "\n".join(lines)


if __name__ == "__main__":
    from plum_jax import cli

    raise SystemExit(cli.run(main))
