"""A run folder on disk -> plain dataclasses. Whatever is missing is None or empty: half a run still has a report."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from plum_jax.errors import UserError
from plum_jax.logger import read_metrics


@dataclass(frozen=True)
class Span:
    """A tagged phrase of the chosen answer and the mask that the model drew for it."""

    phrase: str
    start: int  # character range in the answer
    end: int
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
    predicted: int
    object_choices: list[str] | None
    object_scores: dict[str, list[float]]
    object_correct: int | None
    object_predicted: int | None
    gt_parts: list[str]
    gt_masks: list[dict]
    answer: str
    spans: list[Span]
    gmiou: float | None  # end to end, strict
    pair_ious: dict[str, float]

    @property
    def named(self):
        """Parts of the chosen answer."""
        return self.choice_parts[self.predicted]

    @property
    def right(self):
        return self.predicted == self.correct


@dataclass(frozen=True)
class Evaluation:
    """The instances of one evaluation folder; `results` is its results.json."""

    folder: Path
    step: int | None
    split: str
    results: dict
    instances: list[Instance]
    unreadable_lines: int

    @property
    def skipped(self):
        return {str(k): int(v) for k, v in ((self.results.get("counts") or {}).get("skipped") or {}).items()}


@dataclass(frozen=True)
class Run:
    folder: Path
    name: str
    config: dict
    record: dict  # run.json
    summary: dict  # results.json of quickstart
    metrics: dict[str, list[float]] = field(default_factory=dict)  # column -> values; "step" is a column
    before: Evaluation | None = None
    after: Evaluation | None = None


def read_run(folder):
    """Folder of a quickstart, of a training run or of one evaluation -> Run.

    Raises:
      UserError: nothing in the folder can be reported, or one of its JSON files is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder that `plum quickstart`, `train` or `evaluate` wrote")
    work = folder / "run" if (folder / "run").is_dir() else folder
    evaluations = _find_evaluations(work)
    metrics = _columns(read_metrics(work))
    if not evaluations and not metrics:
        raise UserError(
            f"{folder}: holds neither metrics.csv nor an evaluation; give a run that has logged a step, or an evaluation"
        )
    split = "test" if any(e[1] == "test" for e in evaluations) else (evaluations[0][1] if evaluations else "")
    chosen = [e for e in evaluations if e[1] == split]
    config = _read_json(work / "config.json")
    return Run(
        folder=folder,
        name=str(config.get("name") or folder.resolve().name),
        config=config,
        record=_read_json(work / "run.json"),
        summary=_read_json(folder / "results.json") if work != folder else {},
        metrics=metrics,
        before=read_evaluation(*chosen[0]) if len(chosen) > 1 else None,
        after=read_evaluation(*chosen[-1]) if chosen else None,
    )


def _find_evaluations(work):
    """[(step, split, folder)], earliest step first: W/eval/STEP/SPLIT, or the folder of a single evaluation itself."""
    if (work / "instances.jsonl").is_file():
        return [(None, str(_read_json(work / "results.json").get("split", "")), work)]
    found = [path.parent for path in work.glob("eval/*/*/instances.jsonl") if path.parent.parent.name.isdecimal()]
    return sorted((int(path.parent.name), path.name, path) for path in found)


def read_evaluation(step, split, folder):
    """One evaluation folder. A line that is not an instance is counted and left out."""
    instances, unreadable = [], 0
    with open(folder / "instances.jsonl", encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            try:
                instances.append(_instance(json.loads(line)))
            except (KeyError, IndexError, TypeError, ValueError, AttributeError):
                unreadable += 1
    return Evaluation(folder, step, split, _read_json(folder / "results.json"), instances, unreadable)


def _instance(row):
    end_to_end = row.get("end_to_end") or {}
    return Instance(
        id=str(row["instance_id"]),
        image_path=str(row["image_path"]),
        image_label=str(row["image_label"]),
        question_type=str(row["question_type"]),
        questions=[str(q) for q in row["questions"]],
        choices=[str(c) for c in row["choices"]],
        choice_parts=[[str(p) for p in parts] for parts in row["choice_parts"]],
        scores=dict(row.get("scores") or {}),
        correct=int(row["correct"]),
        predicted=int(row["predicted"]),
        object_choices=row.get("object_choices"),
        object_scores=dict(row.get("object_scores") or {}),
        object_correct=row.get("object_correct"),
        object_predicted=row.get("object_predicted"),
        gt_parts=[str(p) for p in row["gt_parts"]],
        gt_masks=list(row["gt_masks"]),
        answer=str(end_to_end.get("answer") or row["choices"][int(row["predicted"])]),
        spans=[_span(s) for s in end_to_end.get("spans") or []],
        gmiou=end_to_end.get("gmiou_strict"),
        pair_ious={str(k): float(v or 0.0) for k, v in (end_to_end.get("pair_ious") or {}).items()},
    )


def _span(row):
    start, end = row["char"]
    return Span(
        str(row["phrase"]), int(start), int(end), row.get("mask"), row.get("part"), row.get("iou"), row.get("score"),
        str(row.get("status", "ok")),
    )  # fmt: skip


def _columns(rows):
    """Rows of metrics.csv -> {column: values}."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _read_json(path):
    """{} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); delete it or run the command that wrote it again") from None
    return content if isinstance(content, dict) else {}
