"""Cards: questions not chosen by score, the worst, and the same questions answered by several models."""

from functools import partial

from plum_jax.report import analysis
from plum_jax.report.cards import make_card
from plum_jax.report.lenient import dictionary
from plum_jax.report.measures import MAIN_TYPE

SAMPLES, WORST = 30, 10
GROUPS, DIFFERENT = 8, 6  # questions shown once for every one of several evaluations


def samples(subject):
    if subject.after is None or not subject.after.instances:
        return None
    build = _builder(subject.after, subject.config)
    return {"cards": [build(i) for i in analysis.pick_samples(subject.after.instances, SAMPLES, MAIN_TYPE)]}


def worst(subject):
    if subject.after is None:
        return None
    build = _builder(subject.after, subject.config)
    cards = [build(i) for i in analysis.pick_worst(subject.after.instances, WORST)]
    return {"cards": cards} if cards else None


def same(subject):
    """Questions that all evaluations have: evenly spaced ones, and those on which the scores differ most."""
    evaluations = [e for e in subject.evaluations if e.instances]
    if not subject.several or len(evaluations) < 2:
        return None
    groups = analysis.common(evaluations)
    if not groups:
        return None
    builders = [_builder(e, dictionary(e.record.get("config")), e.label) for e in evaluations]
    show = lambda group: [build(i) for build, i in zip(builders, group[1], strict=True)]  # noqa: E731
    first = {id: group for group in groups for id in [group[1][0].id]}
    spaced = analysis.pick_samples([group[1][0] for group in groups], GROUPS, MAIN_TYPE)
    return {
        "labels": [e.label for e in evaluations],
        "n_common": len(groups),
        "spaced": [show(first[i.id]) for i in spaced],
        "different": [show(group) for group in analysis.most_different(groups, DIFFERENT)],
    }


def _builder(evaluation, config, label=""):
    settings = {**dictionary(config.get("eval")), **dictionary(evaluation.results.get("settings"))}
    return partial(make_card, root=evaluation.data_root, score_key=str(settings.get("mc_score", "answer_mean")), label=label)
