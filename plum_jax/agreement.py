"""What the processes of a run must have in common, compared at the start: code, devices, config, saved steps, data.

A difference would show as a hang, as an error deep in a collective, or not at all. Here it is one sentence: who has what.
"""

import hashlib
import json
import socket
import time
from pathlib import Path

from plum_jax.config_io import config_json, flatten
from plum_jax.errors import UserError
from plum_jax.paths import as_path
from plum_jax.processes import meet, several, tell_all
from plum_jax.run_record import sha256_of, versions

# Keys that may differ between hosts: where things lie on this machine, and how it reads them. What is read must be the same.
OF_A_HOST = ("data.folder", "data.root", "data.workers", "data.cache", "eval.folder", "base")
VISIBLE_SECONDS = 30  # until a file on a shared disk is seen by all hosts


def check_same(facts):
    """UserError unless the facts are the same on all processes, which all must give the same names. One exchange.

    Args:
      facts: {name in the plural: (value of JSON, what the user can do)}.
    """
    said = tell_all("facts", {"host": socket.gethostname(), "facts": {what: value for what, (value, _) in facts.items()}})
    for what, (_, fix) in facts.items():
        values = [one["facts"].get(what) for one in said]
        if any(value != values[0] for value in values):
            hosts = [one["host"] for one in said]
            raise UserError(f"{what} differ between the processes: {spread(values, hosts)}; {fix}")


def spread(values, hosts):
    """[2, 1, 1], ['a', 'b', 'c'] -> '2 on process 0 (host a), 1 on processes 1, 2 (hosts b, c)'; at most four of a kind."""
    found = {}
    for number, value in enumerate(values):
        found.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(number)
    parts = []
    for text, numbers in found.items():
        word, host = ("processes", "hosts") if len(numbers) > 1 else ("process", "host")
        more = ", ..." if len(numbers) > 4 else ""
        shown, at = ", ".join(map(str, numbers[:4])), ", ".join(hosts[n] for n in numbers[:4])
        parts.append(f"{text} on {word} {shown}{more} ({host} {at}{more})")
    return ", ".join(parts)


def check_code():
    """Versions of Python and of the packages that compute, and the source of this one."""
    found = versions()
    names = ("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "plum_jax")
    facts = {f"versions of {name}": (found.get(name), "install the same one on all hosts") for name in names}
    check_same({**facts, "the files of plum_jax": (source_hash(), "install the same commit on all hosts")})


def source_hash():
    """First digits of a SHA-256 over the Python files of plum_jax and data_pipelines."""
    root, total = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for package in ("plum_jax", "data_pipelines"):
        for path in sorted((root / package).rglob("*.py")):
            total.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return total.hexdigest()[:10]


def check_devices():
    """The devices of each process; the first thing that opens them."""
    import jax

    kinds = ", ".join(sorted({device.device_kind for device in jax.local_devices()}))
    fix = "give every process the same number and kind of devices (XLA_FLAGS, CUDA_VISIBLE_DEVICES, or another machine)"
    check_same({"devices": (f"{jax.local_device_count()} x {kinds}", fix)})


def check_config(config):
    """The resolved config, but for paths of a host; the first key that differs is named with its values."""
    flat = flatten(json.loads(config_json(config)))
    mine = {key: value for key, value in flat.items() if not key.startswith(OF_A_HOST)}
    said = tell_all("config", mine)
    wrong = (key for key in sorted(set().union(*said)) if any(one.get(key) != said[0].get(key) for one in said))
    key = next(wrong, None)
    if key is not None:
        check_same({f"values of config.{key}": (mine.get(key), "run the same command on all hosts")})


def check_data(source):
    """What is trained on: the hash of the file that says so, or the number of records of every source of a mixture."""
    if not several():
        return
    if hasattr(source, "describe"):
        records = ", ".join(f"{one['records']} of {one['dataset']}" for one in source.describe())
        check_same({"records of config.data": (records, "copy the same data to all hosts")})
    else:
        path = Path(source.path)
        check_same({f"contents of {path.name}": (sha256_of(path)[:10], "copy the same config.data.folder to all hosts")})


def check_start(config, workdir, step):
    """Devices, config and run folder, before anything is opened.

    Args:
      step: the newest that this host sees in the run folder.
    """
    if several():
        check_devices()
        check_config(config)
        check_same({"newest steps in --workdir": (step, f"{workdir} must be one folder that all hosts share")})


def check_shared(file):
    """UserError unless all processes see a file that process 0 has written."""
    if not several():
        return
    meet("written")
    path, deadline = as_path(file), time.monotonic() + VISIBLE_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    seen = "there" if path.exists() else "missing"
    check_same({f"files {path.name} in --workdir": (seen, f"{path.parent} must be one folder that all hosts share")})
