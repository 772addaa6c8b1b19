"""TFDS builder of the explanatory family: PARTONOMY questions."""

from data_pipelines.tfds_builders.common import FamilyBuilder, configs


class Builder(FamilyBuilder):
    BUILDER_CONFIGS = configs("explanatory")
