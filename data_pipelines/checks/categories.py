"""What the categories of a COCO file mean, as `plum data questions` takes them (D 2)."""

from data_pipelines.partonomy.categories import coco
from plum_jax.errors import UserError


def meanings(file, hierarchy, rule, findings):
    """CocoFile -> {category id: (object, part or None)}; what means nothing is left out."""
    if rule is not None:
        entries = {number: {"supercategory": "", **entry} for number, entry in file.categories.items()}
        labels = {number: rule(entry) for number, entry in entries.items() if isinstance(entry["supercategory"], str)}
        return {number: label for number, label in labels.items() if label is not None}
    if hierarchy is None:
        return _by_name(file)
    try:
        found = coco(file.path, {"categories": list(file.categories.values())}, hierarchy)
    except UserError as error:
        findings.error("hierarchy", file.name, None, str(error).removeprefix(f"{file.path}: "))
        return {}
    return {number: (" or ".join(meaning.objects), meaning.part) for number, meaning in found.items()}


def _by_name(file):
    """object:part, and the objects that have parts."""
    split = {number: tuple(entry["name"].split(":")) for number, entry in file.categories.items()}
    pairs = {number: pair for number, pair in split.items() if len(pair) == 2 and all(word.strip() for word in pair)}
    things = {thing for thing, _ in pairs.values()}
    alone = {number: (names[0], None) for number, names in split.items() if len(names) == 1 and names[0] in things}
    return {**pairs, **alone}
