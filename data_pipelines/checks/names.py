"""Labels that only differ in spelling: a reader takes them for two things, a person for one."""

import collections


def report_collisions(labels, what, findings, file):
    """A warning for every group of labels that are the same in lower case, with spaces for underscores and hyphens."""
    groups = collections.defaultdict(list)
    for label in labels:
        groups[" ".join(label.lower().replace("_", " ").replace("-", " ").split())].append(label)
    for group in groups.values():
        if len(group) > 1:
            names = " and ".join(map(repr, sorted(group)))
            findings.warning(
                "names that differ in spelling only", file, None, f"{what}s {names} differ in spelling only; use one"
            )
