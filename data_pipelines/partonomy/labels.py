"""Grammar of the labels in a part dataset descriptor (D 1.1).

boats--canoe                object of a hierarchy, <category>--<concept>
object--mug                 object of a COCO-style source, whose only category is `object`
boats--canoe--part:hull     part
mug--part:handle            part of a COCO-style source: without `object--`
"""

PART = "--part:"
LEVEL = "--"
OBJECT = "object--"


def is_part(label):
    return PART in label


def object_of(label):
    """'boats--canoe--part:hull' -> 'boats--canoe'; an object label is its own."""
    return label.partition(PART)[0]


def part_of(label):
    """'boats--canoe--part:hull' -> 'hull'. Raises ValueError for an object label."""
    if not is_part(label):
        raise ValueError(f"{label!r} is no part label, which contains {PART}")
    return label.rpartition(PART)[2]


def category_of(label):
    """'boats--canoe--part:hull' -> 'boats'."""
    return label.partition(LEVEL)[0]


def concept_of(label):
    """'boats--canoe' -> 'canoe', 'object--mug' -> 'mug', 'mug' -> 'mug'."""
    return object_of(label).rpartition(LEVEL)[2]


def join(object_label, part):
    """('mug', 'handle') -> 'mug--part:handle'."""
    return f"{object_label}{PART}{part}"
