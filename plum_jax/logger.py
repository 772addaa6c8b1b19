"""metrics.csv and TensorBoard of a run. A resumed run continues both without a gap or a repeat."""

import csv
import io
import math
import os
import sys

from plum_jax.paths import Mirror, as_path
from plum_jax.run_record import write_text

SPARSE = "val_"  # columns that few rows have begin so: those of validation


class MetricLogger:
    """Appends rows to W/metrics.csv and scalars to W/tensorboard. In a bucket they are uploaded once a minute and by `flush`.

    Rows of steps after `start` are dropped first: a killed run wrote them, and the resumed one computes them again.

    Args:
      workdir: run folder.
      start: step from which the run goes on.
      sparse: columns, named val_..., that are nan unless `amend` fills them in.
      write: False on all processes but the first.
    """

    def __init__(self, workdir, start=0, *, sparse=(), write=True):
        self.path, self.fields, self.board = as_path(workdir) / "metrics.csv", None, None
        self.sparse, self.rows = dict.fromkeys(sparse, math.nan), 0  # rows that this run has written
        if not write:
            return
        from plum_jax.board import Board, history_of

        self.mirror = Mirror(workdir, keep=("metrics.csv", "tensorboard"))
        self.path = self.mirror.local / "metrics.csv"
        kept = [row for row in read_metrics(self.mirror.local) if row["step"] <= start]
        if kept:
            self.sparse = {name: math.nan for name in [*kept[0], *sparse] if name.startswith(SPARSE)}
            self._rewrite([{**self.sparse, **row} for row in kept])
        history = [(row["step"], _scalars(row)) for row in kept]
        if start and not self.path.exists():
            print(f"warning: {self.path} is missing; it begins anew after step {start:,}, TensorBoard goes on", file=sys.stderr)
            history = history_of(self.mirror.local / "tensorboard", start)
        elif not kept:
            self.path.unlink(missing_ok=True)
        self.board = Board(self.mirror.local / "tensorboard", history)

    def write(self, step, metrics):
        """One row: step, then the metrics, {name: float}; names are the same in every row of a run."""
        if self.board is None:
            return
        row = {"step": step, **metrics, **self.sparse}
        if self.fields is None:
            self.fields = list(row)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, _as_text(self.fields, []))
        if not self.rows and set(self.fields) < set(row):  # the file is of an older version, which knew fewer columns
            self._rewrite([{**dict.fromkeys(row, math.nan), **old} for old in read_metrics(self.path.parent)])
        self.rows += 1
        if set(row) != set(self.fields):
            raise ValueError(f"{self.path}: metrics {sorted(row)} at step {step}, the file has {sorted(self.fields)}")
        _append(self.path, _line(self.fields, row))
        self.board.write(step, _scalars(row))
        self.mirror.publish(now=False)

    def amend(self, step, metrics):
        """Fills in sparse columns of the row of a step, which is there already: they are known later than the others."""
        if self.board is None:
            return
        self._rewrite([{**row, **metrics} if row["step"] == step else row for row in read_metrics(self.path.parent)])
        self.board.write(step, _scalars(metrics))
        self.flush()

    def _rewrite(self, rows):
        self.fields = ["step", *(name for name in rows[0] if name not in ("step", *self.sparse)), *self.sparse]
        write_text(self.path, _as_text(self.fields, rows))

    def flush(self):
        """Makes what was written visible to others; called before every checkpoint, so that none is ahead of metrics.csv."""
        if self.board is not None:
            self.mirror.publish()

    def close(self):
        if self.board is not None:
            self.board.close()
            self.mirror.close()


def _append(path, line):
    """All of a line or none of it. OSError with the name of the file."""
    size = path.stat().st_size
    try:
        with open(path, "a", encoding="utf-8", newline="") as file:
            file.write(line)
    except OSError as error:  # a full disk takes the beginning of a line
        os.truncate(path, size)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _scalars(row):
    """A row of metrics.csv -> {tag: value} of TensorBoard with the digits of the file, without what no validation filled in."""
    found = {name: float(_text(value)) for name, value in row.items() if name != "step"}
    sparse = {name: name.startswith(SPARSE) for name in found}
    return {
        f"validation/{name.removeprefix(SPARSE)}" if sparse[name] else name: value
        for name, value in found.items()
        if not sparse[name] or math.isfinite(value)
    }


def read_metrics(workdir):
    """W/metrics.csv -> list of {'step': int, name: float}; a last line that a kill cut short is left out."""
    path = as_path(workdir) / "metrics.csv"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what stands after the last newline is not a whole line
    rows = []
    for row in csv.DictReader(lines):
        rows.append({name: int(value) if name == "step" else float(value) for name, value in row.items()})
    return rows


def _as_text(fields, rows):
    return ",".join(fields) + "\n" + "".join(_line(fields, row) for row in rows)


def _line(fields, row):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_text(row[name]) for name in fields])
    return text.getvalue()


def _text(value):
    return str(value) if isinstance(value, int) else f"{value:.7g}"
