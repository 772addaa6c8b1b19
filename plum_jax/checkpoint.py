"""Save and restore a run (Orbax v1).

Run folder: config.json, checkpoints/<step>/ with the trainable parameters, the optimizer state, the step and the config, and
best.json, which names the best step once validation has scored one.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import textwrap
from pathlib import Path

import absl.logging
import jax
from orbax.checkpoint import v1 as ocp

from plum_jax import cli, seal
from plum_jax.cache import cache_dir
from plum_jax.config_io import config_from_json, config_json, differences
from plum_jax.errors import UserError
from plum_jax.paths import absolute, as_path, is_remote, move_folder, remove_folder
from plum_jax.run_record import write_json, write_text

absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax logs, with a traceback, what it raises as well and is handled here
logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # reads of arrays that Orbax gives up when another one failed

UNFINISHED = ".orbax-checkpoint-tmp"  # how Orbax marks a folder that is no checkpoint yet; it removes them when it starts
COMMITTED = "commit_success.txt"  # in a bucket, where nothing is renamed, a folder with this file is a checkpoint
NO_SPACE = tuple(os.strerror(number) for number in cli.FULL)  # words of the system


class Checkpoints:
    """Checkpointer of a run folder: `save` keeps every `config.train.save_every` steps; of these the last `config.train.keep`
    and the best stay.

    Old ones go when a newer one is finished, each out of sight first: a kill leaves no half of a checkpoint.
    """

    def __init__(self, workdir, config):
        self.workdir, self.keep = absolute(workdir), config.train.keep
        self.directory, self.failed = self.workdir / "checkpoints", False
        self.orbax = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(config.train.save_every),
            preservation_policy=ocp.training.preservation_policies.PreserveAll(),
            cleanup_tmp_directories=True,  # what a kill in the middle of a save left behind
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.wait()
        except UserError:
            if kind is None:
                raise  # else the first error is what is told
        finally:
            with contextlib.suppress(Exception):  # a failed save is raised here once more
                self.orbax.close()
            if self.failed:
                self._remove_unfinished()

    def wait(self):
        """Until the save under way is finished. UserError when it failed for want of space."""
        with self._telling_of_space():
            self.orbax.wait()
        self._prune()

    def start(self, step, items):
        """Starts a save in the background, after the one before is finished."""
        self.wait()
        with self._telling_of_space():
            self.orbax.save_checkpointables_async(step, items, force=True)

    def _prune(self):
        if jax.process_index() != 0:
            return
        steps = steps_in(self.directory)
        for step in set(steps[: -self.keep]) - {read_best(self.workdir).get("step")}:
            path, aside = self.directory / str(step), self.directory / f"{step}{UNFINISHED}"
            if is_remote(path):
                (path / COMMITTED).unlink(missing_ok=True)
                aside = path
            else:
                os.replace(path, aside)
            remove_folder(aside)

    def _remove_unfinished(self):
        if jax.process_index() == 0:
            for path in self.directory.glob(f"*{UNFINISHED}*"):
                remove_folder(path)

    @contextlib.contextmanager
    def _telling_of_space(self):
        try:
            yield
        except Exception as error:  # Orbax and TensorStore have their own types, with the words of the system in them
            words = next((words for words in NO_SPACE if words in str(error)), None)
            if words is None:
                raise
            self.failed = True
            self._remove_unfinished()  # so that the files that say what happened can be written
            step = latest_step(self.workdir)
            kept = f"step {step:,} and all before are as they were" if step else "none was saved yet"
            raise UserError(
                f"{self.directory}: a checkpoint could not be written: {words} ({kept}); free some space and run the same "
                "command to go on"
            ) from error


def open_checkpoints(workdir, config):
    """Checkpoints of a run folder, to be used in a `with`."""
    return Checkpoints(workdir, config)


def read_best(workdir):
    """W/best.json: {"step", "metric", "mode", "value"}; {} when there is none, or none that can be read."""
    try:
        return json.loads((as_path(workdir) / "best.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def choose_best(workdir, values, metric, mode):
    """Writes W/best.json: of the checkpoints that are there, the one with the best value, the first among equals.

    Args:
      values: {step: value} of validations, nan where there is none. metric, mode: what they are, "max" or "min".

    Returns:
      What best.json holds now; {} when no checkpoint has a value.
    """
    steps = steps_in(absolute(workdir) / "checkpoints")
    found = [(step, values[step]) for step in steps if math.isfinite(values.get(step, math.nan))]
    if not found:
        return {}
    step, value = (max if mode == "max" else min)(found, key=lambda pair: pair[1])
    best = {"step": step, "metric": metric, "mode": mode, "value": value}
    if best != read_best(workdir):
        write_json(as_path(workdir) / "best.json", best)
    return best


def save(checkpoints, step, state, config, *, window=None, force=False):
    """Asynchronous; skips the steps that the save policy does not want, and a step that is already there.

    Args:
      step: Python int, number of updates made.
      state: TrainState. Its buffers may be donated as soon as this returns.
      window: of `StepMetrics.window_json`: the row of metrics that is under way.

    Returns:
      True when a save was started.
    """
    there = any(found.step == step for found in checkpoints.orbax.checkpoints)
    if there or not (force or checkpoints.orbax.should_save(step)):
        return False
    state, text = _as_dict(state), config_json(config)  # as text: a dictionary would be stored as arrays
    checkpoints.start(step, dict(state=state, config=text, seal=seal.seal(state, text, window or {})))
    return True


def restore(checkpoints, state, shardings, config):
    """The newest readable state, laid out for this mesh whatever mesh wrote it.

    A checkpoint that cannot be read, or whose arrays are not those that were saved, is set aside in `corrupt/` with a warning,
    and the one before it is taken.

    Args:
      state: TrainState of shapes. shardings: the same tree of shardings.
      config: of this run; the checkpoint must have been made with the same one (`config_io.RESUMABLE` keys may differ).

    Returns:
      (dictionary with step, params and opt_state; step as a Python int), or (None, 0) when there is no checkpoint.

    Raises:
      UserError: the checkpoint is of another config; no checkpoint could be read.
    """
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), _as_dict(state), _as_dict(shardings))
    found = list(reversed(checkpoints.orbax.checkpoints))
    for checkpoint in found:
        try:
            return _read(checkpoint.path, target, config), checkpoint.step
        except UserError:
            raise
        except Exception as error:  # whatever Orbax, TensorStore or JSON raise for damaged files
            aside = _set_aside(as_path(checkpoint.path))
            what = f"{_short(error)}; its files are missing or damaged"
            print(f"warning: checkpoint {checkpoint.step} cannot be read ({what}); moved to {aside}", file=sys.stderr)
    checkpoints.orbax.reload()
    if found:
        raise UserError(f"{checkpoints.directory}: none of {len(found)} checkpoints can be read; choose a new --workdir")
    return None, 0


def _read(path, target, config):
    text, sealed = read_config(path)
    _check_config(path, config_from_json(text), config)
    state = ocp.load_checkpointables(path, dict(state=target))["state"]
    if sealed:
        seal.check_arrays(sealed, state)
    return state


def read_config(path):
    """Folder of a checkpoint -> (config as text, what `seal.read_seal` returns; {} for one from before there were seals)."""
    sealed = {}
    if (as_path(path) / "seal").exists():
        sealed = seal.read_seal(ocp.load_checkpointables(path, dict(seal=None))["seal"])
    text = ocp.load_checkpointables(path, dict(config=None))["config"]
    if sealed:
        seal.check_config(sealed, text)
    return text, sealed


def read_window(workdir, step):
    """The row of metrics that was under way when a step was saved: for `StepMetrics.go_on`."""
    return read_config(absolute(workdir) / "checkpoints" / str(step))[1].get("window", {})


def _check_config(path, written, config):
    keys = differences(written, config)
    if keys:
        raise UserError(f"{path}: was written with another config ({', '.join(keys[:8])} differ); use a new --workdir")


def _set_aside(path):
    """checkpoints/<step> -> corrupt/<step>: nothing is deleted, and the step can be saved again."""
    aside = path.parent.parent / "corrupt" / path.name
    if jax.process_index() == 0:
        aside.parent.mkdir(exist_ok=True)
        remove_folder(aside)
        move_folder(path, aside)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("set_aside")
    return aside


def _as_dict(state):
    return dict(step=state.step, params=state.params, opt_state=state.opt_state)


def _short(error):
    return f"{type(error).__name__}: {textwrap.shorten(next(iter(str(error).splitlines()), ''), 160, placeholder=' ...')}"


def checkpoint_folder(path, which="last"):
    """Run folder, its checkpoints/<step>, or the word `tiny` -> absolute path of checkpoints/<step>.

    Args:
      which: of a run folder: "last", the newest step, or "best", the one that best.json names.

    Raises:
      UserError: there is no finished checkpoint, or no best one.
    """
    folder = as_path(path)
    if str(path) == "tiny" and not folder.exists():
        folder = tiny_folder()
        if not folder.exists():
            raise UserError(f"tiny: no trained tiny model in {folder}; run `plum quickstart` once, or give a run folder")
    if not folder.is_dir():
        raise UserError(f"{path}: no such checkpoint folder; give the --workdir of a training run, or `tiny`")
    folder = absolute(folder)
    of_run = (folder / "checkpoints").is_dir()  # a run folder may have a number for its name
    if folder.name.isdigit() and not of_run and ocp.is_orbax_checkpoint(folder):
        return folder
    steps = steps_in(folder / "checkpoints")
    if not steps:
        raise UserError(f"{path}: holds no finished checkpoint; train with `plum train --workdir={path}` first")
    if which == "last":
        return folder / "checkpoints" / str(steps[-1])
    best = read_best(folder).get("step")
    if best not in steps:
        why = f"step {best} of its best.json is not there" if best else "no validation has scored one"
        raise UserError(f"{path}: has no best checkpoint ({why}); use --which last, or train with --config.eval.every=N")
    return folder / "checkpoints" / str(best)


def latest_step(workdir):
    """Number of the newest finished checkpoint of a run folder, 0 when there is none; nothing is read or created."""
    return next(reversed(steps_in(absolute(workdir) / "checkpoints")), 0)


def steps_in(folder):
    """Sorted numbers of the finished checkpoints in a folder of them."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit() and ocp.is_orbax_checkpoint(folder / name))


def tiny_folder():
    """Where the checkpoint word `tiny` lives."""
    return cache_dir() / "tiny"


def install_tiny(workdir):
    """Copies the newest checkpoint of a run into the user's cache as the checkpoint word `tiny`, and returns that folder.

    What evaluation left beside it for prediction (calibration.json) goes along. The old folder is replaced as a whole.
    """
    source, folder = checkpoint_folder(workdir), tiny_folder()
    fresh, old = folder.with_name(f".tiny.{os.getpid()}"), folder.with_name(f".tiny.old.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh / "checkpoints" / source.name)
    for name in ("config.json", "calibration.json"):
        if (Path(workdir) / name).exists():
            shutil.copy2(Path(workdir) / name, fresh / name)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def write_config(workdir, config):
    """Writes W/config.json, the resolved config."""
    write_text(as_path(workdir) / "config.json", config_json(config))
