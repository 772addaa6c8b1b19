"""TFDS builder of the semantic family: ADE20K, COCO-Stuff, Mapillary Vistas, PACO-LVIS, PASCAL-Part and PartImageNet."""

from data_pipelines.tfds_builders.common import FamilyBuilder, configs


class Builder(FamilyBuilder):
    BUILDER_CONFIGS = configs("semantic")
