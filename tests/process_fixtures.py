"""`plum train` as several real processes on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from test_train import FLAGS, SMALL

ROOT = Path(__file__).resolve().parent.parent
LOST = 12  # seconds without a sign of life


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Launch:
    """launch(count, arguments, different={number: environment}) -> [process]; all of them share one cache of programs."""

    def __init__(self, cache):
        self.cache, self.started = cache, []

    def __call__(self, count, arguments, *, different=None, **environment):
        common = {
            **os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(self.cache),
            "PYTHONPATH": str(ROOT), "PLUM_LOST_SECONDS": str(LOST), **environment,
        }  # fmt: skip
        if count > 1:
            address = f"localhost:{free_port()}"
            common = {"JAX_NUM_PROCESSES": str(count), "JAX_COORDINATOR_ADDRESS": address, **common}
        processes = []
        for number in range(count):
            mine = {"JAX_PROCESS_ID": str(number)} if count > 1 else {}
            changed = (different or {}).get(number, {})
            arguments_here = [*arguments, *changed.pop("arguments", [])]
            processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments_here], cwd=ROOT, env={**common, **mine, **changed}, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        self.started += processes
        return processes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()


def command(data, workdir, *overrides):
    """Arguments of Python for `plum train` with the small model."""
    values = [*SMALL, f"data.folder={data}", *overrides]
    return ["-m", "plum_jax.cli", "train", f"--workdir={workdir}", *(f"--config.{value}" for value in values)]


def ends(processes, seconds=600):
    """-> [(exit status, stdout, stderr)] of processes that end by themselves."""
    deadline = time.monotonic() + seconds
    said = [process.communicate(timeout=max(1, deadline - time.monotonic())) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]
