"""What the released PARTONOMY-Core holds (D 6.1, D 7.5): a folder that is that release, or should be, is compared with it."""

import collections

from data_pipelines.partonomy.questions import canonical

FILE = "partonomy_qa_pairs.json"
NUMBERS = {"objects": 534, "object-part pairs": 1_976, "images": 1_068, "masks": 4_968}
PARTS = 862  # names, counted as written or without plurals
TYPES = {
    "identification_with_label", "positive_with_label", "negative_with_label", "part_to_whole", "whole_to_part",
}  # fmt: skip
CHOICES = 5


def check_core(folder, paths, survey, findings, expect):
    """Errors with `expect` "partonomy-core", else warnings, and only where the folder has the file of the release alone."""
    if expect is None and ([path.name for path in paths] != [FILE] or (folder / "dataset.json").exists()):
        return
    note = findings.error if expect else findings.warning
    found = {
        "objects": len(survey.objects),
        "object-part pairs": len(survey.pairs),
        "images": len(survey.uses),
        "masks": sum(len(instance.masks) for instance in survey.instances.values()),
    }
    for what, number in NUMBERS.items():
        if found[what] != number:
            note("not as released", paths[0].name, None, f"{found[what]:,} {what}, PARTONOMY-Core has {number:,}")
    names = {len(survey.parts), len({canonical(part) for part in survey.parts})}
    if PARTS not in names:
        note("not as released", paths[0].name, None, f"{len(survey.parts):,} names of parts, PARTONOMY-Core has {PARTS:,}")
    types = collections.Counter()
    for counts in survey.files.values():
        types.update(counts["types"])
    if set(types) != TYPES:
        text = f"question types {', '.join(sorted(types)) or 'none'}; PARTONOMY-Core has {', '.join(sorted(TYPES))}"
        note("not as released", paths[0].name, None, text)
    if set(survey.choices) - {CHOICES}:
        text = f"questions with {', '.join(map(str, sorted(survey.choices)))} choices; PARTONOMY-Core has {CHOICES}"
        note("not as released", paths[0].name, None, text)
