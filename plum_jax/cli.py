"""The console script `plum`: a table of commands, and how every command ends (exit status, one-sentence errors)."""

import argparse
import contextlib
import errno
import glob
import importlib.util
import os
import sys
import traceback

from plum_jax import processes
from plum_jax.errors import UserError
from plum_jax.huge_pages import ask_for_huge_pages

COMMANDS = {
    "quickstart": ("plum_jax.quickstart", "synthetic data, train the tiny model, evaluate, predict, report"),
    "train": ("plum_jax.train", "train any config; the same command resumes"),
    "evaluate": ("plum_jax.evaluate", "score a checkpoint on a benchmark"),
    "score": {
        "partonomy": ("plum_jax.score", "prediction files of any model -> the full table; no model needed"),
        "refer": ("plum_jax.evaluation.refer", "the same for referring expressions"),
        "reason": ("plum_jax.evaluation.reason", "the same for ReasonSeg"),
        "semantic": ("plum_jax.evaluation.semantic", "the same for label maps"),
        "vqa": ("plum_jax.evaluation.vqa", "the same for TextVQA and GQA"),
        "pope": ("plum_jax.evaluation.pope", "the same for POPE"),
        "hallucination": ("plum_jax.evaluation.hallucination", "the same for parts that are there or not"),
    },
    "predict": ("plum_jax.predict", "images -> text, masks, COCO JSON, overlays"),
    "convert": ("plum_jax.convert.command", "PyTorch and Hugging Face checkpoints -> ours, and back"),
    "export": ("plum_jax.serving.command", "a checkpoint as programs and parameters for serving"),
    "data": {
        "make": ("data_pipelines.make", "render a synthetic PARTONOMY"),
        "questions": ("data_pipelines.questions", "annotated parts -> questions of all types"),
        "build": ("data_pipelines.build", "store data sets as checksummed ArrayRecord shards"),
        "verify": ("data_pipelines.arrayrecord", "compare the shards of a build with their checksums"),
        "check": ("data_pipelines.check", "read a data set and report every fault"),
        "stats": ("data_pipelines.stats", "count what a data set holds"),
        "show": ("data_pipelines.show", "one HTML page of samples with images, masks and answers"),
    },
    "plan": ("plum_jax.plan", "compile a config for a TPU slice that need not be there: memory, work, time"),
    "report": ("plum_jax.report", "a run or evaluations as a page, JSON and LaTeX tables"),
    "doctor": ("plum_jax.doctor", "device, versions, caches, disk, and the fix for each fault"),
}

GROUPS = {
    "score": "prediction files of any model -> the table of a benchmark; no model needed",
    "data": "make, build, check, count and show data sets",
}

FILE_FAULTS = {  # of the file system, wherever a command meets one
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; give another folder",
    errno.EEXIST: "something else has that name; give another one",
    errno.EISDIR: "is a folder; give the name of a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "is a link to itself; remove it",
    errno.EACCES: "change its permissions, or give another place",
    errno.EPERM: "change its permissions, or give another place",
    errno.EROFS: "give a place that can be written to",
    errno.ENOSPC: "free some space, then repeat the command",
    errno.EDQUOT: "free some space, then repeat the command",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then repeat the command",
}
ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")  # TPU, TPU, NVIDIA, AMD, WSL
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a write says so without the name of its file


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence (`run` prints it) instead of a block about the usage."""

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv=None):
    """Entry point of `plum`. Returns the exit status. Without argv this is the whole process, which gets huge pages."""
    if argv is None:
        ask_for_huge_pages()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(argv)
    except BrokenPipeError:  # of the table of commands; `run` has its own
        return _reader_left()


def _main(argv):
    table, path = COMMANDS, []
    while isinstance(table, dict):
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_usage(table, path), flush=True)
            return 0 if argv else 2
        if argv[0] == "--version":
            from plum_jax.run_record import versions

            print(f"plum_jax {versions().get('plum_jax', 'not installed')}")
            return 0
        if argv[0] not in table:
            print(f"plum: error: {_unknown(argv[0], table, path)}", file=sys.stderr)
            return 2
        path.append(argv.pop(0))
        table = table[path[-1]]
    return run(importlib.import_module(table[0]).main, argv, name=" ".join(path))


def _usage(table, path):
    lines = [f"usage: {' '.join(['plum', *path])} COMMAND [options]", ""]
    width = max(12, *(len(name) + 2 for name in table))
    for name, entry in table.items():
        if isinstance(entry, tuple):
            lines.append(f"  {name:<{width}}{entry[1]}")
        else:
            lines += [f"  {name:<{width}}{GROUPS[name]}:", f"  {'':<{width}}{', '.join(entry)}"]
    lines += [
        "",
        f"{' '.join(['plum', *path])} COMMAND --help shows the options of a command; --debug adds the traceback to an error.",
    ]
    return "\n".join(lines)


def _unknown(word, table, path):
    import difflib

    near = difflib.get_close_matches(word, table, n=1)
    what = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(table)}"
    return f"{' '.join([*path, word])!r} is not a command; {what}"


def run(main, argv=None, *, name=None):
    """Runs `main(argv) -> int | None` and turns what it raises into an exit status.

    UserError, and faults of the file system: one sentence on stderr, 2. Ctrl-C: 130. Anything else: one line, 1. `--debug`
    anywhere in argv shows the traceback. A module that also runs as `python -m` ends with `raise SystemExit(cli.run(main))`.

    Args:
      argv: default: those of the process, which then gets huge pages.
      name: what stands after `plum` in messages; default: the last word of the module's name.
    """
    if argv is None:
        ask_for_huge_pages()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [item for item in argv if item != "--debug"]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it announces that PyTorch is missing, which is as intended
    if importlib.util.find_spec("libtpu") and not any(map(glob.glob, ACCELERATORS)):
        _use_cpu()  # libtpu is here as a compiler; jax would warn that it finds no TPU
    name = name or main.__globals__["__spec__"].name.removesuffix(".__main__").rpartition(".")[2]
    try:
        return processes.leave(_flushed(main, argv))
    except KeyboardInterrupt as error:
        print(f"\nplum {name}: interrupted{processes.who()}{'; ' if error.args else ''}{error}", file=sys.stderr)
        return processes.leave(130, "interrupted")
    except BrokenPipeError:
        return processes.leave(_reader_left(), "the reader of its output went away")
    except Exception as error:  # the end of every command: its type and first line are printed, --debug shows the traceback
        if debug:
            traceback.print_exc()
        user = str(error) if isinstance(error, UserError) else _file_fault(error)
        sentence = user or f"{type(error).__name__}: {_first_line(error)}"
        hint = "" if user or debug else " (--debug shows the traceback)"
        other = processes.verdict(error)
        sentence, hint = (other, "") if other else (sentence, hint)
        print(f"plum {name}: error{processes.who()}: {sentence}{hint}", file=sys.stderr)
        return processes.leave(2 if user else 1, sentence)


def _use_cpu():
    """Unless the environment names platforms: by the environment, and by jax itself, which a tool may have imported already."""
    if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu" and "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _flushed(main, argv):
    """The exit status of `main`, once everything is written that it printed, also where --help ends it."""
    try:
        return int(main(argv) or 0)
    finally:
        sys.stdout.flush()


def _reader_left():
    """The reader of our output went away, as in `plum ... | head`: what is left goes nowhere. The exit status of a shell."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            with contextlib.suppress(OSError):  # a stream without a file
                os.dup2(nowhere, stream.fileno())
    return 141


def _file_fault(error):
    """What a user is told of a fault of the file system; "" of another error. Orbax and TensorStore have types of their own for
    a full disk, with the words of the system in them."""
    if isinstance(error, OSError) and error.errno in FILE_FAULTS and (error.filename or error.errno in FULL):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {FILE_FAULTS[error.errno]}"
    full = next((number for number in FULL if os.strerror(number) in str(error)), None)
    return f"{os.strerror(full)}; {FILE_FAULTS[full]}" if full else ""


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), "no message")


if __name__ == "__main__":
    raise SystemExit(main())
