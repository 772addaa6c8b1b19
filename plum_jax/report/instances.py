"""A line of instances.jsonl -> a plain dataclass."""

from dataclasses import dataclass

from data_pipelines.masks import segmentation_area
from plum_jax.report.lenient import dictionary, loads, number


@dataclass(frozen=True)
class Span:
    """A tagged phrase of the chosen answer and the mask that the model drew for it."""

    phrase: str
    start: int | None  # character range in the answer; None where the model does not say
    end: int | None
    mask: dict | None  # COCO RLE at the size of the image
    part: str | None  # the visible part that the phrase names
    iou: float | None  # with that part's mask
    score: float | None
    status: str


@dataclass(frozen=True)
class Instance:
    """One scored question."""

    id: str
    image_path: str
    image_label: str
    question_type: str
    questions: list[str]
    choices: list[str]
    choice_parts: list[list[str]]
    scores: dict[str, list[float]]  # negative log-likelihoods: the least wins
    correct: int
    predicted: int | None  # None: no choice was made
    object_choices: list[str] | None
    object_scores: dict[str, list[float]]
    object_correct: int | None
    object_predicted: int | None
    gt_parts: list[str]
    gt_masks: list[dict]
    gt_areas: list[float] | None  # shares of the image that the masks cover; older files do not have them
    highlight_box: tuple | None  # x0, y0, x1, y1, drawn into the picture: the object that is meant; older files do not have it
    protocol: str  # what answer, spans and scores below are of: end_to_end, or the first of BLOCKS that there is
    answer: str
    spans: list[Span]
    gmiou: float | None  # strict: a missing mask counts 0
    pair_ious: dict[str, float]

    @property
    def named(self):
        """Parts of the chosen answer."""
        return [] if self.predicted is None else self.choice_parts[self.predicted]

    @property
    def right(self):
        return self.predicted == self.correct


BLOCKS = ("end_to_end", "generation", "middle", "published")


def read_instances(path):
    """File -> ([Instance], how many lines are none). Without a file: nothing. Skipped questions are in the counts already."""
    instances, unreadable = [], 0
    if not path.is_file():
        return instances, unreadable
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in filter(str.strip, lines):
            try:
                row = loads(line)
                if "skipped" not in row:
                    instances.append(_instance(row))
            except (KeyError, IndexError, TypeError, ValueError, AttributeError):
                unreadable += 1
    return instances, unreadable


def _instance(row):
    protocol = next((name for name in BLOCKS if row.get(name)), BLOCKS[0])
    block = row.get(protocol) or {}
    predicted = _index(row["predicted"], row["choices"])
    if len(row["choice_parts"]) != len(row["choices"]):
        raise ValueError("every choice has its parts")
    return Instance(
        id=str(row["instance_id"]),
        image_path=str(row["image_path"]),
        image_label=str(row["image_label"]),
        question_type=str(row["question_type"]),
        questions=[str(q) for q in row["questions"]],
        choices=[str(c) for c in row["choices"]],
        choice_parts=[[str(p) for p in parts] for parts in row["choice_parts"]],
        scores=_scores(row.get("scores"), row["choices"]),
        correct=int(row["correct"]),
        predicted=predicted,
        object_choices=None if row.get("object_choices") is None else [str(c) for c in row["object_choices"]],
        object_scores=_scores(row.get("object_scores"), row.get("object_choices") or ()),
        object_correct=number(row.get("object_correct")),
        object_predicted=number(row.get("object_predicted")),
        gt_parts=[str(p) for p in row["gt_parts"]],
        gt_masks=[_mask(mask) for mask in row["gt_masks"]],
        gt_areas=_areas(row.get("gt_areas"), row["gt_parts"]),
        highlight_box=_box(row.get("highlight_box")),
        protocol=protocol,
        answer=str(block.get("answer") or _answer(row, protocol, predicted)),
        spans=[_span(s) for s in block.get("spans") or []],
        gmiou=number(block.get("gmiou_strict", block.get("gmiou"))),
        pair_ious={str(k): float(number(v) or 0.0) for k, v in dictionary(block.get("pair_ious")).items()},
    )


def _answer(row, protocol, predicted):
    """The text of a choice, where the block has none: under the published protocol that of the correct one."""
    choice = int(row["correct"]) if protocol == "published" else predicted
    return "" if choice is None else row["choices"][choice]


def _index(value, choices):
    """Index of a choice or None. IndexError where there is no such choice."""
    if value is None:
        return None
    choices[int(value)]
    return int(value)


def _scores(held, choices):
    """{measure: one number a choice}; a measure with anything else is left out."""
    found = dictionary(held)
    good = {k: v for k, v in found.items() if isinstance(v, list) and len(v) == len(choices)}
    return {k: v for k, v in good.items() if all(number(x) is not None for x in v)}


def _areas(held, parts):
    """One share for each part, or None."""
    good = isinstance(held, list) and len(held) == len(parts) and all(number(x) is not None for x in held)
    return held if good else None


def _box(held):
    """Four whole numbers, or None."""
    good = isinstance(held, list) and len(held) == 4 and all(type(side) is int for side in held)
    return tuple(held) if good else None


def _mask(held):
    """COCO run lengths that can be decoded, or None: the page then shows no mask."""
    try:
        segmentation_area(held)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return held


def _span(row):
    start, end = (int(c) for c in row["char"]) if row.get("char") else (None, None)
    return Span(
        str(row["phrase"]), start, end, _mask(row.get("mask")), row.get("part") and str(row["part"]), number(row.get("iou")),
        number(row.get("score")), str(row.get("status", "ok")),
    )  # fmt: skip
