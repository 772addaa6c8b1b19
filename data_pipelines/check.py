"""`plum data check DIR`: reads every question and image of a PARTONOMY folder and reports every fault."""

import collections
import contextlib
import hashlib
import importlib
import json
import sys
from pathlib import Path

from data_pipelines.conversation import answer_spans
from data_pipelines.images import load_image
from data_pipelines.masks import decode_segmentation
from data_pipelines.partonomy.records import load_entries, parse_question
from data_pipelines.question_files import question_files, readable_questions, split_of
from plum_jax import cli
from plum_jax.errors import UserError

SAMPLES, FAULTY = 20, 10  # questions on the page of --html, and how many of them at most for their faults


def main(argv=None):
    """Exit status 0: no problem (there may be warnings), 1: problems, 2 (UserError): nothing to check."""
    argv = sys.argv[1:] if argv is None else argv
    for option, kind in (("--images", "coco_parts"), ("--dataset", "roots")):
        if any(word.partition("=")[0] == option for word in argv):
            return importlib.import_module(f"data_pipelines.checks.{kind}").main(argv)
    parser = cli.Parser(
        prog="plum data check",
        description="Read every question file and image of a folder with the readers of the training run.",
    )
    parser.add_argument("folder", help="dataset folder: *_qa_pairs_{train,val,test}.json and images/")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--html", help="also write a page of some questions to this file, those with a fault first")
    arguments = parser.parse_args(argv)
    if arguments.html is not None:
        page = Path(arguments.html)
        if page.is_dir() or not page.absolute().parent.is_dir():
            raise UserError(f"{page}: cannot be written; give --html a file in a folder that exists")
    report = check_folder(arguments.folder)
    shown = None if arguments.html is None else _write_page(page, report)
    print(json.dumps(report, indent=2, ensure_ascii=False) if arguments.json else _text(report))
    if shown is not None and not arguments.json:
        print(f"{shown} questions to look at: {page}")
    return 1 if report["problems"] else 0


def check_folder(folder):
    """Every fault of a folder. UserError without question files.

    Returns:
      {"folder", "files": {name: counts}, "problems", "warnings"}; the last two are lists of {"file", "entry", "problem"}.
      Training and evaluation would fail on a problem or mislead; a warning is worth a look.
    """
    folder, paths = Path(folder), question_files(folder)
    files, findings = {}, Findings()
    for path in paths:
        files[path.name] = _check_file(path, folder, findings)
    _check_parts(folder, files, findings.note)
    for counts in files.values():
        del counts["part_names"]
    return {"folder": str(folder), "files": files, "problems": findings.problems, "warnings": findings.warnings}


class Findings:
    """What was found, and what is known of the images that were read."""

    def __init__(self):
        self.problems, self.warnings = [], []
        self.sizes = {}  # {image path: (height, width), None when it cannot be read}
        self.owners = {}  # {image path: question file}
        self.contents = {}  # {SHA-256 of an image file: (image path, question file)} of the first that has it

    def note(self, file, entry, problem):
        self.problems.append({"file": file, "entry": entry, "problem": problem})

    def warn(self, file, entry, problem):
        self.warnings.append({"file": file, "entry": entry, "problem": problem})


def _check_file(path, folder, findings):
    """Notes the faults of one question file and returns its counts. Every image is read once."""
    note, images, owners, asked = findings.note, findings.sizes, findings.owners, {}
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
            _check_content(folder, question.image_path, path.name, index, findings)
        _check_question(question, asked, index, lambda text, index=index: findings.warn(path.name, index, text))
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


def _check_content(folder, image_path, file, index, findings):
    """Warns of an image that another split has under another name. One that cannot be read is a problem already."""
    try:
        content = hashlib.sha256((folder / image_path).read_bytes()).digest()
    except OSError:
        return
    other, owner = findings.contents.setdefault(content, (image_path, file))
    if split_of(owner) != split_of(file):
        findings.warn(file, index, f"image {image_path} is the same file as {other} of {owner}; splits should not share images")


def _check_question(question, asked, index, warn):
    """Warns of a question asked twice, and of a wrong choice that lists the correct parts. `asked`: {question: its entry}."""
    key = (question.image_path, question.image_label, question.highlight_box, question.question_type, question.question)
    first = asked.setdefault((*key, question.answer_choices), index)
    if first != index:
        warn(f"is the same question as entry {first}")
    correct = sorted(question.correct_parts)
    for number, parts in enumerate(question.answer_parts):
        if number != question.correct and sorted(parts) == correct:
            warn(f"choice {number} is marked incorrect and lists the parts of the correct choice")


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
    lines += [f"{number}. {_line(problem)}" for number, problem in enumerate(report["problems"], 1)]
    lines += [f"warning: {_line(warning)}" for warning in report["warnings"]]
    problems, warnings = (_count(len(report[key]), key) for key in ("problems", "warnings"))
    lines.append(f"{problems}, {warnings}" if report["warnings"] else problems)
    return "\n".join(lines)


def _count(number, plural):
    return f"{number or 'no'} {plural.removesuffix('s') if number == 1 else plural}"


def _line(finding):
    entry = "" if finding["entry"] is None else f" entry {finding['entry']}"
    return f"{finding['file']}{entry}: {finding['problem']}"


def _write_page(out, report):
    """Writes the page of --html and returns how many questions it shows: some with a finding, then others of every type."""
    from data_pipelines.gallery import Entry, render
    from data_pipelines.show import choose
    from plum_jax.run_record import write_text

    folder, entries = Path(report["folder"]), []
    for path in question_files(folder):
        with contextlib.suppress(UserError):  # a file that cannot be read is among the problems
            entries += [Entry(path.name, split_of(path), index, question) for index, question in readable_questions(path)[0]]
    found = {(finding["file"], finding["entry"]) for finding in report["problems"] + report["warnings"]}
    faulty = [entry for entry in entries if (entry.file, entry.index) in found][:FAULTY]
    others = [entry for entry in entries if (entry.file, entry.index) not in found]
    shown = faulty + choose(others, SAMPLES - len(faulty), seed=0)
    write_text(out, render(folder, shown, f"Check of {folder.resolve().name}"))
    return len(shown)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
