"""What the TFDS builders of all families share. Needs the extra `data` (tensorflow-datasets); TensorFlow is never imported."""

import dataclasses
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_pipelines.build_sources import open_named, source_class
from data_pipelines.kinds import KINDS
from data_pipelines.layout import ABOUT, VERSION, config_name
from data_pipelines.storing import BadRecord, Recorder, is_storable
from plum_jax.errors import UserError


@dataclasses.dataclass(eq=False, kw_only=True)
class SourceConfig(tfds.core.BuilderConfig):
    """One data set of a family.

    Args:
      source: its name in `kinds.KINDS`, or module:Class.
      options: arguments of the source.
      splits: those that the raw data may have; one that it lacks is left out with a warning.
      draws: samples of each record, for a source that cannot store records whole.
    """

    source: str
    options: dict = dataclasses.field(default_factory=dict)
    splits: tuple[str, ...] = ("train", "val", "test")
    draws: int = 4


def configs(family):
    return [
        SourceConfig(name=config_name(name), description=name, source=name) for name in KINDS if KINDS[name].family == family
    ]


class FamilyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the records of a source in their order: key, image (bytes of the file, b"" for none), record (JSON).

    The image stays encoded: TFDS's own image feature would ignore the orientation in its EXIF block, and the masks would not
    fit it.
    """

    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Give the folder of the raw data, laid out as in docs/data, as manual_dir."

    def _info(self):
        text, config = tfds.features.Text, self.builder_config
        source = source_class(config.source)
        facts = {"source": config.source, "options": config.options, "whole_records": is_storable(source)}
        facts |= {"family": source.family, "grounded": source.grounded, "dataset": config.description or config.name}
        return tfds.core.DatasetInfo(
            builder=self,
            description=ABOUT,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Tensor(shape=(), dtype=np.object_), "key": text(), "record": text()}
            ),
            metadata=tfds.core.MetadataDict(**facts),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        config, root, found, faults = self.builder_config, Path(str(dl_manager.manual_dir)), {}, []
        for split in config.splits:
            try:
                source = open_named(config.source, root, split, config.options)
            except UserError as error:
                faults.append(str(error))
                continue
            found[split] = self._generate_examples(Recorder(source, root, config.options, config.draws))
        if not found:
            raise UserError(f"no split can be read; the first: {faults[0]}")
        for fault in faults:
            logging.warning("left out: %s", fault)
        return found

    def _generate_examples(self, recorder):
        for index in range(len(recorder.source)):
            try:
                key, image, record = recorder.stored(index)
            except BadRecord as bad:
                logging.warning("record %d left out, %s: %s", index, bad.reason, bad)
                continue
            yield index, {"key": key, "image": image, "record": record}
