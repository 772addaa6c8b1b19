"""Sources for building and reading builds: those of `kinds.KINDS` by name, and any other as module:Class."""

import importlib
import inspect

from data_pipelines.kinds import KINDS
from plum_jax.errors import UserError


def open_named(name, root, split, options):
    """Name or module:Class -> the source of this data. UserError for a name or an option that does not exist."""
    make = source_class(name)
    check_options(name, make, options)
    fixed = dict(KINDS[name].options) if name in KINDS else {}
    return make(root, **{**fixed, "split": split, **options})


def source_class(name):
    module, colon, attribute = (KINDS[name].place if name in KINDS else name).partition(":")
    if not colon:
        raise UserError(f"{name!r} is no source; use {', '.join(KINDS)}, or module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"source {name!r} cannot be imported ({error}); check the name and PYTHONPATH") from error
    if not isinstance(found, type) or not hasattr(found, "sample"):
        raise UserError(f"source {name!r} is no class with a method sample; see Source in data_pipelines/record.py")
    return found


def options_of(function):
    """Names of its keyword arguments."""
    return [name for name, value in inspect.signature(function).parameters.items() if value.kind is value.KEYWORD_ONLY]


def check_options(name, function, options):
    """UserError unless `function` has arguments of these names."""
    known = [option for option in options_of(function) if option != "split"]
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no argument {option}; it has {', '.join(known) or 'none'}")
    if not isinstance(options.get("dataset", ""), str):
        raise UserError(f"dataset is {options['dataset']!r}; give a name")
