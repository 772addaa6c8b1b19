"""Memory in huge pages (2 MiB) for the process and all that it starts.

XLA on a CPU takes the memory of a program's intermediate values anew for each run and gives it back afterwards, and each run
then faults it in again, page by page: a third of the tiny model's training step with pages of 4 KiB. glibc asks for huge pages
(madvise) only where its tunable says so when a process starts; in the mode `madvise` the kernel gives them to no one else.
"""

import contextlib
import os
import platform
import sys

MODE = "/sys/kernel/mm/transparent_hugepage/enabled"  # "always [madvise] never"
TUNABLE = "glibc.malloc.hugetlb"
GLIBC = (2, 35)  # knows the tunable
STARTED = "PLUM_STARTED_AGAIN"  # environment: the process that was, as its interpreter may be a wrapper that drops the tunable


def ask_for_huge_pages():
    """Starts this very command again with the tunable set, in the same process (exec), where that changes anything.

    To be called before anything is imported or opened that should not happen twice. Does nothing where the kernel has no huge
    pages that must be asked for, where the C library does not know the tunable, and where GLIBC_TUNABLES has it already: a
    value of 0 switches it off.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    again = os.environ.get(STARTED) == str(os.getpid())
    if again or TUNABLE in tunables or "[madvise]" not in _read(MODE) or not _knows_tunable():
        return
    os.environ[STARTED] = str(os.getpid())
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    with contextlib.suppress(OSError, ValueError):  # an interpreter without a name of its own: this one goes on
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _knows_tunable():
    name, version = platform.libc_ver()
    numbers = version.split(".")
    return name == "glibc" and all(x.isdecimal() for x in numbers) and tuple(map(int, numbers)) >= GLIBC


def _read(file):
    try:
        with open(file, encoding="ascii") as stream:
            return stream.read()
    except OSError:  # no Linux, or a kernel without huge pages
        return ""
