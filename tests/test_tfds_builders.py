"""TFDS reads a build, and its builders write the same records, with TensorFlow neither installed nor imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from build_fixtures import assert_equal_samples
from fixtures_partonomy import write_folder

from data_pipelines.explanatory import Explanatory
from data_pipelines.layout import config_name
from data_pipelines.record import FAMILIES
from data_pipelines.sources import KINDS

ROOT = Path(__file__).resolve().parent.parent
BUILD_AND_READ = """
import json, sys
import numpy as np
from data_pipelines.build import main
raw, out = sys.argv[1:]
assert main(["explanatory", "--root", raw, "--out", out + "/ours", "--shard-records", "3", "--workers", "2"]) == 0
from data_pipelines.arrayrecord import ArrayRecordSource, TfdsSource
direct = ArrayRecordSource(out + "/ours", verify=True)
assert "tensorflow_datasets" not in sys.modules  # only reading through it needs it
import tensorflow_datasets as tfds
from data_pipelines.tfds_builders.plum_explanatory.plum_explanatory_dataset_builder import Builder
ours = tfds.data_source("plum_explanatory/partonomy", data_dir=out + "/ours", split="train")
builder = Builder(data_dir=out + "/theirs", config="explanatory", file_format="array_record")
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
theirs = builder.as_data_source("train")
assert len(ours) == len(theirs) == len(direct) == 7
for index in range(7):
    key, image, record = direct.stored(index)
    for fields in (ours[index], theirs[index]):
        assert (fields["key"].decode(), fields["image"], json.loads(fields["record"])) == (key, image, record)
two_each = ArrayRecordSource(out + "/ours", per_image=2)
for source in (TfdsSource(ours, per_image=2), TfdsSource(theirs, per_image=2)):
    assert (source.family, source.grounded, len(source)) == ("explanatory", True, 7)
    for index in range(7):
        one, other = (s.sample(index, np.random.default_rng(index)) for s in (source, two_each))
        assert one.dialogues == other.dialogues and one.masks == other.masks and one.image.data == other.image.data
found = sorted({name.partition(".")[0] for name in sys.modules} & {"tensorflow", "torch", "jax", "apache_beam"})
print(json.dumps(found))
"""


def test_direct_reading_and_data_source_agree_without_tensorflow(tmp_path):
    write_folder(tmp_path / "raw", images=7)
    done = subprocess.run(
        [sys.executable, "-c", BUILD_AND_READ, str(tmp_path / "raw"), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_builder_with_its_data_sets(family, tmp_path):
    import importlib

    name = f"plum_{family}"
    module = importlib.import_module(f"data_pipelines.tfds_builders.{name}.{name}_dataset_builder")
    configs = [config_name(source) for source in KINDS if KINDS[source].family == family]
    assert [config.name for config in module.Builder.BUILDER_CONFIGS] == configs and configs
    for config in configs:
        builder = module.Builder(data_dir=tmp_path, config=config, file_format="array_record")
        assert builder.info.full_name == f"{name}/{config}/1.0.0"
        assert builder.info.metadata["family"] == family
        assert sorted(builder.info.features) == ["image", "key", "record"]


def test_a_builder_leaves_out_bad_records_and_missing_splits(tmp_path):
    import tensorflow_datasets as tfds

    from data_pipelines.arrayrecord import TfdsSource
    from data_pipelines.tfds_builders.plum_explanatory.plum_explanatory_dataset_builder import Builder

    write_folder(tmp_path / "raw", images=4)
    (tmp_path / "raw/images/train_1.png").write_bytes(b"no image")
    builder = Builder(data_dir=tmp_path / "out", config="explanatory", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "raw"))
    assert list(builder.info.splits) == ["train"]
    source, raw = TfdsSource(builder.as_data_source("train")), Explanatory(tmp_path / "raw")
    assert len(source) == 3
    for index, place in enumerate((0, 2, 3)):
        assert_equal_samples(source.sample(index, np.random.default_rng(1)), raw.sample(place, np.random.default_rng(1)))
