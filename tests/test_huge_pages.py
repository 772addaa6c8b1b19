"""The process that `plum` starts asks for huge pages, once, and is otherwise the one that was started."""

import os
import subprocess
import sys

import pytest

from plum_jax import huge_pages

SHOW = """
import os, sys
from plum_jax import huge_pages
huge_pages.MODE, huge_pages._knows_tunable = sys.argv[1], lambda: True
pid = os.environ.setdefault("FIRST", str(os.getpid()))
huge_pages.ask_for_huge_pages()
print([sys.argv[2:], pid == str(os.getpid()), os.environ.get("GLIBC_TUNABLES")])
"""


@pytest.mark.parametrize(
    ("mode", "tunables", "wanted"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.perturb=3", "glibc.malloc.perturb=3:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("[always] madvise never", None, None),
        ("always madvise [never]", None, None),
        (None, None, None),
    ],
)
def test_it_is_asked_for_where_that_changes_something(tmp_path, mode, tunables, wanted):
    file = tmp_path / "enabled"
    if mode is not None:
        file.write_text(mode)
    env = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    env |= {} if tunables is None else {"GLIBC_TUNABLES": tunables}
    command = [sys.executable, "-c", SHOW, str(file), "two words", ""]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str([["two words", ""], True, wanted])]


def test_an_interpreter_that_drops_the_tunable_is_started_again_once(tmp_path):
    mode, wrapper = tmp_path / "enabled", tmp_path / "python"
    mode.write_text("always [madvise] never")
    wrapper.write_text(f'#!/bin/sh\nunset GLIBC_TUNABLES\nexec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    show = SHOW.replace("pid =", f"sys.executable = {str(wrapper)!r}\npid =", 1)
    done = subprocess.run([wrapper, "-c", show, str(mode)], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [str([[], True, None])]


@pytest.mark.parametrize(
    ("libc", "wanted"), [(("glibc", "2.36"), True), (("glibc", "2.34"), False), (("", ""), False), (("musl", "1.2"), False)]
)
def test_it_is_left_alone_where_the_c_library_does_not_know_it(monkeypatch, libc, wanted):
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: libc)
    assert huge_pages._knows_tunable() == wanted


def test_an_interpreter_that_cannot_be_started_again_goes_on(monkeypatch, tmp_path):
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never")
    monkeypatch.setattr(huge_pages, "MODE", str(file))
    monkeypatch.setattr(huge_pages, "_knows_tunable", lambda: True)
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    huge_pages.ask_for_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
