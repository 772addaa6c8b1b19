"""TFDS builder of the reason family: ReasonSeg."""

from data_pipelines.tfds_builders.common import FamilyBuilder, configs


class Builder(FamilyBuilder):
    BUILDER_CONFIGS = configs("reason")
