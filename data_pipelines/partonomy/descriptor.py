"""The part dataset descriptor (D 1.2): which parts of which object have which masks in which image. Reading and writing.

Every source is converted to a descriptor, and questions are made from descriptors only. The file is the JSON of the
reference with four more fields, which are left out where they say nothing.
"""

import dataclasses
import json
import os
from pathlib import Path

from data_pipelines.folders import read_json
from plum_jax.errors import UserError

KEYS = ("dataset_name", "instances", "part_graph", "instance_graph")


@dataclasses.dataclass(frozen=True)
class Instance:
    """One object in one image."""

    image_path: str  # as the source has it
    image_label: str
    segmentations: dict  # {label: [entries of D 1.3]}, several masks for a label
    source_image: str = ""  # the photograph: what a split keeps together; default image_path
    highlight_box: tuple[int, int, int, int] | None = None  # x0, y0, x1, y1 of the object meant, where others are like it
    multi_instance_possible: bool = False  # the parts may be of several objects: the source does not say (D3)
    object_id: str = ""  # the label in the source, where cleaning gave it another name

    @property
    def photograph(self):
        return self.source_image or self.image_path


@dataclasses.dataclass(frozen=True)
class Descriptor:
    dataset_name: str
    instances: tuple[Instance, ...]
    part_graph: dict  # {object label: [part labels]}
    instance_graph: dict  # {parent label: [object labels]}


def write_descriptor(path, descriptor):
    """Writes JSON, indented by 4. The file has its name once it is complete."""
    value = {
        "dataset_name": descriptor.dataset_name,
        "instances": [_instance_json(instance) for instance in descriptor.instances],
        "part_graph": descriptor.part_graph,
        "instance_graph": descriptor.instance_graph,
    }
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another file name") from error
    finally:
        temporary.unlink(missing_ok=True)


def _instance_json(instance):
    value = {"image_path": instance.image_path, "image_label": instance.image_label, "segmentations": instance.segmentations}
    value["segmentation_labels"] = sorted(instance.segmentations)
    for field in ("source_image", "highlight_box", "multi_instance_possible", "object_id"):
        if getattr(instance, field):
            value[field] = getattr(instance, field)
    return value


def read_descriptor(path):
    """A descriptor file, the reference's included. UserError names the first instance that is wrong, its field and the fix."""
    value = read_json(path, "give the path of a part dataset descriptor", repair="give a part dataset descriptor")
    if not isinstance(value, dict) or not value.keys() >= set(KEYS):
        missing = [key for key in KEYS if not isinstance(value, dict) or key not in value]
        raise UserError(f"{path}: has no {', '.join(missing)}; give a part dataset descriptor, or the right --format")
    if not isinstance(value["dataset_name"], str) or not isinstance(value["instances"], list):
        raise UserError(f"{path}: dataset_name is not a text or instances not a list; write the file again")
    for graph in ("part_graph", "instance_graph"):
        _check_graph(path, graph, value[graph])
    instances = tuple(_instance(path, number, entry) for number, entry in enumerate(value["instances"]))
    return Descriptor(value["dataset_name"], instances, value["part_graph"], value["instance_graph"])


def _check_graph(path, name, graph):
    good = isinstance(graph, dict) and all(
        isinstance(children, list) and all(isinstance(child, str) for child in children) for children in graph.values()
    )
    if not good:
        raise UserError(f"{path}: {name} is not an object {{label: [labels]}}; write the file again")


def _instance(path, number, entry):
    def need(field, good, fix):
        if not good:
            shown = json.dumps(entry.get(field), ensure_ascii=False)[:100] if isinstance(entry, dict) else type(entry).__name__
            raise UserError(f"{path}: instance {number}: {field} is {shown}; {fix}")

    need("the instance", isinstance(entry, dict), "make it a JSON object")
    for field in ("image_path", "image_label"):
        need(field, isinstance(entry.get(field), str) and entry[field].strip(), "give a text")
    masks = entry.get("segmentations")
    good = isinstance(masks, dict) and all(isinstance(entries, list) for entries in masks.values())
    need("segmentations", good, "give an object {label: [masks]}")
    box = entry.get("highlight_box")
    good = box is None or (isinstance(box, list) and len(box) == 4 and all(type(x) is int for x in box))
    need("highlight_box", good, "give four whole numbers [x0, y0, x1, y1], or leave it out")
    for field, kind in (("source_image", str), ("object_id", str), ("multi_instance_possible", bool)):
        need(field, isinstance(entry.get(field, kind()), kind), f"give a {kind.__name__}, or leave it out")
    return Instance(
        entry["image_path"], entry["image_label"], masks, entry.get("source_image", ""), tuple(box) if box else None,
        entry.get("multi_instance_possible", False), entry.get("object_id", ""),
    )  # fmt: skip
