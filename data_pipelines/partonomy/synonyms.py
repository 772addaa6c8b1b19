"""Part names that mean the same, from a file of the user's. They decide what is compared with what, never what is written:
an answer lists the object's own part names, which are the keys of its masks (D28).

    - [tire, tyre]
    - [headlight, headlamp, head light]
"""

from data_pipelines.partonomy.categories import read_yaml
from data_pipelines.partonomy.questions import canonical
from plum_jax.errors import UserError


class SynonymKey:
    """The key by which parts are compared: `canonical`, then the first name of its group. Can be sent to other processes."""

    def __init__(self, groups=()):
        self.head = {canonical(name): canonical(group[0]) for group in groups for name in group}

    def __call__(self, part):
        key = canonical(part)
        return self.head.get(key, key)


def read_synonyms(path):
    """A YAML or JSON list of groups of names. UserError for a name in two groups."""
    value = read_yaml(path, "a list of groups of part names, like `- [tire, tyre]`")
    groups = value if isinstance(value, list) else None
    if not groups or not all(
        isinstance(group, list) and len(group) > 1 and all(isinstance(name, str) and name.strip() for name in group)
        for group in groups
    ):
        raise UserError(f"{path}: is not a list of groups of at least two part names; write one `- [tire, tyre]` a line")
    owner = {}
    for number, group in enumerate(groups):
        for name in group:
            if owner.setdefault(canonical(name), number) != number:
                raise UserError(f"{path}: {name!r} is in the groups {owner[canonical(name)] + 1} and {number + 1}; join them")
    return SynonymKey(groups)
