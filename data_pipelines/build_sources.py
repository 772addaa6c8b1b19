"""Names of the sources that `plum data build` knows. A source is imported when it is used."""

import functools
import importlib

from plum_jax.errors import UserError

SOURCES = {  # name -> (module:Class, arguments that the name stands for)
    "partonomy": ("data_pipelines.partonomy.stored:PartonomyRecords", {})
}


def find_source(name):
    """Name or module:Class -> what makes the source of a root. UserError when there is none."""
    return functools.partial(source_class(name), **SOURCES.get(name, (name, {}))[1])


def source_class(name):
    module, colon, attribute = SOURCES.get(name, (name, {}))[0].partition(":")
    if not colon:
        raise UserError(f"{name!r} is no source; use {', '.join(sorted(SOURCES))}, or module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"source {name!r} cannot be imported ({error}); check the name and PYTHONPATH") from error
