"""TFDS builder of the refer family: refCOCO, refCOCO+, refCOCOg, refCLEF and gRefCOCO."""

from data_pipelines.tfds_builders.common import FamilyBuilder, configs


class Builder(FamilyBuilder):
    BUILDER_CONFIGS = configs("refer")
