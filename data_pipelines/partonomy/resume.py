"""An output folder that is made beside its place and renamed at the end; a killed run of the same arguments goes on in it."""

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

from data_pipelines.partonomy.records import question_file
from plum_jax.errors import UserError

LOCK, WORK, DATA = "lock", "work", "data"  # in the folder .NAME.questions-<fingerprint>


def find_existing(out, maker, fingerprint, overwrite):
    """The dataset.json that is in `out` already, made by `maker` from the same things; None when it has to be made.

    UserError when `out` holds anything else, unless it is a dataset of the same maker and `overwrite`.
    """
    out = Path(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not out.is_dir():
        raise UserError(f"{out}: is a file; give --out a folder")
    try:
        dataset = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
        arguments = dataset["arguments"]
        ours = arguments["maker"].rpartition(" ")[0] == maker.rpartition(" ")[0]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f"{out}: holds other files, which {maker.rpartition(' ')[0]} will not replace; give --out a new folder")
    if overwrite:
        return None
    if arguments.get("fingerprint") == fingerprint:
        if not isinstance(dataset.get("splits"), dict) or not all(
            question_file(out, name).is_file() for name in dataset["splits"]
        ):
            raise UserError(f"{out}: is incomplete or edited; give another --out, or --overwrite to replace it")
        return dataset
    raise UserError(f"{out}: holds questions made from other things; give another --out, or --overwrite to replace it")


@contextlib.contextmanager
def resumable_folder(out, fingerprint):
    """Yields (work, data): `data` becomes `out` when the block ends without an error. A UserError removes both.

    Only one process at a time can make the same folder; what killed runs with other arguments left is removed.
    """
    out = Path(out).resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for stale in out.parent.glob(f".{out.name}.questions-*"):
            if stale.name != f".{out.name}.questions-{fingerprint[:16]}":
                with contextlib.suppress(BlockingIOError, OSError), _locked(stale):
                    shutil.rmtree(stale, ignore_errors=True)
        place = out.parent / f".{out.name}.questions-{fingerprint[:16]}"
        for folder in (place / WORK, place / DATA):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}: {error.filename}); give another --out") from error
    try:
        with _locked(place):
            try:
                yield place / WORK, place / DATA
            except UserError:
                shutil.rmtree(place, ignore_errors=True)
                raise
            if out.exists():
                old = out.with_name(f".{out.name}.replaced-{os.getpid()}")
                os.replace(out, old)
                os.replace(place / DATA, out)
                shutil.rmtree(old)
            else:
                os.replace(place / DATA, out)
            shutil.rmtree(place, ignore_errors=True)
    except BlockingIOError as error:
        raise UserError(f"{out}: is being written by another run of the same command; wait for it") from error


@contextlib.contextmanager
def _locked(folder):
    """BlockingIOError when another living process has the lock of `folder`."""
    with open(folder / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
