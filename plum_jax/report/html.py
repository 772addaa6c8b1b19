"""A Subject and its tables -> the text of the page: the sections in order, those without content left out."""

from dataclasses import dataclass

from plum_jax.report.page import render as render_page
from plum_jax.report.sections import beside, figures, more, parts, provenance, samples, scores

PARTS = "Questions about the parts of things, answered in words, with a mask for every part that the answer names."
WORDS_AND_MASKS = "Questions about images, answered in words and masks."


@dataclass(frozen=True)
class Section:
    id: str
    nav: str
    data: dict | None

    @property
    def template(self):
        return f"{self.id}.html"


def render(subject, paper, own):
    """Subject, tables of the paper's shape, other tables -> (HTML text, facts: numbers of cards, questions, skipped things)."""
    tables = {table.id: table for table in own}
    same, chosen, worst = samples.same(subject), samples.samples(subject), samples.worst(subject)
    cards = [c for s in (chosen, worst) if s for c in s["cards"]]
    cards += [c for kind in ("spaced", "different") if same for group in same[kind] for c in group]
    unseen = sum(not c.picture for c in cards)
    sections = [
        Section("overview", "evaluations", scores.overview(subject)),
        Section("headline", "numbers", scores.headline(subject)),
        Section("types", "question types", scores.types(subject)),
        Section("benchmarks", "other benchmarks", beside.benchmarks(tables)),
        Section("beside", "beside the paper", beside.beside(paper)),
        Section("figures", "plots", figures.figures(subject, tables)),
        Section("training", "training", figures.training(subject)),
        Section("same", "same questions", same),
        Section("samples", "samples", chosen),
        Section("worst", "worst", worst),
        Section("confusion", "confusion", parts.confusion(subject)),
        Section("parts", "parts", parts.parts(subject)),
        Section("more", "all measures", more.more(tables)),
        Section("run", "where from", provenance.run(subject, tables, unseen)),
    ]
    text = render_page("report.html", sections=[s for s in sections if s.data is not None], **_heading(subject))
    facts = {
        "cards": len(chosen["cards"]) if chosen else 0,
        "worst": len(worst["cards"]) if worst else 0,
        "questions": sum(len(e.instances) for e in subject.evaluations[-1:]),
        "skipped": _skipped(subject, unseen),
    }
    return text, facts


def _heading(subject):
    after, facts = subject.after, []
    steps = int(subject.metrics["step"][-1]) if subject.metrics.get("step") else None
    seconds = (subject.summary.get("train") or {}).get("seconds")
    seed = subject.summary.get("seed", subject.config.get("seed"))
    if after is not None and after.instances:
        images = len({i.image_path for i in after.instances})
        facts.append(f"{len(after.instances):,} questions about {images:,} images")
    if subject.several:
        facts.append(f"{len(subject.evaluations)} evaluations")
    if steps is not None:
        facts.append(f"{steps:,} training steps")
    if seconds:
        facts.append(f"{seconds / 60:.1f} minutes of training")
    if seed is not None:
        facts.append(f"seed {seed}")
    heading = subject.name if subject.several else f"PLUM “{subject.name}”"
    if after is not None and after.split:
        heading += f" on the {after.split} split"
    about_parts = any(e.benchmark == "partonomy" for e in subject.evaluations) or not subject.evaluations
    return {"name": subject.name, "heading": heading, "facts": facts, "tagline": PARTS if about_parts else WORDS_AND_MASKS}


def _skipped(subject, unseen):
    """{what: how many} of the last evaluation and of the page."""
    if not subject.evaluations:
        return {}
    last = subject.evaluations[-1]
    found = {f"questions, {reason}": n for reason, n in sorted(last.skipped.items())}
    found["lines of instances.jsonl that are not readable"] = last.unreadable_lines
    found["questions without a mask score"] = sum(i.gmiou is None for i in last.instances)
    return {**found, "cards without a picture": unseen}
