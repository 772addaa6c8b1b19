"""Folders on disk -> plain dataclasses. Whatever is missing is None or empty: half a run still has a report."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from plum_jax.errors import UserError
from plum_jax.logger import read_metrics
from plum_jax.report.instances import Instance, read_instances
from plum_jax.report.lenient import dictionary, loads, number, with_dictionaries

OF_RESULTS = ("checkpoint", "data", "counts", "settings", "summary", "protocols", "calibration", "train")
OF_RECORD = ("versions", "seconds", "inputs", "config")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation folder: results.json, the questions of instances.jsonl, run.json."""

    folder: Path
    step: int | None  # of the checkpoint, where the folder says it
    split: str
    results: dict
    instances: list[Instance]
    unreadable_lines: int
    label: str = ""  # how the report calls the model
    record: dict = field(default_factory=dict)  # run.json

    @property
    def benchmark(self):
        return str(self.results.get("benchmark") or "partonomy")

    @property
    def skipped(self):
        held = dictionary(dictionary(self.results.get("counts")).get("skipped"))
        return {str(reason): int(n) for reason, n in held.items() if number(n) is not None}

    @property
    def protocols(self):
        return [str(name) for name in dictionary(self.results.get("protocols"))]

    @property
    def types(self):
        """Question types that any protocol has numbers for, in alphabetical order."""
        return sorted({t for groups in dictionary(self.results.get("protocols")).values() for t in dictionary(groups)})

    @property
    def data_root(self):
        """The folder that was evaluated: as results.json says, else beside the run (it may have been moved), else None."""
        path = Path(str(dictionary(self.results.get("data")).get("path") or "data"))
        places = [path, path.parent] if path.suffix else [path]
        places += [parent / "data" for parent in self.folder.absolute().parents[:5]]
        return next((p for p in places if p.is_dir() and (not path.suffix or (p / path.name).is_file())), None)

    @property
    def data_name(self):
        """What the data set calls itself, in results.json or in dataset.json; "" where neither says."""
        named = dictionary(self.results.get("data")).get("name")
        root = None if named else self.data_root
        return str(named or (_read_json(root / "dataset.json").get("name") if root else "") or "")

    def number(self, protocol, question_type, *keys):
        """A number of results.json; None where it is missing or counts nothing."""
        value = number(self.group(protocol, question_type, *keys))
        return None if value is None else float(value)

    def group(self, *keys):
        """What `protocols` holds under the keys; None where that is missing or the accuracy of no question."""
        value = self.results.get("protocols")
        for key in keys:
            if not isinstance(value, dict) or value.get("total") == 0:
                return None
            value = value.get(key)
        return value


@dataclass(frozen=True)
class Subject:
    """What a report is about: a run with its evaluations in order of time, or evaluations beside one another."""

    folder: Path
    name: str
    config: dict
    record: dict  # run.json of the run
    summary: dict  # results.json of quickstart
    metrics: dict[str, list[float]] = field(default_factory=dict)  # column -> values; "step" is a column
    evaluations: list[Evaluation] = field(default_factory=list)
    of_run: bool = True

    @property
    def several(self):
        return not self.of_run and len(self.evaluations) > 1

    @property
    def before(self):
        return self.evaluations[0] if self.of_run and len(self.evaluations) > 1 else None

    @property
    def after(self):
        """The evaluation that the report is about; None without one and where several stand beside one another."""
        return self.evaluations[-1] if self.evaluations and not self.several else None


def read_subject(folders, names=None):
    """Folders of `plum quickstart`, `train`, `evaluate` or `score` -> Subject. `names`: what to call several evaluations.

    Raises:
      UserError: a folder holds nothing to report, one of its JSON files is broken, or several are not all evaluations.
    """
    folders = [Path(folder) for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder}: {what}; give a folder that plum quickstart, train, evaluate or score wrote")
    if len(folders) == 1:
        return read_run(folders[0], names[0] if names else None)
    labels = names or _labels(folders)
    evaluations = [_last_evaluation(folder, label) for folder, label in zip(folders, labels, strict=True)]
    return Subject(
        Path(os.path.commonpath([f.absolute() for f in folders])), " and ".join(labels), {}, {}, {}, {}, evaluations, False
    )


def read_run(folder, name=None):
    """Folder of a quickstart, of a training run or of one evaluation -> Subject."""
    folder = Path(folder)
    work = folder / "run" if (folder / "run").is_dir() else folder
    found, metrics = _find_evaluations(work), _columns(read_metrics(work))
    if not found and not metrics:
        raise UserError(
            f"{folder}: holds neither metrics.csv nor an evaluation; give a run that has logged a step, or an evaluation"
        )
    split = "test" if any(e[1] == "test" for e in found) else (found[0][1] if found else "")
    chosen = [e for e in found if e[1] == split]
    chosen = chosen if len(chosen) < 2 else [chosen[0], chosen[-1]]
    record = _read_json(work / "run.json", OF_RECORD)
    config = _read_json(work / "config.json") or dictionary(record.get("config"))
    name = name or str(config.get("name") or folder.resolve().name)
    return Subject(
        folder=folder,
        name=name,
        config=config,
        record=record,
        summary=_read_json(folder / "results.json", OF_RESULTS) if work != folder else {},
        metrics=metrics,
        evaluations=[read_evaluation(*e, label=_step_label(e[0], name)) for e in chosen],
        of_run=not (len(found) == 1 and found[0][0] is None),
    )


def _step_label(step, name):
    return name if step is None else "untrained" if step == 0 else f"step {step}"


def _labels(folders):
    """The shortest ends of the paths that differ."""
    paths = [f.resolve() for f in folders]
    for length in range(1, max(len(p.parts) for p in paths)):
        labels = ["/".join(p.parts[-length:]) for p in paths]
        if len(set(labels)) == len(labels):
            return labels
    raise UserError(f"{folders[0]}: the same folder is given twice; give each evaluation once")


def _last_evaluation(folder, label):
    """The folder of one evaluation, or the last evaluation of a run."""
    work = folder / "run" if (folder / "run").is_dir() else folder
    found = _find_evaluations(work)
    if not found:
        raise UserError(f"{folder}: holds no evaluation; several folders are compared by theirs, so leave it out")
    test = [e for e in found if e[1] == "test"] or found
    return read_evaluation(*test[-1], label=label)


def _find_evaluations(work):
    """[(step, split, folder)], earliest step first: W/eval/STEP/SPLIT, or the folder of a single evaluation itself."""
    results = _read_json(work / "results.json", OF_RESULTS)
    if (work / "instances.jsonl").is_file() or "protocols" in results:
        return [(None, str(results.get("split") or ""), work)]
    found = {path.parent for name in ("instances.jsonl", "results.json") for path in work.glob(f"eval/*/*/{name}")}
    return sorted((int(path.parent.name), path.name, path) for path in found if path.parent.name.isdecimal())


def read_evaluation(step, split, folder, label=""):
    """One evaluation folder. Lines that are no instance are counted and left out; other benchmarks have other lines."""
    results = _read_json(folder / "results.json", OF_RESULTS)
    partonomy = results.get("benchmark", "partonomy") == "partonomy"
    instances, unreadable = read_instances(folder / "instances.jsonl") if partonomy else ([], 0)
    record = _read_json(folder / "run.json", OF_RECORD)
    return Evaluation(folder, step, split, results, instances, unreadable, label, record)


def _columns(rows):
    """Rows of metrics.csv -> {column: values}."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _read_json(path, names=()):
    """{} when there is no such file. Of `names`, what holds no dictionary is left out."""
    if not path.is_file():
        return {}
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); delete it or run the command that wrote it again") from None
    return with_dictionaries(dictionary(content), names)
