"""TFDS builder of the vqa family: conversations in LLaVA's format."""

from data_pipelines.tfds_builders.common import FamilyBuilder, configs


class Builder(FamilyBuilder):
    BUILDER_CONFIGS = configs("vqa")
