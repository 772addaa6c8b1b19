"""Configs at the edge: load `configs/tiny.py:arg`, apply typed `--config.a.b=value` overrides, write and read JSON."""

import ast
import difflib
import importlib.util
import json
import traceback
from pathlib import Path

from plum_jax.errors import UserError
from plum_jax.switches import SWITCHES

# Keys that may change between two runs of one folder: they alter how the work is done, or how much of it, not what it is.
RESUMABLE = (
    "train.", "mesh.", "eval.", "vqa.", "checkpoint.", "data.workers", "data.cache", "data.folder", "data.root",
    "data.micro_batches", "model.remat", "base",
)  # fmt: skip
# Keys that were added later, with the value that stands for what the program did before: a run folder without them has it.
# The switches are such keys too, with their defaults.
ADDED = {
    **{name: values[0] for name, values in SWITCHES.items()},
    "data.sources": (), "model.grounding": "span", "model.llama.int8": False, "model.logits_dtype": "float32",
    "model.projector": "linear",
}  # fmt: skip
ANY_LENGTH = {  # tuples whose length is a choice
    "model.sam.global_blocks": int, "data.sources": dict, "data.grounded": int, "eval.text_sources": dict,
    "eval.question_types": str,
}  # fmt: skip


def add_config_flag(parser, default="configs/tiny.py"):
    """Adds --config to an argparse parser, with the hint about overrides."""
    parser.add_argument(
        "--config",
        default=default,
        metavar="FILE.py[:ARG]",
        help=f"config file (default: {default or 'that of the checkpoint'})",
    )
    parser.epilog = (
        "Any key of the config can be overridden: --config.optim.lr=1e-4 --config.train.steps=100 "
        "--config.data.folder=DIR --config.mesh.fsdp=2 --config.data.micro_batches=4 --config.seed=1"
    )


def parse_args(parser, argv):
    """Like parser.parse_args, but collects `--config.a.b=value` (or `--config.a.b value`).

    Returns:
      (namespace, list of 'a.b=value').
    """
    namespace, rest = parser.parse_known_args(_join_overrides(argv))
    overrides = [item[len("--config.") :] for item in rest if item.startswith("--config.")]
    unknown = [item for item in rest if not item.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return namespace, overrides


def _join_overrides(argv):
    """['--config.a', '1'] -> ['--config.a=1']."""
    joined, argv = [], list(argv)
    while argv:
        item = argv.pop(0)
        if item.startswith("--config.") and "=" not in item and argv:
            item = f"{item}={argv.pop(0)}"
        joined.append(item)
    return joined


def load_config(spec, overrides=()):
    """Loads a config and applies overrides.

    Args:
      spec: 'path/to/file.py' or 'path/to/file.py:arg'; relative to the working folder, else to the installed `configs`
        package ('configs/tiny.py', 'tiny.py' and 'tiny' all name the one that ships).
      overrides: ['optim.lr=1e-4', ...]; each value is read as the type that the config has there.

    Returns:
      ml_collections.ConfigDict.

    Raises:
      UserError: no such file, one that does not run, unknown key (with the nearest name), a value of another type, a wrong
        argument.
    """
    path, _, arg = spec.partition(":")
    file = _find(path)
    config = _run_file(file, arg)
    for override in overrides:
        apply_override(config, override)
    return config


def _run_file(file, arg):
    """get_config(arg) of a Python file. Whatever the file raises is the user's to fix: file and line are named."""
    import ml_collections

    module_spec = importlib.util.spec_from_file_location(f"plum_config_{file.stem}", file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(arg) if hasattr(module, "get_config") else None
    except Exception as error:  # the file is the user's program: it may raise anything, and what it raised is in the message
        if arg and isinstance(error, ValueError):
            raise UserError(f"{file}:{arg}: {error}; change what follows the colon") from error
        what = error.msg if isinstance(error, SyntaxError) else str(error).partition("\n")[0]
        raise UserError(f"{file}{_line(file, error)}: {type(error).__name__}: {what}; correct the config file") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{file}: defines no get_config(arg) that returns a ConfigDict; see configs/tiny.py for the form")
    return config


def _line(file, error):
    """', line 7': where the file is wrong or raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    return f", line {lines[-1]}" if lines and lines[-1] else ""


def _find(path):
    name = Path(path).name
    shipped = Path(importlib.util.find_spec("configs").origin).parent
    for candidate in (Path(path), shipped / name, shipped / f"{name}.py"):
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate
    have = ", ".join(
        f"configs/{p.name}" for p in sorted(shipped.glob("*.py")) if "def get_config" in p.read_text(encoding="utf-8")
    )
    raise UserError(f"{path}: no such config file; give a .py file or one that ships: {have}")


def apply_override(config, override):
    """One 'a.b=value' onto a ConfigDict, in place. UserError for an unknown key or a value of another type."""
    key, equals, text = override.partition("=")
    known = flatten(config)
    if not equals:
        raise UserError(f"--config.{key}: has no value; write --config.{key}=VALUE")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        inside = [name for name in known if name.startswith(f"{key}.")]
        hint = f"it holds {', '.join(inside[:6])}" if inside else f"did you mean --config.{near[0]}?"
        raise UserError(f"--config.{key}: no such key in the config; {hint}")
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = _parse(key, text, known[key])


def _parse(key, text, current):
    """Text of the command line -> a value of the type of `current`."""
    kind = type(current)
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise UserError(f"--config.{key}: {text!r} is not a bool; write true or false")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: brackets nested without end
        value = text
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if current is not None and type(value) is not kind:
        raise UserError(f"--config.{key}: {text!r} is not of type {kind.__name__}; the config has {current!r} there")
    return _like(key, value, current) if kind is tuple else value


def _like(key, value, current):
    """A tuple whose elements have the types of those of `current`, and its length."""
    kinds = [type(x) for x in current]
    if key in ANY_LENGTH:
        kinds = [ANY_LENGTH[key]] * len(value)
    if len(value) == len(kinds):
        value = tuple(float(x) if (type(x), kind) == (int, float) else x for x, kind in zip(value, kinds, strict=True))
    if [type(x) for x in value] != kinds:
        raise UserError(f"--config.{key}: {value!r} is not of the form of {current!r}, which the config has there; write it so")
    return value


def flatten(config):
    """ConfigDict or dictionary -> {'optim.lr': 0.001, ...} in sorted order."""
    flat = {}
    for key in sorted(config):
        value = config[key]
        if hasattr(value, "items"):
            flat.update({f"{key}.{rest}": inner for rest, inner in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def config_json(config):
    """ConfigDict -> indented JSON text (tuples become lists)."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True) + "\n"


def config_from_json(text):
    """The inverse of `config_json`: lists become tuples, which is what configs hold. Also takes the parsed dictionary."""
    import ml_collections

    return ml_collections.ConfigDict(_tuples(json.loads(text) if isinstance(text, str) else text))


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, (list, tuple)) else value


def differences(config, other, ignore=RESUMABLE):
    """Sorted names of the keys whose values differ, except those that start with one of `ignore`; ADDED ones may be missing."""
    a, b = flatten(_tuples(json.loads(config.to_json_best_effort()))), flatten(_tuples(json.loads(other.to_json_best_effort())))
    missing = object()
    a, b = ({**{key: ADDED.get(key, missing) for key in a.keys() | b.keys()}, **flat} for flat in (a, b))
    return [key for key in sorted(a) if a[key] != b[key] and not key.startswith(tuple(ignore))]
