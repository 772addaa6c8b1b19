"""Descriptor labels -> the names that questions use (D 1.4). What gets the same name is merged and told, never lost (D10)."""

import collections
import dataclasses

from data_pipelines.conversation import END, IMAGE
from data_pipelines.partonomy.descriptor import Descriptor
from data_pipelines.partonomy.labels import OBJECT, concept_of, is_part, object_of, part_of
from plum_jax.errors import UserError

PART_NAMES = {"partimagenet": {"tier": "tire"}}  # a typing error of the source


@dataclasses.dataclass(frozen=True)
class Cleaned:
    descriptor: Descriptor
    counts: collections.Counter  # what was left out or merged, by reason
    merged_objects: dict  # {name: labels that became it}, where there are several
    merged_parts: dict


def clean(descriptor, *, object_names=None, part_names=None, graph="seen"):
    """Descriptor in the grammar of D 1.1 -> Cleaned, with bare names.

    1. Masks of whole objects are removed, then instances without a part.
    2. An object is called object_names[label], else by its last level: 'boats--canoe' is 'canoe'. A part is called
       part_names[name], else by its name. Underscores become spaces.
    3. The parts that an object has are those seen in any of its instances (`graph="seen"`, the benchmark's rule), or these
       and what the part graph of the source says ("given").
    """
    names = _Names(object_names or {}, {**PART_NAMES.get(descriptor.dataset_name, {}), **(part_names or {})})
    counts, instances = collections.Counter(), {}
    for instance in descriptor.instances:
        parts = _named(instance.segmentations, names)
        if not parts:
            counts["object without a part mask"] += 1
            continue
        label = names.object(instance.image_label)
        new = dataclasses.replace(instance, image_label=label, segmentations=parts, object_id=_old(instance, label))
        # Two objects of different labels in one picture that are now called the same are one, as nobody could tell them apart.
        key = (new.image_path, label, new.highlight_box)
        same = instances.get(key, [])
        twin = next((k for k, other in enumerate(same) if other.object_id != new.object_id), None)
        if twin is None:
            instances.setdefault(key, []).append(new)
        else:
            same[twin] = dataclasses.replace(same[twin], segmentations=_union(same[twin].segmentations, parts))
            counts["object merged with another of the same name in its image"] += 1
    kept = tuple(one for same in instances.values() for one in same)
    seen = collections.defaultdict(set)
    for instance in kept:
        seen[instance.image_label].update(instance.segmentations)
    if graph == "given":
        for label, parts in descriptor.part_graph.items():
            if names.object(label) in seen:
                seen[names.object(label)].update(names.part(part) for part in parts if is_part(part))
    part_graph = {label: sorted(parts) for label, parts in sorted(seen.items())}
    children = collections.defaultdict(set)
    for parent, objects in descriptor.instance_graph.items():
        children[_words(concept_of(parent), parent)].update(names.object(label) for label in objects)
    instance_graph = {parent: sorted(objects) for parent, objects in sorted(children.items())}
    cleaned = Descriptor(descriptor.dataset_name, kept, part_graph, instance_graph)
    return Cleaned(cleaned, counts, names.merged(names.objects, seen), names.merged(names.parts, set().union(*seen.values())))


def _named(segmentations, names):
    """{part name: masks}, the masks of parts that are now called the same together."""
    parts = {}
    for label, entries in segmentations.items():
        if is_part(label) and entries:
            parts.setdefault(names.part(label), []).extend(entries)
    return parts


def _union(masks, more):
    return {part: [*masks.get(part, ()), *more.get(part, ())] for part in [*masks, *(p for p in more if p not in masks)]}


def _old(instance, label):
    old = instance.object_id or instance.image_label
    return "" if old in (label, OBJECT + label) else old


class _Names:
    """The new name of every label, remembering which labels got it."""

    def __init__(self, object_names, part_names):
        self.maps = object_names, part_names
        self.objects, self.parts = collections.defaultdict(set), collections.defaultdict(set)

    def object(self, label):
        label = object_of(label)
        short = concept_of(label)
        name = _words(self.maps[0].get(label, self.maps[0].get(short, short)), label)
        self.objects[name].add(label)
        return name

    def part(self, label):
        old = part_of(label)
        name = _words(self.maps[1].get(old, old), label)
        self.parts[name].add(old)
        return name

    @staticmethod
    def merged(sources, used):
        return {name: sorted(labels) for name, labels in sorted(sources.items()) if len(labels) > 1 and name in used}


def _words(name, label):
    name = " ".join(name.replace("_", " ").split())
    if not name or IMAGE in name or END in name:
        raise UserError(f"label {label!r} gives the name {name!r}; map it to a text without {IMAGE} and {END} by a name file")
    return name
