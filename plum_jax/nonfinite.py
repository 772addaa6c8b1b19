"""What happens when the loss or a gradient of a step is not a number: it is kept for whoever looks for the cause, and the run
stops, or goes on without it (config.train.nonfinite).

The step itself has left parameters and optimizer as they were (train_step.py), so that no checkpoint holds such a number.
"""

import collections
import io
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from plum_jax.config_io import config_json
from plum_jax.errors import UserError
from plum_jax.metrics import AHEAD
from plum_jax.processes import say
from plum_jax.run_record import write_json, write_text
from plum_jax.sharding import path_name
from plum_jax.switches import switch
from plum_jax.train_step import LEAVES

BATCHES = 3  # that a run folder keeps: one of a large model is gigabytes
NAMED = 8  # paths and samples that a sentence names; the file has all of them


class Guard:
    """Keeps the batches of the steps that are under way, and decides about a step whose update was left out.

    All processes decide alike, from values that are the same on each. W/nonfinite/STEP has report.json, what was wrong;
    config.json; and for each process samples_0.json, the samples of its rows, and batch_0.npz, its rows as they were.

    Args:
      config, workdir, source: of the run.
      state: TrainState before its first step, whose optimizer has counted the updates so far.
      start: steps made so far.
    """

    def __init__(self, config, workdir, source, state, start):
        self.config, self.folder, self.source = config, Path(workdir) / "nonfinite", source
        self.paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
        self.before = start - _updates(state.opt_state, start)  # steps left out by earlier runs of the folder
        self.skipped, self.row, self.latest = 0, 0, None  # by this run, in a row, the latest one
        self.under_way = collections.deque(maxlen=AHEAD + 1)  # (step, host batch, which gradients are not finite)

    def remember(self, step, batch, sums):
        """Before the metrics of a step are collected: takes out of `sums` what only this class reads."""
        self.under_way.append((step, batch, sums.pop(LEAVES)[0]))

    def updates(self, step):
        """How many updates the schedule has made when this step is made: those that were left out do not count."""
        return max(step - 1 - self.before - self.skipped, 0)

    def left_out(self, step, sums):
        """A finished step made no update. `sums` are its metrics on the host.

        Raises:
          FloatingPointError: the run has to stop.
        """
        batch, leaves = next((batch, leaves) for at, batch, leaves in self.under_way if at == step)
        leaves = np.asarray(jax.device_get(leaves))
        paths = [path for path, bad in zip(self.paths, leaves, strict=True) if bad]
        self.row = self.row + 1 if self.latest == step - 1 else 1
        self.latest, self.skipped = step, self.skipped + 1
        what = _sentence(sums, paths, len(self.paths))
        kept = self._keep(step, batch, sums, paths, what)
        most = self.config.train.max_skipped
        if switch(self.config.train, "train.nonfinite") == "stop":
            raise FloatingPointError(
                f"{what} at step {step}, in the batch of samples {_few(batch.sample_id.tolist())} ({kept}); lower "
                "--config.optim.lr, correct the data, or leave such steps out with --config.train.nonfinite=skip"
            )
        if self.row > most:
            raise FloatingPointError(
                f"{what} at step {step}, the {self.row}th in a row ({kept}); lower --config.optim.lr, or raise "
                f"--config.train.max_skipped, which is {most}"
            )
        if self.skipped <= BATCHES:
            say(f"warning: step {step} is left out: {what} ({kept})")

    def account(self, record):
        """At the end of the loop: how many steps of this run made no update, in run.json and, if there are any, in words."""
        record.note(skipped_steps=self.skipped)
        if self.skipped:
            say(f"{self.skipped} steps made no update, because a loss or a gradient was not finite; see {self.folder}")

    def _keep(self, step, batch, sums, paths, what):
        """-> 'kept in FOLDER', or why not: a full disk must not hide what happened, nor end one process of several."""
        place = self.folder / str(step)
        try:
            self._write(place, step, batch, sums, paths, what)
        except OSError as error:
            return f"not kept: {error}"
        return f"kept in {place}"

    def _write(self, place, step, batch, sums, paths, what):
        """Each file has its name when all of it is there."""
        process = jax.process_index()
        place.mkdir(parents=True, exist_ok=True)
        name = f"batch_{process}.npz"
        others = [file for file in self.folder.glob(f"*/{name}") if file.parent != place]
        if len(others) < BATCHES:
            _write_npz(place / name, {key: value for key, value in batch._asdict().items() if value is not None})
        write_json(place / f"samples_{process}.json", samples_of(self.source, batch.sample_id))
        if process == 0:
            write_text(place / "config.json", config_json(self.config))
            metrics = {key: _plain(total, weight) for key, (total, weight) in sums.items()}
            report = {"step": step, "what": what, "gradients": paths, "metrics": metrics, "processes": jax.process_count()}
            write_json(place / "report.json", report)


def samples_of(source, sample_ids):
    """[{"sample_id", "dataset", "record", "name"}] of the rows of a batch; name is None where the source cannot say."""
    found = []
    for sample_id in map(int, sample_ids):
        if hasattr(source, "of"):  # a Mixture
            of, record = source.of(sample_id)
            found.append({"sample_id": sample_id, "dataset": of.dataset, "record": record, "name": _key(of, record)})
        else:
            name = source[sample_id].image
            found.append({"sample_id": sample_id, "dataset": source.dataset, "record": sample_id, "name": str(name)})
    return found


def _key(source, record):
    try:
        return source.sample(record, np.random.default_rng(0)).key
    except (UserError, OSError):  # a record that cannot be read was a padding row
        return None


def check_state(state, step, sharding):
    """FloatingPointError when a state that is about to be saved holds what is no number.

    Args:
      state: TrainState. sharding: replicated, of the mesh of the state.
    """
    floats = {
        path_name(path): x
        for path, x in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
        if jnp.issubdtype(x.dtype, jnp.floating)
    }
    fine = jax.device_get(jax.jit(_finite, out_shardings=sharding)(list(floats.values())))
    wrong = [path for path, ok in zip(floats, fine, strict=True) if not ok]
    if wrong:
        raise FloatingPointError(
            f"{_few(wrong)} of the state after step {step} are not finite, which is not saved therefore; lower "
            "--config.optim.lr"
        )


def _finite(arrays):
    return jnp.stack([jnp.isfinite(x).all() for x in arrays])


def _updates(opt_state, start):
    """How many updates an optimizer has made by its own count; `start` for one that does not count."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return max((int(x) for path, x in leaves if path_name(path).rpartition("/")[2] == "count"), default=start)


def _sentence(sums, paths, parameters):
    """'the loss is nan', or which gradients are not finite."""
    loss = float(sums["loss"][0])
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if paths:
        count = f"{len(paths)} of {parameters}"
        return f"the loss is {loss:.4g}, but the gradients of {count} parameters are not finite ({_few(paths)})"
    return f"the loss is {loss:.4g}, but the norm of the gradient is {float(sums['grad_norm'][0])}"


def _few(items):
    return ", ".join(map(str, items[:NAMED])) + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")


def _plain(total, weight):
    """A pair of a step -> its mean, as text where JSON has no number for it."""
    mean = float(total) / float(weight) if weight else math.nan
    return mean if math.isfinite(mean) else str(mean)


def _write_npz(path, arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.getbuffer())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
