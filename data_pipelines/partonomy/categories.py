"""What the categories of each COCO-style source mean (D 2): which are objects, which are parts, and of what."""

import re

import yaml

from data_pipelines import category_names
from data_pipelines.partonomy.coco_file import Category
from plum_jax.errors import UserError


def paco_lvis(path, coco):
    """'mug_(cup):handle' -> part 'handle' of 'mug'; without a colon an object. What follows '_(' only tells senses apart."""
    return {entry["id"]: _category(path, entry["name"], *category_names.paco_lvis(entry)) for entry in coco["categories"]}


def pascal_part(path, coco):
    """'aeroplane:body' -> part 'body' of 'aeroplane'. The source has no objects of their own."""
    categories = {}
    for entry in coco["categories"]:
        pieces = category_names.pascal_part(entry)
        if len(pieces) != 2:
            raise UserError(
                f"{path}: category {entry['name']!r} is not object:part; give VLPart's PASCAL-Part file, or another --format"
            )
        categories[entry["id"]] = _category(path, entry["name"], *pieces)
    return categories


def partimagenet(path, coco):
    """'Quadruped Head' of the supercategory 'Quadruped' -> part 'head' of 'quadruped'."""
    categories = {}
    for entry in coco["categories"]:
        above = entry.get("supercategory")
        if not isinstance(above, str) or not above.strip():
            raise UserError(
                f"{path}: category {entry['name']!r} has no supercategory; give PartImageNet's file, or another --format"
            )
        categories[entry["id"]] = _category(path, entry["name"], *category_names.partimagenet(entry))
    return categories


def coco(path, coco, hierarchy=None):
    """Categories of any COCO file: by a hierarchy (`read_hierarchy`), or by names object:part.

    With a hierarchy, categories that it does not name mean nothing; one that several objects list is a part of any of them.
    """
    if hierarchy is None:
        categories = {entry["id"]: _category(path, entry["name"], *entry["name"].split(":")) for entry in coco["categories"]}
        if not any(category.part for category in categories.values()):
            raise UserError(f"{path}: no category is named object:part; give --hierarchy FILE, which says what is part of what")
        return categories
    names = {entry["name"] for entry in coco["categories"]}
    owners = {}
    for thing, parts in hierarchy.items():
        for category, part in parts.items():
            if category not in names:
                raise UserError(
                    f"{path}: has no category {category!r}, which --hierarchy makes a part of {thing!r}; use its names"
                )
            owners.setdefault(category, {}).setdefault(part, []).append(thing)
    categories = {}
    for entry in coco["categories"]:
        name = entry["name"]
        if name in owners and name in hierarchy:
            raise UserError(f"--hierarchy: {name!r} is an object and a part; parts of parts have no questions, leave one out")
        if name in owners:
            if len(owners[name]) > 1:
                raise UserError(f"--hierarchy: category {name!r} has the part names {', '.join(owners[name])}; give it one")
            ((part, things),) = owners[name].items()
            categories[entry["id"]] = Category(tuple(sorted(things)), part)
        elif name in hierarchy:
            categories[entry["id"]] = Category((name,))
    return categories


def read_hierarchy(path):
    """A YAML or JSON file {object: [part categories]} or {object: {part category: part name}} -> the second form."""
    value = read_yaml(path, "a hierarchy {object: [parts]}")
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path}: is not a mapping object: [parts]; write for instance `mug: [handle, body]`")
    hierarchy = {}
    for thing, parts in value.items():
        names = parts if isinstance(parts, dict) else {part: part for part in parts} if _texts(parts) else None
        if not isinstance(thing, str) or not names or not _texts([*names, *names.values()]):
            raise UserError(f"{path}: {thing!r} has the parts {parts!r}; give a list of category names, or names for them")
        hierarchy[thing] = {category: " ".join(name.split()) for category, name in names.items()}
    return hierarchy


def read_yaml(path, what):
    """A YAML (or JSON) file of the user's. UserError in a sentence when missing or malformed."""
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give {what}") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not readable as YAML ({said}); give {what}") from error


def _texts(values):
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) and value.strip() for value in values)


def _category(path, name, thing, part=None, *more):
    """The pieces of a category's name -> Category."""
    if more:
        raise UserError(f"{path}: category {name!r} has more than one colon; name it object or object:part")
    thing, part = " ".join(thing.split()), part if part is None else " ".join(part.lower().split())
    if not thing or part == "" or re.search(r"--", f"{thing} {part}"):
        raise UserError(f"{path}: category {name!r} has no usable object or part name; rename it, without --")
    return Category((thing,), part)
