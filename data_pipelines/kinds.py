"""The data sets of training by name: the class that reads each, and which of them stand for a family."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """A data set: the class that reads it, imported when it is needed, and what that takes beside root, split, per_image."""

    family: str
    place: str  # "module:Class"
    options: tuple[tuple[str, object], ...] = ()


def _kinds(family, place, *names):
    return {name: Kind(family, place, (("dataset", name),)) for name in names}


KINDS = {
    **_kinds("semantic", "data_pipelines.semantic:LabelMapSource", "ade20k", "cocostuff", "mapillary"),
    **_kinds("semantic", "data_pipelines.part_annotations:PartAnnotationSource", "paco_lvis", "pascal_part", "partimagenet"),
    **_kinds("refer", "data_pipelines.refer:ReferSource", "refclef", "refcoco", "refcoco+", "refcocog", "grefcoco"),
    "vqa": Kind("vqa", "data_pipelines.vqa:Vqa"),
    "reason": Kind("reason", "data_pipelines.reason:ReasonSeg"),
    "explanatory": Kind("explanatory", "data_pipelines.explanatory:Explanatory"),
}
FAMILIES = {  # the data sets that stand for a family, in equal parts, as in the reference's runs (D 4.2, 4.3)
    "semantic": ("ade20k", "cocostuff", "pascal_part", "paco_lvis", "mapillary"),
    "refer": ("refclef", "refcoco", "refcoco+", "refcocog"),
    "vqa": ("vqa",),
    "reason": ("reason",),
    "explanatory": ("explanatory",),
}
WITHOUT_MASKS = ("vqa",)  # families
