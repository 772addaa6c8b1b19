"""What the tests of the launchers share: a folder that stands in for the cloud, and words that are hard to quote."""

import contextlib
import json
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TPU, SLURM, STOPPABLE = (ROOT / "tools" / f"{name}.sh" for name in ("launch_tpu_vm", "launch_slurm", "run_stoppable"))
NASTY = ["--a=({'x':\"y z\"},)", "it's", "$HOME `id` $(id)", "a\\b", "", "*", "--b=ü;#&|<>"]
SLICE = ["--name=plum", "--zone=us-west4-a"]
PLUM = """
    import json, os, pathlib, signal, sys, time
    if sys.argv[1] == "--version":
        sys.exit()
    home = pathlib.Path.home()
    names = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"
    (home / "jax").write_text(" ".join(os.environ[name] for name in names))
    with open(home.parent / "runs.jsonl", "a") as file:
        file.write(json.dumps([home.name, *sys.argv[1:]]) + "\\n")
    print("first line", flush=True)
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    while not told and not (home.parent / "finish").exists():
        time.sleep(0.02)
    print("last line")
    sys.exit(int((home.parent / "finish").read_text() or 0) if not told else 0)
"""
PYTHON3 = """#!/bin/bash
    # python3 of a worker: `-m uv venv` makes an environment whose `plum` is the stand-in
    echo "$@" >> "$HOME/installed"
    if [[ "$*" == *"uv venv"* ]]; then
      mkdir -p "$HOME/plum_env/bin" && cp "$FAKE_CLOUD/bin/plum" "$HOME/plum_env/bin/plum"
    fi
"""


CURL = """#!/bin/bash
    # the metadata server
    case "${@: -1}" in
      http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints)
        echo "unknown:8470:10.0.0.7,unknown:8470:10.0.0.8" ;;
      http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) echo "${HOME: -1}" ;;
      *) exit 22 ;;
    esac
"""


@contextlib.contextmanager
def fake_cloud(tmp_path):
    """Folder of the stand-in for gcloud. Programs that still run on its workers are ended."""
    cloud, binaries = tmp_path / "cloud", tmp_path / "bin"
    (cloud / "bin").mkdir(parents=True)
    binaries.mkdir()
    write(binaries / "gcloud", f"#!{sys.executable}\n" + (ROOT / "tests" / "fake_gcloud.py").read_text())
    write(cloud / "bin" / "plum", f"#!{sys.executable}\n" + textwrap.dedent(PLUM))
    write(cloud / "bin" / "python3", textwrap.dedent(PYTHON3))
    write(cloud / "bin" / "curl", textwrap.dedent(CURL))
    yield cloud
    for pid in cloud.glob("worker*/plum_run/pid"):
        end(int(pid.read_text()))


def write(path, text):
    path.write_text(text)
    path.chmod(0o755)


def end(pid):
    """Kills a program of a worker with the shells around it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgid(pid), signal.SIGKILL)


def environment(cloud, **more):
    path = f"{cloud.parent / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "FAKE_CLOUD": str(cloud), "TMPDIR": str(cloud.parent), **more}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited for a minute")
