"""What `plum score` prints: every protocol and question type, in percent, and what was missing."""

from plum_jax.console import counted

TITLES = {
    "published": "Published protocol: correct answer, given spans, masks paired by position",
    "middle": "Middle protocol: correct answer, the model's spans, a missing mask counts 0",
    "end_to_end": "End to end: the model's answer and spans, a missing mask counts 0",
    "generation": "Generation: free text and the model's spans, a missing mask counts 0",
}
PAIRING = {"published": "gmIoU-paired"}  # the other protocols match masks by name
STRICT = "gmIoU-paired_strict"
WIDTH = 28


def table(protocols):
    """`protocols` of results.json -> lines."""
    lines = []
    for protocol, types in protocols.items():
        if not types:
            continue
        name = PAIRING.get(protocol, STRICT)
        columns = {
            f"{name} macro": ("mask_macro", name),
            "micro": ("mask_micro", name),
            "part P": ("part_text", "precision"),
            "part R": ("part_text", "recall"),
            "part acc": ("mc_part_text", "accuracy"),
            "obj acc": ("mc_object_text", "accuracy"),
            "span F1": ("span", "f1"),
            "false masks": ("false_mask_rate",),
        }
        have = {head: path for head, path in columns.items() if any(_value(g, path) is not None for g in types.values())}
        widths = [max(len(head), 7) + 2 for head in have]
        heads = "".join(f"{head:>{width}}" for head, width in zip(have, widths, strict=True))
        lines += [TITLES.get(protocol, protocol), f"{'question type':<{WIDTH}}{heads}{'n':>8}"]
        for kind, groups in types.items():
            cells = "".join(f"{_percent(_value(groups, path)):>{w}}" for path, w in zip(have.values(), widths, strict=True))
            lines.append(f"{kind:<{WIDTH}}{cells}{groups['n_instances']:>8}")
        lines.append("")
    return lines or ["nothing to score"]


def _value(groups, path):
    """A number of a question type; None where there is none, or where it is of no question."""
    for key in path:
        if not isinstance(groups, dict) or groups.get("total") == 0:
            return None
        groups = groups.get(key)
    return groups


def _percent(value):
    return "-" if value is None else f"{100 * value:.1f}"


def account(counts):
    """`counts` of results.json -> lines: nothing is left out in silence."""
    lines = [f"{counted(counts['predicted'], 'prediction')}, {counted(counts['scored'], 'question')} scored"]
    wrong = "counted as wrong, masks as IoU 0 (--ignore-missing leaves them out)"
    way = {"wrong": wrong, "left_out": "left out"}[counts["missing_counts_as"]]
    lines += [
        f"missing: {counted(n, 'question')}, {reason.replace('_', ' ')}: {way}" for reason, n in counts["missing"].items()
    ]
    lines += [f"incomplete: {counted(n, 'prediction')} without {what}: {way}" for what, n in counts["incomplete"].items()]
    told = set(counts["missing"])
    lines += [
        f"not scored: {counted(n, 'question')}, {reason.replace('_', ' ')}"
        for reason, n in counts["skipped"].items()
        if reason not in told
    ]
    return lines
