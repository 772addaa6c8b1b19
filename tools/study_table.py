"""What `tools/study.py` found, as a page: means and spreads over seeds, differences by seed, and what they do not show."""

import json
import statistics

TYPE = "identification_with_label"
METRICS = {  # name -> (title, whether more is better)
    "gmiou_macro": ("masks, end to end", True),
    "gmiou_macro_middle": ("masks, right answer, own spans", True),
    "gmiou_macro_published": ("masks, right answer, given spans", True),
    "part_accuracy": ("right list of parts", True),
    "object_accuracy": ("right object", True),
    "span_f1": ("span F1", True),
    "false_mask_rate": ("false masks", False),
}
TITLES = {
    "base": "base: feedback, spans, KL 0.1", "no_feedback": "no feedback", "seg_token": "`<seg>` tokens", "kl_0": "KL 0",
    "kl_1": "KL 1.0",
}  # fmt: skip
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # half width of a 95 % interval of a mean in standard errors, by its values
COMPARED = ("gmiou_macro", "gmiou_macro_published", "part_accuracy")


def read(path):
    """JSON file -> dictionary; {} for a file that is missing or was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def scores(results):
    """results.json of an evaluation -> {metric: value or None}, on identification with label (objects: on all types)."""
    summary = results["summary"]
    middle = results["protocols"]["middle"].get(TYPE, {}).get("mask_macro", {}).get("gmIoU-paired_strict")
    found = {name: middle if name == "gmiou_macro_middle" else summary[name] for name in METRICS}
    return {**found, "n_instances": summary["n_instances"]}


def values(study, variant, metric):
    """{seed: value} of a metric, without the runs that have none."""
    runs = [run for run in study["runs"] if run["variant"] == variant]
    return {run["seed"]: run["test"][metric] for run in runs if run["test"][metric] is not None}


def table(study):
    """Mean over seeds, and the standard deviation behind it where there are two seeds or more; Markdown."""
    heads = ["variant", "parameters", *(title for title, _ in METRICS.values())]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for variant in dict.fromkeys(run["variant"] for run in study["runs"]):
        size = next(run["parameters"] for run in study["runs"] if run["variant"] == variant)
        cells = [spread(list(values(study, variant, metric).values())) for metric in METRICS]
        lines.append("| " + " | ".join([TITLES[variant], f"{size:,}", *cells]) + " |")
    return "\n".join(lines)


def spread(found):
    """[0.5, 0.6] -> '0.550 ± 0.071'."""
    if not found:
        return "-"
    text = f"{statistics.mean(found):.3f}"
    return f"{text} ± {statistics.stdev(found):.3f}" if len(found) > 1 else text


def half_width(found):
    """Half of the 95 % interval of the mean of two values or more (Student's t)."""
    return T95.get(len(found), 2.6) * statistics.stdev(found) / len(found) ** 0.5


def difference(study, variant, metric):
    """One sentence: variant minus base, seed by seed, and whether that is more than the seeds differ (paired t interval).

    None without a seed that both have.
    """
    theirs, base = values(study, variant, metric), values(study, "base", metric)
    found = [theirs[seed] - base[seed] for seed in sorted(theirs.keys() & base.keys())]
    if not found:
        return None
    title = METRICS[metric][0]
    text = f"{title}: {statistics.mean(found):+.3f} on average ({', '.join(f'{x:+.3f}' for x in found)})"
    if len(found) < 2:
        return f"{text}; one seed shows nothing."
    width = half_width(found)
    if not any(found):
        return f"{text}; the same."
    if abs(statistics.mean(found)) > width:
        return f"{text}; the 95 % interval of the mean, ± {width:.3f}, leaves out zero."
    return f"{text}; the 95 % interval of the mean, ± {width:.3f}, holds zero: no difference shown."


def page(study):
    """study.json -> the text of study.md."""
    s = study["settings"]
    wanted, done = len(s["seeds"]) * len(s["variants"]), len(study["runs"])
    questions = study["runs"][0]["test"]["n_instances"]
    images = f"the first {s['images']} images" if s["images"] else "all images"
    parts = [
        "# Feedback, `<seg>` tokens and the KL term at tiny size\n\nMade by `python -m tools.study`; do not edit.",
        f"{done} of {wanted} runs, {s['steps']} steps each{short(s)}. Data: {s['data']}. Test: {images} of the test split, "
        f"{questions} questions of identification with label (right object: all types that ask for it). Mean ± standard "
        f"deviation over seeds {', '.join(map(str, s['seeds']))}; the data is the same for all.",
        table(study),
        "## Differences from the base, seed by seed",
    ]
    for variant in s["variants"]:
        lines = [difference(study, variant, metric) for metric in COMPARED] if variant != "base" else []
        if any(lines):
            parts.append(f"**{TITLES[variant]}**\n\n" + "\n".join(f"- {line}" for line in lines if line))
    return "\n\n".join([*parts, LIMITS, f"Device: {study['device']}; jax {study['versions'].get('jax', '-')}."]) + "\n"


def short(settings):
    full = settings["steps_of_config"]
    if settings["steps"] >= full:
        return ""
    return f" (of the {full} of configs/tiny.py: **not trained to the end**; numbers at the end may be ordered differently)"


LIMITS = """## What this does not show

- Anything about the published model. The images are synthetic, the model has about a million parameters, and all of it starts
  random; the published one has a pretrained language model, CLIP and SAM.
- Anything about forgetting. The KL term keeps the adapters near the weights without adapters. Those are trained here too, so
  it holds back the adapters only, and there is no pretrained knowledge to keep: the paper's trade of masks against TextVQA
  cannot be seen in this setting.
- That one of `<seg>` tokens and tagged spans is better in general. The baseline is this model with `<seg>` in place of the
  tagger: the same projector, mask decoder, feedback, losses on masks, data and steps. It lacks the parameters and loss of tags,
  and its answers are longer by one token a part, which count in the likelihood of a choice. It is not LISA's model. Its
  phrases are read from its text by a rule (the words before a `<seg>` since the last punctuation), because masks are scored
  by name; its span F1 is that of the phrases.
- Effects smaller than the spread. Seeds change initial values and the order of the data, not the data; a standard deviation of
  three values is itself uncertain by about a half."""
