"""Where a build lies and what its files are called: the folders and file names of TFDS, so that TFDS reads it as it is.

OUT/plum_<family>/<data set>/1.0.0/ holds, for every split, plum_<family>-<split>.array_record-00000-of-00012 and so on,
build.json, errors.csv, parts/ (one small JSON file for each shard: its hash, counts and errors), and TFDS's dataset_info.json
and features.json.
"""

import re
from pathlib import Path

from plum_jax.run_record import write_json

VERSION = "1.0.0"
SPLIT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
ABOUT = "Images as encoded on disk, with all their questions or annotations as JSON; masks are COCO run lengths."


def builder_name(family):
    return f"plum_{family}"


def config_name(dataset):
    """Name of a data set as TFDS accepts it: "refcoco+" becomes "refcoco_plus"."""
    return re.sub(r"\W", "_", dataset.replace("+", "_plus"), flags=re.ASCII)


def build_folder(out, family, dataset):
    return Path(out) / builder_name(family) / config_name(dataset) / VERSION


def shard_name(family, split, number, count):
    return f"{builder_name(family)}-{split}.array_record-{number:05d}-of-{count:05d}"


def write_tfds_metadata(folder, family, dataset, splits, metadata):
    """splits: {name: [(records, bytes) of each shard]}. metadata: what `TfdsSource` must know."""
    info = {
        "configDescription": dataset,
        "configName": config_name(dataset),
        "description": ABOUT,
        "fileFormat": "array_record",
        "moduleName": f"data_pipelines.tfds_builders.{builder_name(family)}.{builder_name(family)}_dataset_builder",
        "name": builder_name(family),
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": name,
                "numBytes": str(sum(size for _, size in shards)),
                "shardLengths": [str(records) for records, _ in shards],
            }
            for name, shards in sorted(splits.items())
        ],
        "version": VERSION,
    }
    write_json(Path(folder) / "dataset_info.json", info)
    write_json(Path(folder) / "features.json", _features())
    write_json(Path(folder) / "metadata.json", metadata)


def _features():
    kind = "tensorflow_datasets.core.features"
    text = {"pythonClassName": f"{kind}.text_feature.Text", "text": {}}
    image = {"pythonClassName": f"{kind}.tensor_feature.Tensor", "tensor": {"dtype": "string", "encoding": "none", "shape": {}}}
    features = {"image": image, "key": text, "record": text}
    return {"featuresDict": {"features": features}, "pythonClassName": f"{kind}.features_dict.FeaturesDict"}
