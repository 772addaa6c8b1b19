"""run.json: what was run, with which configuration, versions and inputs, and how long it took."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import sys
import time

from plum_jax.paths import as_path, files_below, write_whole

PACKAGES = (
    "plum_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "pycocotools", "tokenizers",
    "transformers", "array_record", "tensorflow-datasets",
)  # fmt: skip


def versions():
    """{'python': '3.11.7', 'jax': '0.10.2', ...} of what is installed, from package metadata: imports nothing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def sha256_of(path):
    """Hexadecimal SHA-256 of a file, or of a folder: of its sorted "hash  path" lines, in the form that sha256sum prints."""
    path = as_path(path)
    if path.is_dir():
        lines = "".join(f"{sha256_of(path / name)}  {name}\n" for name in files_below(path))
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, value):
    """Writes `value` (dictionaries, lists, NumPy scalars, paths) as indented JSON under a temporary name, then renames."""
    text = json.dumps(value, indent=2, default=_plain, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path, text):
    """Writes a file as a whole: a reader never sees half of it."""
    write_whole(path, text.encode())


def remove_leftovers(folder):
    """Removes the temporary files that `write_text` left in a folder when it was killed."""
    for path in as_path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def mark_stopped(folder, status):
    """Writes into run.json how a run ended that could not write it itself."""
    path = as_path(folder) / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    if facts["status"] == "running":
        write_json(path, {**facts, "status": status, "finished": _now()})


def _plain(value):
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


class RunRecord:
    """Writes OUT/run.json when a run starts and again when it ends, whatever way it ends.

        with RunRecord(out, "train", config) as record:
            record.input("data", folder)        # path and SHA-256
            with record.timing("compile"): ...  # seconds
            record.note(parameters=1_420_000)   # any other fact

    Attributes: seconds (dict of timings so far), facts (the dictionary that is written).
    """

    def __init__(self, out, command, config=None, *, write=True, goes_on=False):
        """`config`: ConfigDict, dictionary or None. `write=False` on all hosts but the first: one file, one writer.

        `goes_on`: the command may be stopped anywhere, and goes on when it is repeated: SIGTERM ends it at once and says so.
        """
        self.path, self.write_file, self.began = as_path(out) / "run.json", write, time.monotonic()
        self.seconds, self.goes_on, self.until_exit = {}, goes_on, contextlib.ExitStack()
        self.facts = {
            "command": command,
            "argv": sys.argv,
            "status": "running",
            "started": _now(),
            "finished": None,
            "versions": versions(),
            "platform": platform.platform(),
            "config": json.loads(config.to_json_best_effort()) if hasattr(config, "to_json_best_effort") else config,
            "inputs": {},
            "seconds": self.seconds,
        }

    def __enter__(self):
        from plum_jax.preemption import Preemption

        self._write()
        if self.goes_on and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # else a program around us hears it
            self.until_exit.enter_context(Preemption(self._terminated, {signal.SIGTERM: 128 + signal.SIGTERM}))
        return self

    def _terminated(self, _):
        print(f"\nplum {self.facts['command']}: stopped by SIGTERM; run the same command to go on", file=sys.stderr, flush=True)
        mark_stopped(self.path.parent, "stopped")
        sys.stdout.flush()

    def __exit__(self, kind, error, _):
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        status = "done" if error is None else "stopped" if stopped else "failed"
        self.facts.update(status=self.facts["status"] if self.facts["status"] != "running" else status, finished=_now())
        if error is not None and not stopped:
            self.facts["error"] = f"{kind.__name__}: {error}"
        self.seconds["total"] = round(time.monotonic() - self.began, 3)
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():  # the error is what is told
            self._write()
        self.until_exit.close()

    def input(self, name, path):
        """Records the path and hash of an input; a missing path is recorded with a null hash."""
        path = as_path(path)
        self.facts["inputs"][name] = {"path": str(path), "sha256": sha256_of(path) if path.exists() else None}

    @contextlib.contextmanager
    def timing(self, name):
        """Adds the seconds of the block to `seconds[name]`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 3)

    def note(self, **facts):
        """Adds facts to the file, such as status="preempted"."""
        self.facts.update(facts)

    def _write(self):
        if self.write_file:
            write_json(self.path, self.facts)


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
