"""Running sums of the training loop, read a few steps late so that the loop never waits for the step that it just started."""

import math
import time

import jax

from plum_jax.train_step import SKIPPED

AHEAD = 2  # steps that may be under way while the host prepares the next: enough to keep a device busy, bounded in memory


class StepMetrics:
    """Collects the (sum, weight) pairs of every step and hands their means to `write` every `log_every` steps.

    A row for step s is written when step s + AHEAD has been started; `flush` writes what is left. A step that made no update,
    because its loss or gradient was not finite, has no part in any mean; the row counts such steps as `skipped_steps`.

    Args:
      write: called as write(step, {name: float}).
      images: global batch, for images_per_second.
      start: steps that earlier runs made and checked.
      left_out: called as left_out(step, sums on the host) for a step that made no update; it raises where the run has to stop.
    """

    def __init__(self, write, *, log_every, images, left_out, start=0):
        self.write, self.log_every, self.images, self.left_out = write, log_every, images, left_out
        self.checked = start  # the newest step that is known to have made an update, or to have been left out
        self.window = []  # (step, {name: (sum, weight)} on the device, seconds waited for data)
        self.read_at = time.monotonic()
        self.latest = {}

    def add(self, step, sums, waited):
        """`step` counts from 1, its `sums` are still being computed; `waited` is the time spent waiting for its batch."""
        self.window.append((step, sums, waited))
        finished = step - AHEAD
        for at, older, _ in self.window:
            if at == finished:
                jax.block_until_ready(older)
        self._check(finished)
        if finished % self.log_every == 0:
            self._read(finished)

    def skip(self, seconds):
        """Time since the last row that was not spent on training: it does not slow images_per_second."""
        self.read_at += seconds

    def flush(self, *, last=False):
        """Waits for every step, checks its loss, and writes the rows that are due; with `last` also an incomplete one."""
        while self.window:
            newest = self.window[-1][0]
            due = [step for step, _, _ in self.window if step % self.log_every == 0]
            if not due and not last:
                self._check(newest)
                return
            self._read(due[0] if due else newest)

    def window_json(self):
        """What `flush` left, the row that is under way, as a JSON value: a later run goes on with it through `go_on`.

        Its numbers are float32, which JSON keeps exactly: a row that a kill cut in two has the means of a whole one.
        """
        steps = [(step, jax.device_get(sums), waited) for step, sums, waited in self.window]
        rows = [[step, {k: [float(x) for x in pair] for k, pair in sums.items()}, waited] for step, sums, waited in steps]
        return {"rows": rows, "seconds": time.monotonic() - self.read_at}

    def go_on(self, window):
        """Takes over a `window_json`, {} for none."""
        self.window = [tuple(row) for row in window.get("rows", ())]
        self.read_at = time.monotonic() - window.get("seconds", 0.0)

    def _check(self, last):
        """Tells `left_out` about the steps up to `last` that made no update, and takes their numbers out of the means."""
        for place, (step, sums, waited) in enumerate(self.window):
            if self.checked < step <= last:
                self.checked = step
                if jax.device_get(sums[SKIPPED][0]):
                    sums = jax.device_get(sums)
                    nothing = dict.fromkeys(sums, (0.0, 0.0))
                    self.window[place] = (step, {**nothing, SKIPPED: (1.0, 1.0)}, waited)
                    self.left_out(step, sums)

    def _read(self, last):
        self._check(last)
        rows = [row for row in self.window if row[0] <= last]
        if not rows:
            return
        self.window = [row for row in self.window if row[0] > last]
        means = _means(jax.device_get([sums for _, sums, _ in rows]))
        now = time.monotonic()
        seconds, self.read_at = now - self.read_at, now
        self.latest = {
            **means,
            "images_per_second": self.images * len(rows) / max(seconds, 1e-9),
            "data_wait": min(1.0, sum(waited for _, _, waited in rows) / max(seconds, 1e-9)),
        }
        self.write(last, self.latest)


def _means(sums):
    """Weighted means over steps; a metric that no step weighs (a batch without spans) is nan. SKIPPED is a count."""
    means = {}
    for name in sorted(sums[0]):
        total, weight = (sum(float(pairs[name][i]) for pairs in sums) for i in (0, 1))
        means[name] = total if name == SKIPPED else total / weight if weight else math.nan
    return means
