"""`plum data stats PATH`: what a data set holds; of questions what they ask and show, per split and together (D 2.5, D 6.1)."""

import collections
import itertools
import json
import statistics
import sys
from pathlib import Path

from data_pipelines.checks.findings import printable
from data_pipelines.checks.options import PATHS, check_flags
from data_pipelines.checks.targets import find_target
from data_pipelines.masks import decode_segmentation, rle_area
from data_pipelines.question_files import question_files, readable_questions, split_of
from data_pipelines.stats_sources import describe
from data_pipelines.stats_text import as_text
from plum_jax import cli
from plum_jax.errors import UserError

EDGES = (0.0, 0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0)  # of the share of the image that a mask covers
PAIRS = 10  # most frequent pairs of parts
TOGETHER = "together"
COUNTS = ("images", "questions", "objects", "parts", "object_part_pairs", "masks", "empty_masks", "broken_masks")


def main(argv=None):
    from plum_jax.console import progress

    parser = cli.Parser(
        prog="plum data stats", description="Count what a data set holds. Images of questions and of COCO files are not read."
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help=PATHS)
    parser.add_argument("--hierarchy", help="for COCO files: YAML {object: [part categories]}")
    parser.add_argument("--samples", type=int, default=500, help="of a root: samples drawn from each data set (default 500)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args(argv)
    check_flags(arguments)
    target = find_target(arguments.paths)
    if target.kind != "questions":
        report = describe(target, hierarchy=arguments.hierarchy, most=arguments.samples)
        print(json.dumps(report, indent=2) if arguments.json else as_text(report))
        return 0
    report = folder_stats(
        target.folder, target.files, progress=lambda items, label: progress(items, label=label, unit="question")
    )
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    print(report["folder"])
    print("\n".join(map(printable, _text(report).split("\n"))))
    for name, count in report["left_out"].items():
        print(f"{name}: {count} questions cannot be read and are not counted; plum data check says why", file=sys.stderr)
    return 0


def folder_stats(folder, files=None, *, progress=lambda items, label: items):
    """Statistics of a folder.

    Args:
      folder: holds the question files. files: those to count, of this folder; default: all.
      progress: (items, label) -> the same items, shown while they are read.

    Returns:
      {"folder", "left_out": {file: unreadable questions}, "splits": {split: numbers}, "together": numbers}; `Tally.report`
      says what the numbers are.

    Raises:
      UserError: no such folder, no question file, one that is not a JSON array, or no question in any.
    """
    shares, tallies, left_out = {}, {}, {}
    together = Tally(shares)
    for path in files or question_files(folder):
        questions, broken = readable_questions(path)
        if broken:
            left_out[path.name] = broken
        tally = tallies.setdefault(split_of(path), Tally(shares))
        for _, question in progress(questions, path.name):
            tally.add(question)
            together.add(question)
    if not together.types:
        raise UserError(f"{folder}: its files hold no question that can be read; plum data check says why")
    splits = {split: tally.report() for split, tally in tallies.items()}
    return {"folder": str(Path(folder)), "left_out": left_out, "splits": splits, TOGETHER: together.report()}


class Tally:
    """Counts the questions that are added to it. An object of an image, and a part of it, count once."""

    def __init__(self, shares):
        """`shares`: {(image, object, part): share of the image, None when broken}, filled here and shared by all tallies."""
        self.shares, self.seen = shares, {}  # seen: {(image, object): {parts}}
        self.types, self.overlaps = collections.Counter(), []
        self.positions = {"part": collections.Counter(), "object": collections.Counter()}

    def add(self, question):
        self.types[question.question_type] += 1
        self.positions["part"][question.correct] += 1
        if question.object_correct is not None:
            self.positions["object"][question.object_correct] += 1
        self.overlaps.append(_overlaps(question))
        parts = self.seen.setdefault((question.image_path, question.image_label), set())
        for part, entries in question.segmentations.items():
            key = (question.image_path, question.image_label, part)
            if entries and key not in self.shares:
                self.shares[key] = _share(entries)
            if entries:
                parts.add(part)

    def report(self):
        """Numbers for JSON.

        COUNTS; "types" {type: questions}; "masks_per_image", "parts_per_object" (names that an object has anywhere) as mean,
        min, median, max; "mask_area" [{"from", "to", "masks"}] over shares of the image, of masks that hold a pixel;
        "answer_overlap": Jaccard index of the parts of the correct and a wrong choice, its mean over all wrong choices, and the
        means over questions of the largest and the smallest; "correct_position", "correct_object_position": questions whose
        correct choice stands there; "part_pairs" [{"parts", "objects"}]: parts seen together on most objects of images.
        """
        masks = [self.shares[image, label, part] for (image, label), parts in self.seen.items() for part in parts]
        areas = [share for share in masks if share]
        names, per_image = collections.defaultdict(set), collections.Counter()
        pairs = collections.Counter()
        for (image, label), parts in self.seen.items():
            names[label] |= parts
            per_image[image] += len(parts)
            pairs.update(itertools.combinations(sorted(parts), 2))
        values = (
            len(per_image), self.types.total(), len(names), len(set().union(*names.values())), sum(map(len, names.values())),
            len(masks), masks.count(0), masks.count(None),
        )  # fmt: skip
        most = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:PAIRS]
        return {
            **dict(zip(COUNTS, values, strict=True)),
            "types": dict(sorted(self.types.items())),
            "masks_per_image": _spread(list(per_image.values())),
            "parts_per_object": _spread([len(parts) for parts in names.values()]),
            "mask_area": _histogram(areas),
            "answer_overlap": _mean_overlaps(self.overlaps),
            "correct_position": _positions(self.positions["part"]),
            "correct_object_position": _positions(self.positions["object"]),
            "part_pairs": [{"parts": list(parts), "objects": count} for parts, count in most],
        }


def _share(entries):
    """Share of the image that the united entries of a part cover; None when one of them cannot be decoded."""
    try:
        if len(entries) == 1:
            entry = entries[0].get("segmentation", entries[0])
            if isinstance(entry.get("counts"), str):  # most masks: no need to decode them
                height, width = entry["size"]
                if height < 1 or width < 1:
                    return None
                return rle_area(entry["counts"], (height, width)) / (height * width)
        masks = [decode_segmentation(entry) for entry in entries]
        united = masks[0] > 0
        for mask in masks[1:]:
            united = united | (mask > 0)
        return float(united.mean())
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _overlaps(question):
    """Jaccard index of the parts of the correct choice with those of every wrong one."""
    correct = set(question.correct_parts)
    wrong = [set(parts) for i, parts in enumerate(question.answer_parts) if i != question.correct]
    return [len(correct & parts) / len(correct | parts) for parts in wrong]


def _mean_overlaps(overlaps):
    if not overlaps:
        return None
    return {
        "mean": statistics.fmean(itertools.chain(*overlaps)),
        "mean_of_max": statistics.fmean(map(max, overlaps)),
        "mean_of_min": statistics.fmean(map(min, overlaps)),
    }


def _spread(values):
    if not values:
        return None
    return {"mean": statistics.fmean(values), "min": min(values), "median": statistics.median(values), "max": max(values)}


def _histogram(areas):
    counts = collections.Counter(next(i for i, high in enumerate(EDGES[1:]) if share <= high) for share in areas)
    return [{"from": low, "to": high, "masks": counts[i]} for i, (low, high) in enumerate(itertools.pairwise(EDGES))]


def _positions(counts):
    """Questions whose correct choice is the first, the second, ..."""
    return [counts[i] for i in range(max(counts) + 1)] if counts else []


def _text(report):
    """A table with a column for each split and one for all, then the most frequent pairs of parts."""
    columns = {**report["splits"], TOGETHER: report[TOGETHER]}
    rows = [["", *columns]]

    def section(title, of):
        """Adds rows of `of(numbers) -> {row name: shown value}` for the names that any column has."""
        values = [of(numbers) for numbers in columns.values()]
        names = list(dict.fromkeys(itertools.chain(*values)))
        if names:
            rows.append([])
            rows.append([title])
            rows.extend([f"  {name}", *(value.get(name, "-") for value in values)] for name in names)

    for key in COUNTS:
        if not key.endswith("_masks") or report[TOGETHER][key]:  # empty and broken masks only where there are any
            name = _words(key).replace("object part", "object-part")
            rows.append([name, *(f"{numbers[key]:,}" for numbers in columns.values())])
    section("questions by type", lambda numbers: {_words(kind): f"{count:,}" for kind, count in numbers["types"].items()})
    section("masks per image", lambda numbers: _decimals(numbers["masks_per_image"]))
    section("parts per object", lambda numbers: _decimals(numbers["parts_per_object"]))
    section("share of the image that a mask covers", lambda numbers: _shown_areas(numbers["mask_area"]))
    section("Jaccard index of correct and wrong choices", lambda numbers: _decimals(numbers["answer_overlap"], 3))
    section("place of the correct choice", lambda numbers: _percents(numbers["correct_position"]))
    section("place of the correct object", lambda numbers: _percents(numbers["correct_object_position"]))
    widths = [max(len(row[i]) for row in rows if i < len(row) and len(row) > 1) for i in range(len(columns) + 1)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        for row in rows
    ]
    pairs = report[TOGETHER]["part_pairs"]
    if pairs:
        lines += ["", "parts most often seen together (objects in images)"]
        lines += [f"  {pair['objects']:>6,}  {' + '.join(pair['parts'])}" for pair in pairs]
    return "\n".join(line.rstrip() for line in lines)


def _words(name):
    return name.replace("_", " ")


def _decimals(numbers, places=1):
    return {_words(name): f"{value:.{places}f}" for name, value in (numbers or {}).items()}


def _percents(counts):
    return {f"{place}.": f"{100 * count / sum(counts):.1f} %" for place, count in enumerate(counts, 1)}


def _shown_areas(bins):
    total = sum(entry["masks"] for entry in bins)
    names = [f"up to {100 * entry['to']:g} %" for entry in bins]
    return {name: f"{100 * entry['masks'] / total:.1f} %" for name, entry in zip(names, bins, strict=True)} if total else {}


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
