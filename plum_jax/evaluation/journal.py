"""predictions.jsonl of a run that may be stopped at any moment and continued: what is there, and what is added.

Beside it lies predictions.meta.json: the model, data and settings that the predictions are of. A run continues only its own.
"""

import json
from pathlib import Path

from plum_jax.errors import UserError
from plum_jax.evaluation import prediction_file
from plum_jax.run_record import write_json

NAME, META = "predictions.jsonl", "predictions.meta.json"


def discard(out):
    """Removes the predictions of an earlier run, if there are any."""
    for name in (NAME, META):
        (Path(out) / name).unlink(missing_ok=True)


class Journal:
    """The predictions of a run, in the order in which it makes them.

    Args:
      out: folder of the run; created with the first prediction.
      about: plain dictionary of everything that decides what is predicted.
      order: indices of the questions in the order in which they are run.
      changed: what to do with predictions of another `about`: "refuse", or "restart" to begin again.

    Attributes:
      done: [Prediction] of an earlier start of the same run.

    Raises:
      UserError: OUT holds predictions of another run, or ones that cannot be read.
    """

    def __init__(self, out, about, order, changed="refuse"):
        self.path, self.meta = Path(out) / NAME, Path(out) / META
        self.about, self.done = json.loads(json.dumps(about)), []
        difference = self._difference()
        if difference and changed == "restart":
            discard(out)
        elif difference:
            raise UserError(f"{self.path}: holds {difference}; give another --out, or begin again with --restart")
        if self.path.is_file():
            self._read(order)

    def _difference(self):
        """In which way what is there is not of this run; None where nothing is there, or where it is."""
        if not self.path.is_file():
            return None
        try:
            found = json.loads(self.meta.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return f"predictions without a readable {META}"
        changed = sorted(key for key in {*self.about, *found} if found.get(key) != self.about.get(key))
        return f"a run that differs in {', '.join(changed)}" if changed else None

    def _read(self, order):
        """Reads the complete lines and cuts off one that was being written when the run was stopped."""
        with open(self.path, "r+b") as file:
            text = file.read()
            whole = text.rfind(b"\n") + 1
            file.truncate(whole)
        for number, line in enumerate(text[:whole].splitlines()):
            try:
                prediction = prediction_file.from_json(json.loads(line))
                good = prediction.index == order[number]
            except (ValueError, TypeError, KeyError, AttributeError, IndexError):
                good = False
            if not good:
                raise UserError(f"{self.path}: line {number + 1} is not what this run wrote; begin again with --restart")
            self.done.append(prediction)

    def add(self, predictions):
        """Appends predictions and forces them to disk."""
        if not self.path.is_file():
            write_json(self.meta, self.about)
        prediction_file.append(self.path, predictions)
