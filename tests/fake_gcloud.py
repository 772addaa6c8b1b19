"""Stands in for gcloud: a TPU slice of two workers, which are folders of $FAKE_CLOUD, and a shell for their commands.

calls.jsonl holds what it was called with; states, one word a line, what `describe` says next before it says the truth.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD, WORDS = Path(os.environ["FAKE_CLOUD"]), sys.argv[1:]
STATE, STATES = CLOUD / "state", CLOUD / "states"


def flag(name):
    found = [word.partition("=")[2] for word in WORDS if word.startswith(f"--{name}=")]
    return found[0] if found else None


def workers():
    found = sorted(CLOUD.glob("worker*"))
    chosen = flag("worker")
    return found if chosen == "all" else [found[int(chosen)]]


def describe():
    queued = STATES.read_text().split() if STATES.exists() else []
    if queued:
        STATES.write_text(" ".join(queued[1:]))
        print(queued[0])
    elif STATE.exists():
        print(STATE.read_text())
    else:
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found")


def create():
    STATE.write_text("ACTIVE")
    for index in range(2):
        (CLOUD / f"worker{index}").mkdir()


def delete():
    STATE.unlink()
    for worker in CLOUD.glob("worker*"):
        shutil.rmtree(worker)


def scp():
    source, target = [word for word in WORDS[4:] if not word.startswith("--")]
    for worker in workers():
        shutil.copy(source, worker / target.partition(":")[2])


def ssh():
    codes = []
    for worker in workers():
        env = {**os.environ, "HOME": str(worker), "PATH": f"{CLOUD / 'bin'}:{os.environ['PATH']}"}
        codes.append(subprocess.run(["bash", "-c", flag("command")], cwd=worker, env=env).returncode)
    sys.exit(max(codes, default=255))


with open(CLOUD / "calls.jsonl", "a") as file:
    file.write(json.dumps(WORDS) + "\n")
{"describe": describe, "create": create, "delete": delete, "scp": scp, "ssh": ssh}[WORDS[3]]()
