"""`plum doctor`: device, versions, caches, disk and memory, with the fix for each fault."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

from plum_jax import cli, console
from plum_jax.cache import compilation_dir
from plum_jax.errors import UserError
from plum_jax.run_record import versions

MODULES = (
    "jax",
    "flax",
    "optax",
    "orbax.checkpoint",
    "grain",
    "ml_collections",
    "numpy",
    "PIL",
    "pycocotools.mask",
    "transformers",
)
MEMORY_NEEDED = 2e9  # of the tiny model's training step and its data
DISK_NEEDED = 2e9


def main(argv):
    parser = argparse.ArgumentParser("plum doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    args = parser.parse_args(argv)
    checks = run_checks()
    if args.json:
        print(
            json.dumps({"ok": all(c["status"] != "fault" for c in checks), "versions": versions(), "checks": checks}, indent=2)
        )
    else:
        for check in checks:
            print(f"{check['status']:<6} {check['name']:<12} {check['value']}")
            if check["fix"]:
                print(f"{'':19} fix: {check['fix']}")
        faults = sum(check["status"] == "fault" for check in checks)
        found = f"{faults} {'fault' if faults == 1 else 'faults'}."
        print(found if faults else "Everything that plum needs is here. Next: plum quickstart --out quickstart")
    return int(any(check["status"] == "fault" for check in checks))


def run_checks():
    """List of {"name", "status": "ok" | "note" | "fault", "value", "fix"}; fix is '' where there is nothing to do."""
    functions = (_python, _packages, _constraints, _device, _compiled, _tiny, _memory, _disk, _tokenizer)
    return [
        dict(zip(("name", "status", "value", "fix"), (function.__name__[1:], *function()), strict=True))
        for function in functions
    ]


def _python():
    value = f"{versions()['python']} at {sys.executable}"
    return ("ok", value, "") if sys.version_info >= (3, 11) else ("fault", value, "install Python 3.11 or newer")


def _packages():
    broken = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken binary raises anything; the point is to name it
            broken.append(f"{name} ({type(error).__name__}: {error})")
    if broken:
        return "fault", "; ".join(broken), "pip install --force-reinstall plum_jax, in a fresh virtual environment"
    return "ok", ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python"), ""


def _constraints():
    """Whether every requirement of plum_jax is met by what is installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("plum_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return "fault", "plum_jax is not installed", "run `pip install -e .` in the checkout, or `make quickstart`"
    wrong = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            have = None
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name} is {have or 'missing'}, needed {requirement.specifier}")
    if wrong:
        return "fault", "; ".join(wrong), "pip install -c constraints.txt -e . in the checkout"
    return "ok", "all installed versions are in the ranges of plum_jax", ""


def _device():
    import jax

    try:
        value = console.device_line()
    except RuntimeError as error:
        return (
            "fault",
            f"jax finds no device ({error})",
            "set JAX_PLATFORMS=cpu, or install the extra: plum_jax[cuda] or plum_jax[tpu]",
        )
    idle = jax.default_backend() == "cpu" and (shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists())
    if idle and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        return "fault", f"{value}, but this machine has an NVIDIA GPU", "pip install 'plum_jax[cuda]', or set JAX_PLATFORMS=cpu"
    return "ok", value, ""


def _compiled():
    folder = compilation_dir()
    fault = _unwritable(folder)
    if fault:
        return "fault", f"{folder} {fault}", "set XDG_CACHE_HOME to a folder that can be written"
    files = [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []
    return "ok", f"{folder}: {len(files)} files, {console.size(sum(p.stat().st_size for p in files))}", ""


def _unwritable(folder):
    """'' or what is wrong with the nearest existing folder."""
    while not folder.exists():
        folder = folder.parent
    return "" if os.access(folder, os.W_OK) else "cannot be written"


def _tiny():
    from plum_jax.checkpoint import checkpoint_folder

    try:
        return "ok", f"checkpoint `tiny` at {checkpoint_folder('tiny')}", ""
    except UserError:
        return "note", "no trained tiny model in the cache", "plum quickstart trains one and keeps it"


def _memory():
    import psutil

    free = psutil.virtual_memory().available
    value = f"{console.size(free)} free of {console.size(psutil.virtual_memory().total)}"
    if free < MEMORY_NEEDED:
        return "fault", value, f"free {console.size(MEMORY_NEEDED)}, or make the batch smaller: --config.data.global_batch=16"
    return "ok", value, ""


def _disk():
    free = shutil.disk_usage(".").free
    value = f"{console.size(free)} free in {Path.cwd()}"
    return (
        ("ok", value, "")
        if free > DISK_NEEDED
        else ("fault", value, f"free {console.size(DISK_NEEDED)}, or use --out on another disk")
    )


def _tokenizer():
    from data_pipelines.tokenizer import load_tokenizer

    try:
        return "ok", f"the tiny tokenizer has {len(load_tokenizer('tiny'))} words", ""
    except UserError as error:
        return "fault", str(error), "reinstall plum_jax: its package data is missing"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="doctor"))
