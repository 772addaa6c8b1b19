"""Sources of any format -> one descriptor with image files and photographs; images that must not be used (D 1.7, D13)."""

import collections
import dataclasses
import os
import re
from pathlib import Path, PurePosixPath

from data_pipelines.partonomy.categories import read_yaml
from data_pipelines.partonomy.coco_sources import convert_coco
from data_pipelines.partonomy.core_source import convert_core
from data_pipelines.partonomy.descriptor import Descriptor, read_descriptor
from data_pipelines.partonomy.splits import photographs
from plum_jax.console import Progress
from plum_jax.errors import UserError


def convert(path, source, hierarchy=None):
    """A source -> (Descriptor, Counter of what was left out)."""

    def progress(items):
        return Progress(items, label="reading", unit="mask file" if source == "core" else "image")

    if (Path(path).is_dir()) != (source == "core"):
        raise UserError(f"{path}: is {'a folder' if source != 'core' else 'a file'}; --format {source} reads "
                        f"{'the folder of graph.yaml' if source == 'core' else 'a JSON file'}")  # fmt: skip
    if source == "descriptor":
        return read_descriptor(path), collections.Counter()
    if source == "core":
        return convert_core(path, progress=progress)
    return convert_coco(path, source, hierarchy=hierarchy, progress=progress)


def image_key(name):
    """What two names of a photograph have in common: the number of a COCO image, else the file name.

    'train2017/000000000139.jpg', 'COCO_val2014_000000000139.jpg' and '139' are the same image.
    """
    stem = PurePosixPath(name.replace("\\", "/")).name
    number = re.fullmatch(r"(?:COCO_\w+?_)?(\d{12})\.\w+|(\d+)", stem)
    return int(number[1] or number[2]) if number else stem


def gather(converted, folders, excluded, mapping):
    """{split: Descriptor} -> (one Descriptor, {photograph: split}, Counter of what was left out).

    Image paths become those of files: below folders[split], after `mapping` {old start: new start}. A photograph that an
    earlier split has is left out of a later one, and those whose `image_key` is in `excluded` everywhere.
    """
    instances, split_of, counts = [], {}, collections.Counter()
    part_graph, instance_graph = collections.defaultdict(set), collections.defaultdict(set)
    owner = {}
    for split, descriptor in converted.items():
        original = photographs(descriptor)
        for graph, more in ((part_graph, descriptor.part_graph), (instance_graph, descriptor.instance_graph)):
            for label, children in more.items():
                graph[label].update(children)
        for instance in descriptor.instances:
            photo = original[instance.image_path]
            if image_key(photo) in excluded:
                counts["image of --exclude"] += 1
                continue
            path, where = (os.path.join(folders[split], _mapped(text, mapping)) for text in (instance.image_path, photo))
            # Equal names in different folders may be different images, but a COCO image has its number everywhere.
            same = image_key(photo) if isinstance(image_key(photo), int) else where
            if owner.setdefault(same, split) != split:
                counts["image that an earlier split has"] += 1
                continue
            split_of[where] = split
            instances.append(dataclasses.replace(instance, image_path=path, source_image=where))
    name = "+".join(sorted({descriptor.dataset_name for descriptor in converted.values()}))
    graphs = ({label: sorted(children) for label, children in graph.items()} for graph in (part_graph, instance_graph))
    return Descriptor(name, tuple(instances), *graphs), split_of, counts


def _mapped(path, mapping):
    for old in sorted(mapping, key=len, reverse=True):
        if path.startswith(old):
            return mapping[old] + path[len(old) :]
    return path


def read_excluded(path):
    """A text file with one image name or COCO id a line -> {image_key}."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); give one image name or COCO id a line") from error
    return {image_key(line.strip()) for line in lines if line.strip()}


def read_names(path):
    """A YAML or JSON file {label: name}."""
    value = read_yaml(path, "a mapping {label: name}")
    if not isinstance(value, dict) or not all(
        isinstance(text, str) and text.strip() for pair in value.items() for text in pair
    ):
        raise UserError(f"{path}: is not a mapping label: name of texts; write for instance `boats--canoe: canoe`")
    return value
