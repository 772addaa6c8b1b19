"""Curves of the training and plots of the evaluations."""

from plum_jax.report import analysis, plots
from plum_jax.report.charts import line_chart
from plum_jax.report.measures import INTERVALS, intervals, ordered_types, words
from plum_jax.report.tables import as_lines

CURVES = {  # column of metrics.csv -> title, explanation
    "loss": ("loss", "weighted sum of the terms"),
    "language": ("language", "cross-entropy of the answer tokens"),
    "tag": ("tags", "cross-entropy of the phrase tags"),
    "shape": ("shape", "Dice or focal Tversky loss of the masks"),
    "bce": ("pixels", "binary cross-entropy of the masks"),
    "patch": ("patches", "auxiliary: which part a patch shows"),
    "reference": ("reference", "divergence from the base model"),
    "tag_accuracy": ("tag accuracy", "tokens of phrases tagged right"),
    "mask_iou": ("mask IoU", "of the training masks, phrases given"),
    "grad_norm": ("gradient norm", "before clipping"),
    "skipped_steps": ("skipped updates", "a loss or a gradient was not finite"),
    "lr": ("learning rate", ""),
    "images_per_second": ("images per second", ""),
    "data_wait": ("waiting for data", "share of the time of a step"),
    "val_gmiou_macro": ("validation: masks", "IoU end to end, mean over questions"),
    "val_gmiou_micro": ("validation: masks, per mask", "IoU end to end, mean over masks"),
    "val_gmiou_macro_published": ("validation: masks, published protocol", "IoU, mean over questions"),
    "val_false_mask_rate": ("validation: false masks", "share of the masks, of no visible part"),
    "val_part_accuracy": ("validation: right list of parts", "share of the questions"),
    "val_object_accuracy": ("validation: right object", "share of the questions"),
    "val_span_f1": ("validation: phrases found", "F1, exact boundaries"),
    "val_text_loss": ("validation: text", "cross-entropy of held-out conversations, per token"),
}
LOGARITHMIC = {"loss", "language", "tag", "shape", "bce", "patch", "reference"}
NOT_CURVES = {"step", "time", "seconds", "elapsed", "epoch"}


def training(subject):
    """One chart per column: known ones first in the order of CURVES, then the others by name."""
    metrics = subject.metrics
    names = [n for n in CURVES if n in metrics] + sorted(n for n in metrics if n not in CURVES and n not in NOT_CURVES)
    steps = metrics.get("step") or list(range(1, len(next(iter(metrics.values()), [])) + 1))
    charts = []
    for name in (n for n in names if n != "skipped_steps" or any(metrics[n])):
        title, explain = CURVES.get(name, (name.replace("_", " ").replace("/", ": "), ""))
        svg = line_chart(title, steps, metrics[name], log=name in LOGARITHMIC)
        if svg:
            charts.append({"title": title, "explain": explain, "svg": svg})
    return {"charts": charts} if charts else None


def figures(subject, tables):
    """Plots that have a point. `tables`: {id: Table}; the tables with the same numbers stand below, folded."""
    evaluations = [e for e in subject.evaluations if e.benchmark == "partonomy"]
    found = [*_interval_charts(evaluations), _reliability_chart(evaluations), _area_chart(evaluations)]
    charts = [c for c in found if c]
    if not charts:
        return None
    return {
        "charts": charts,
        "legend": [(plots.legend_key(k), e.label) for k, e in enumerate(evaluations)] if len(evaluations) > 1 else [],
        "tables": [as_lines(tables[id]) for id in ("intervals", "reliability", "areas") if id in tables],
    }


def _interval_charts(evaluations):
    charts = []
    for measure in dict.fromkeys(name for name, *_ in INTERVALS):
        rows = []
        for kind in ordered_types(evaluations):
            points = [
                (k, e.label, *numbers)
                for k, e in enumerate(evaluations)
                for name, *numbers in intervals(e, kind)
                if name == measure
            ]
            if points:
                rows.append((words(kind), points))
        if rows:
            explain = "95 % intervals, bootstrap over images"
            charts.append({"title": measure, "explain": explain, "svg": plots.interval_chart(measure, rows)})
    return charts


def _reliability_chart(evaluations):
    curves = [(e.label, analysis.reliability(e)) for e in evaluations]
    if not any(found["n_masks"] for _, found in curves):
        return None
    errors = [f"{label} {found['expected_calibration_error']:.3f}" for label, found in curves if found["n_masks"]]
    errors = errors if len(curves) > 1 else [errors[0].rpartition(" ")[2]]
    return {
        "title": "reliability of mask scores",
        "explain": f"on the dashed line scores keep their word; mean distance from it: {', '.join(errors)}",
        "svg": plots.reliability_chart([(label, found["bins"]) for label, found in curves]),
    }


def _area_chart(evaluations):
    bins = [(e.label, analysis.area_bins(e)) for e in evaluations]
    if not any(b.count for _, found in bins for b in found):
        return None
    labels = [b.label for b in bins[0][1]]
    series = [(label, [(b.iou, b.count) for b in found]) for label, found in bins]
    return {
        "title": "score by size of the part",
        "explain": "end to end; a missing mask counts 0",
        "svg": plots.area_chart(labels, series),
    }
