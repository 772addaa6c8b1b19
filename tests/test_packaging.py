"""What an installation needs: versions that fit together, package data, modules behind the commands."""

import fnmatch
import importlib.util
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from plum_jax import cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def arguments():
    """Keyword arguments of setup() in setup.py."""
    captured = {}
    fake = types.ModuleType("setuptools")
    fake.find_packages, fake.setup = (lambda include: include), (lambda **kwargs: captured.update(kwargs))
    real = sys.modules.get("setuptools")
    sys.modules["setuptools"] = fake
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        del sys.modules["setuptools"]
        if real is not None:
            sys.modules["setuptools"] = real
    return captured


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line[:1] != "#")}


def test_constraints_pin_every_requirement_inside_its_range(arguments):
    pinned = pins()
    for line in [*arguments["install_requires"], *arguments["extras_require"]["test"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonical(requirement.name)]), line


def test_core_installs_neither_torch_nor_tensorflow(arguments):
    core = {canonical(Requirement(line).name) for line in arguments["install_requires"]}
    assert not core & {"torch", "tensorflow", "gradio"}
    assert arguments["extras_require"].keys() == {"cuda", "tpu", "plan", "convert", "data", "demo", "gcs", "test"}


def test_every_folder_with_code_is_a_package():
    for top in ("plum_jax", "data_pipelines", "configs"):
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), folder


def test_package_data_covers_every_file_that_is_not_code(arguments):
    for package in ("plum_jax", "data_pipelines"):
        patterns = arguments["package_data"][package]
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                name = path.relative_to(ROOT / package).as_posix()
                assert any(fnmatch.fnmatch(name, pattern.replace("**/", "")) for pattern in patterns), name


def test_every_command_has_its_module():
    entries = [e for entry in cli.COMMANDS.values() for e in (entry.values() if isinstance(entry, dict) else [entry])]
    for module, _ in entries:
        assert importlib.util.find_spec(module) is not None, module


def test_importing_the_package_starts_nothing():
    code = "import sys, plum_jax, data_pipelines, configs; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_make_targets_do_their_own_set_up():
    text = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test", "lint", "bench"):
        assert re.search(rf"^{target}: (lint|\$\(VENV\)/(core|test)\.stamp)$", text, re.M), target
