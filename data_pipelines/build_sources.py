"""Names of the sources that `plum data build` and the TFDS builders know. A source is imported when it is used."""

import importlib
import inspect

from plum_jax.errors import UserError

LABEL_MAPS = "data_pipelines.semantic:LabelMapSource"
PARTS = "data_pipelines.part_annotations:PartAnnotationSource"
REFER = "data_pipelines.refer:ReferSource"
EXPLANATORY = "data_pipelines.explanatory:Explanatory"
SOURCES = {  # name -> (family, module:Class, arguments that the name stands for)
    **{name: ("semantic", LABEL_MAPS, {"dataset": name}) for name in ("ade20k", "cocostuff", "mapillary")},
    **{name: ("semantic", PARTS, {"dataset": name}) for name in ("paco_lvis", "pascal_part", "partimagenet")},
    **{name: ("refer", REFER, {"dataset": name}) for name in ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco")},
    "reason_seg": ("reason", "data_pipelines.reason:ReasonSeg", {}),
    "partonomy": ("explanatory", EXPLANATORY, {}),
    "llava_instruct": ("vqa", "data_pipelines.vqa:Vqa", {}),
}


def open_source(name, root, split, options):
    """Name or module:Class -> the source of this data. UserError for a name or an option that does not exist."""
    make = source_class(name)
    check_options(name, make, options)
    return make(root, **{**(SOURCES[name][2] if name in SOURCES else {}), "split": split, **options})


def check_options(name, function, options):
    """UserError unless `function` has arguments of these names."""
    parameters = inspect.signature(function).parameters
    known = [key for key, value in parameters.items() if value.kind is value.KEYWORD_ONLY and key != "split"]
    for key in options:
        if key not in known and not any(value.kind is value.VAR_KEYWORD for value in parameters.values()):
            raise UserError(f"{name} has no argument {key}; it has {', '.join(known) or 'none'}")


def source_class(name):
    path = SOURCES[name][1] if name in SOURCES else name
    module, colon, attribute = path.partition(":")
    if not colon:
        raise UserError(f"{name!r} is no source; use {', '.join(sorted(SOURCES))}, or module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"source {name!r} cannot be imported ({error}); check the name and PYTHONPATH") from error
