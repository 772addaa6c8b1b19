"""PARTONOMY-Core as annotated, a graph and one file per mask -> descriptor (D 2.3). The released questions need no conversion.

graph.yaml                              instance_graph, component_graph
images/boats--canoe/a.jpg
masks/boats--canoe--part:hull/a.json    {"size", "counts", "image_path", "is_root_concept"}
"""

import collections
import json
from pathlib import Path, PurePosixPath

from data_pipelines.partonomy.categories import read_yaml
from data_pipelines.partonomy.descriptor import Descriptor, Instance
from data_pipelines.partonomy.labels import object_of
from plum_jax.errors import UserError

MASK_KEYS = {"size", "counts", "image_path", "is_root_concept"}


def convert_core(folder, *, progress=None):
    """Folder -> (Descriptor, Counter of what was left out, by reason). Labels are lower case, objects as well as parts (D11).

    Several objects of one image stay apart. Image paths are relative to `images`.
    """
    folder, counts = Path(folder), collections.Counter()
    graphs = _read_graphs(folder)
    paths = sorted(path for path in (folder / "masks").glob("*/*.json") if path.is_file())
    if not paths:
        raise UserError(f"{folder / 'masks'}: holds no <label>/<file>.json; give a folder with graph.yaml, images and masks")
    found = {}
    for path in progress(paths) if progress else paths:
        label = path.parent.name.strip().lower()
        entry, image = _read_mask(path), None
        if entry is None:
            counts["mask file that is not JSON with size, counts, image_path and is_root_concept"] += 1
            continue
        image = _relative(entry["image_path"])
        if not (folder / "images" / image).is_file():
            counts["mask of an image that is not there"] += 1
            continue
        masks = found.setdefault((image, object_of(label)), {})
        masks.setdefault(label, []).append({"size": entry["size"], "counts": entry["counts"]})
    instances = tuple(Instance(image, thing, masks) for (image, thing), masks in sorted(found.items()))
    return Descriptor("partonomy", instances, graphs["component_graph"], graphs["instance_graph"]), counts


def _read_graphs(folder):
    """The two graphs of graph.yaml, in lower case."""
    path = folder / "graph.yaml"
    if next(folder.glob("*qa_pairs*.json"), None) and not path.is_file():
        raise UserError(f"{folder}: holds questions already, which plum evaluate and plum data check read as they are")
    value = read_yaml(path, "PARTONOMY-Core's graph.yaml, which stands beside images and masks")
    graphs = {}
    for name in ("component_graph", "instance_graph"):
        graph = value.get(name) if isinstance(value, dict) else None
        if not isinstance(graph, dict) or not all(isinstance(children, list | None) for children in graph.values()):
            raise UserError(f"{path}: has no mapping {name}: {{label: [labels]}}; give PARTONOMY-Core's graph.yaml")
        graphs[name] = {
            str(label).lower(): [str(child).lower() for child in children or ()] for label, children in graph.items()
        }
    return graphs


def _read_mask(path):
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    good = isinstance(entry, dict) and entry.keys() == MASK_KEYS and isinstance(entry["image_path"], str)
    return entry if good else None


def _relative(image_path):
    """Path below `images`: what follows the last folder of that name, wherever the annotators had it (no guessing, D14)."""
    steps = PurePosixPath(image_path.replace("\\", "/")).parts
    if "images" in steps[:-1]:
        steps = steps[len(steps) - steps[::-1].index("images") :]
    return "/".join(step for step in steps if step != "/")
