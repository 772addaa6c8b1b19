"""Names of the sources that `plum data build` and the TFDS builders know. A source is imported when it is used."""

import functools
import importlib

from plum_jax.errors import UserError

LABEL_MAPS = "data_pipelines.semantic:LabelMapSource"
PARTS = "data_pipelines.part_annotations:PartAnnotationSource"
REFER = "data_pipelines.refer:ReferSource"
EXPLANATORY = "data_pipelines.partonomy.stored:PartonomyRecords"
SOURCES = {  # name -> (family, module:Class, arguments that the name stands for)
    **{name: ("semantic", LABEL_MAPS, {"dataset": name}) for name in ("ade20k", "cocostuff", "mapillary")},
    **{name: ("semantic", PARTS, {"dataset": name}) for name in ("paco_lvis", "pascal_part", "partimagenet")},
    **{name: ("refer", REFER, {"dataset": name}) for name in ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco")},
    "reason_seg": ("reason", "data_pipelines.reason:ReasonSeg", {}),
    "partonomy": ("explanatory", EXPLANATORY, {}),
    "llava_instruct": ("vqa", "data_pipelines.vqa:Vqa", {}),
}


def find_source(name):
    """Name or module:Class -> what makes the source of a root. UserError when there is none."""
    return functools.partial(source_class(name), **(SOURCES[name][2] if name in SOURCES else {}))


def source_class(name):
    path = SOURCES[name][1] if name in SOURCES else name
    module, colon, attribute = path.partition(":")
    if not colon:
        raise UserError(f"{name!r} is no source; use {', '.join(sorted(SOURCES))}, or module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"source {name!r} cannot be imported ({error}); check the name and PYTHONPATH") from error
