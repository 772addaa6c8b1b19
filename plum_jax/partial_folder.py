"""An output folder that has its name only when it is complete."""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from plum_jax.errors import UserError


@contextlib.contextmanager
def partial_folder(out):
    """An empty folder `.OUT.partial` beside OUT; it becomes OUT when the block ends, and is removed when that fails.

    What a killed program left there is cleared. SIGTERM unwinds as Ctrl-C does. UserError when another program is writing
    the same OUT, or OUT has appeared meanwhile.
    """
    out = Path(out).absolute()
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        _lock(lock, partial, out)
        for entry in partial.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        try:
            with _terminated_as_exit():
                yield partial
            if os.path.lexists(out):
                raise UserError(f"{out}: was written by another program meanwhile; choose another --out")
            os.replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _lock(lock, partial, out):
    """The kernel lets go of the lock when this process ends, whatever way. The folder may have been renamed while we waited."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == partial.stat().st_ino:
            return
    except (BlockingIOError, FileNotFoundError):
        pass
    raise UserError(f"{out}: is being written by another program; wait for it, or choose another --out")


@contextlib.contextmanager
def _terminated_as_exit():
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:  # another thread, or a training loop that hears the signal itself
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
