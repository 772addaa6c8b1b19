"""Which of our numbers may stand beside a published one, and why not: in words, under the table (D 5.1, D 6)."""

import re
from pathlib import Path

from plum_jax.console import counted
from plum_jax.report.published import CORE, SUBSETS

PROTOCOLS = {  # key of results.json -> name, what is given to the model
    "published": ("published", "the correct answer and its phrases are given, masks are paired by position and missing ones "
                  "cost nothing; answers are chosen by the loss of the whole text, the first of equal ones wins"),
    "middle": ("middle", "the correct answer is given, the phrases are the model’s own; a missing mask counts 0"),
    "end_to_end": ("end to end", "answer, phrases and masks are the model’s own; a missing mask counts 0"),
    "generation": ("generation", "the answer is written freely, without choices; a missing mask counts 0"),
}  # fmt: skip


PUBLISHED_SPLITS = ("val", "whole", "")  # Core is one file, whose name need not say a split
TYPE_NOT_ASKED = "type_not_answered"  # why plum score skips the types that a model was not asked


def protocol_name(key):
    return PROTOCOLS[key][0] if key in PROTOCOLS else key.replace("_", " ")


def dataset(evaluation):
    """-> "partonomy" (Core), a key of SUBSETS, "synthetic", "other" or "unknown" (there is nothing that says)."""
    if "synthetic" in evaluation.data_name.lower():
        return "synthetic"
    data = evaluation.results.get("data")
    match = re.match(r"(.+?)_qa_pairs(_[^_]+)?\.json$", Path(str((data or {}).get("path") or "")).name)
    if not match:
        return "unknown"
    stem = match[1].lower()
    if stem == CORE:  # every folder of ours has this name too, so the folder must be there to be told from them
        return CORE if evaluation.data_root is not None else "unknown"
    return stem if stem in SUBSETS else "other"


def reasons(evaluation, protocol):
    """What speaks against comparing the numbers of a protocol with the published ones: [texts]."""
    found = []
    kind = dataset(evaluation)
    if kind == "synthetic":
        found.append("drawn pictures (synthetic PARTONOMY), not the photographs of the paper")
    elif kind in ("other", "unknown"):
        found.append("a data set that is not known to be one of the paper’s")
    elif evaluation.split not in PUBLISHED_SPLITS:
        found.append(f"the {evaluation.split} split; the published numbers are of val")
    if protocol != "published":
        found.append(f"{protocol_name(protocol)} protocol: the published numbers are given the correct answer and its phrases")
    settings = evaluation.results.get("settings") or {}
    if settings.get("empty_union", "one") != "one":
        found.append(f"two empty masks score {settings['empty_union']}, published: one")
    if settings.get("max_images") or "--max-images" in str(evaluation.results.get("command")):
        found.append("only the first images of the file (--max-images)")
    skipped = sum(n for reason, n in evaluation.skipped.items() if reason != TYPE_NOT_ASKED)
    if skipped:
        found.append(f"{counted(skipped, 'question')} skipped")
    return found


def sentence(evaluation, protocol):
    """One note for the row of an evaluation under a protocol."""
    against = reasons(evaluation, protocol)
    if against:
        return f"Not comparable with the published numbers: {'; '.join(against)}."
    text = (
        "Comparable: same protocol and, by the name of the file, the same questions. The paper’s files are not identified by a "
        "hash, so that they are the same cannot be checked."
    )
    if (evaluation.results.get("settings") or {}).get("all_span_occurrences") is False:
        text += " Given phrases are those of the list of parts; published: every place of a part’s name (all_span_occurrences)."
    return text
