"""Runs a model over multiple-choice questions, image by image, and yields what the scorers need (D 5.1, design 4).

Per image: both vision towers once and the shared start of all rows once. Per question: its own text once. Per choice: the
rest. Masks are decoded for two answers only, the correct one with its constructed spans (published protocol) and the
chosen one with the model's own spans (end to end); where these coincide, once.
"""

import concurrent.futures
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.conversation import END, Encoded, encode
from data_pipelines.images import load_image
from data_pipelines.partonomy.records import Choice, conversations
from plum_jax import generate
from plum_jax.errors import UserError
from plum_jax.evaluation.outcome import Outcome, SpanSet
from plum_jax.evaluation.partonomy import PUBLISHED_MEASURE
from plum_jax.evaluation.spans import bio_counts, decode_spans, span_counts
from plum_jax.evaluation.text import choose
from plum_jax.inference import pool, strip
from plum_jax.switches import switch

MEASURES = ("answer_mean", "answer_sum", "full_mean")
TOKEN_BUCKET = 16
BUCKET_SHARE = 0.8  # the smaller of two padded lengths holds this share of the questions


class Sizes(NamedTuple):
    """How much runs at once; every batch is padded to these, so that few programs are compiled."""

    images: int = 16
    questions: int = 32
    masks: int = 32  # answers whose masks are decoded together


@dataclasses.dataclass(frozen=True)
class Row:
    """A choice and its tokens."""

    choice: Choice
    encoded: Encoded

    @property
    def answer(self):
        return self.choice.turns[-1][1]

    def characters(self, start, end):
        """Token range -> character range in the answer, without white space and </s>; an empty range -> (0, 0)."""
        if start == end:
            return 0, 0
        base = len(self.encoded.text) - len(END) - len(self.answer)
        a, b = int(self.encoded.offsets[start, 0]) - base, int(self.encoded.offsets[end - 1, 1]) - base
        return strip(self.answer, max(a, 0), min(b, len(self.answer)))

    @property
    def targets(self):
        """Token ranges of the constructed spans of the answer, in text order."""
        return decode_spans(self.encoded.bio)


@dataclasses.dataclass(frozen=True)
class Group:
    """The rows of one question of one kind, which differ only in their last answer."""

    index: int  # of the question in the file
    kind: str  # "part" or "object"
    rows: list
    shared: int  # leading tokens that all rows share; at least one token of each row is left

    @property
    def correct(self):
        return next(i for i, row in enumerate(self.rows) if row.choice.correct)

    @property
    def lengths(self):
        """Tokens of the question part and of the longest choice part, as `generate.Questions` holds them."""
        start = self.rows[0].encoded.image_position + 1
        return self.shared - start, max(len(row.encoded.tokens) for row in self.rows) - self.shared


def make_groups(index, question, tokenizer, data, source):
    """Question -> its Groups, {"part": ..., "object": ... where asked}. UserError when an answer does not list its parts."""
    rows = {}
    try:
        for choice in conversations(question):
            spans = [span for span in choice.spans if span.turn == len(choice.turns) - 1]
            encoded = encode(choice.turns, tokenizer, data.template, spans, flavour=switch(data, "data.tokenizer_flavour"))
            rows.setdefault(choice.kind, []).append(Row(choice, encoded))
    except ValueError as error:
        raise UserError(f"{source}: entry {index}: {error}; write the part names at its end, joined as in D 3.1") from error
    return {kind: Group(index, kind, members, _shared(members)) for kind, members in rows.items()}


def _shared(rows):
    """Length of the common prefix of the rows, cut so that every row keeps a token of its own."""
    shortest = min(len(row.encoded.tokens) for row in rows) - 1
    stacked = np.stack([row.encoded.tokens[:shortest] for row in rows])
    differs = (stacked != stacked[0]).any(0)
    return int(differs.argmax()) if differs.any() else shortest


def buckets(lengths):
    """Padded sizes for these lengths, at most two: one for most of them, one for the longest."""
    up = [int(-(-x // TOKEN_BUCKET) * TOKEN_BUCKET) for x in (np.quantile(lengths, BUCKET_SHARE), max(lengths))]
    return sorted(set(up))


def run(model, folder, questions, source, sizes=None, progress=None):
    """Yields an Outcome per question, with all questions of an image together, in file order of their images.

    Args:
      model: inference.Model. folder: that image paths are relative to. questions: [Question]. source: file, for messages.
      progress: called with the number of questions done.

    Raises:
      UserError: an image cannot be read, an answer does not list its parts.
    """
    sizes = sizes or Sizes()
    groups = [make_groups(i, q, model.tokenizer, model.config.data, source) for i, q in enumerate(questions)]
    every = [group for kinds in groups for group in kinds.values()]
    edges = [buckets([group.lengths[axis] for group in every]) for axis in (0, 1)]
    by_image = {}
    for i, question in enumerate(questions):
        by_image.setdefault(question.image_path, []).append(i)
    paths = list(by_image)
    with concurrent.futures.ThreadPoolExecutor(2) as pool_:
        load = lambda chunk: [pool_.submit(load_image, Path(folder) / path) for path in chunk]  # noqa: E731
        chunks = [paths[i : i + sizes.images] for i in range(0, len(paths), sizes.images)]
        ahead = load(chunks[0]) if chunks else []
        for number, chunk in enumerate(chunks):
            pixels = [future.result() for future in ahead]
            ahead = load(chunks[number + 1]) if number + 1 < len(chunks) else []
            images = model.encode_images(pixels, sizes.images)
            outcomes = [
                Outcome(i, questions[i], at, images, groups[i]["part"], groups[i].get("object"))
                for at, path in enumerate(chunk)
                for i in by_image[path]
            ]
            _score(model, images, outcomes, edges, sizes)
            _decode(model, images, outcomes, sizes)
            yield from outcomes
            if progress:
                progress(len(outcomes))


def _score(model, images, outcomes, edges, sizes):
    """Fills in the scores, the predictions and the span sets (still without masks) of the questions of some images."""
    asked = [(o, group) for o in outcomes for group in (o.part, o.object) if group]
    first = asked[0][1].rows[0].encoded
    start = first.image_position + 1
    dtype = switch(model.config.eval, "eval.mc_dtype")
    prefix = generate.run_prefix(model.graphdef, model.params, images.tokens, first.tokens[:start], dtype=dtype)
    bucket = lambda group: tuple(  # noqa: E731
        next(edge for edge in axis if edge >= n) for axis, n in zip(edges, group.lengths, strict=True)
    )
    choices = max(len(group.rows) for _, group in asked)
    shapes = {}
    for item in asked:
        shapes.setdefault(bucket(item[1]), []).append(item)
    for shape in sorted(shapes):
        members = shapes[shape]
        for at in range(0, len(members), sizes.questions):
            batch = members[at : at + sizes.questions]
            arrays = _arrays(batch, shape, sizes.questions, choices, start)
            scores = generate.score_choices(model.graphdef, model.params, prefix, arrays, dtype=dtype)
            values = jax.device_get({name: getattr(scores, name) for name in MEASURES})
            for i, (outcome, group) in enumerate(batch):
                _choose(outcome, group, {name: values[name][i, : len(group.rows)] for name in MEASURES}, model.config.eval)
            _read(model, prefix, arrays, scores, batch, start, sizes)


def _arrays(batch, shape, questions, choices, start):
    """Groups -> generate.Questions padded to `questions` x `choices` and to the bucket `shape`; padding has length 1."""
    long, short = shape
    q = generate.Questions(
        np.zeros(questions, np.int32), np.zeros((questions, long), np.int32), np.ones(questions, np.int32),
        np.zeros((questions, long), bool), np.zeros((questions, choices, short), np.int32),
        np.ones((questions, choices), np.int32), np.zeros((questions, choices, short), bool),
    )  # fmt: skip
    for i, (outcome, group) in enumerate(batch):
        cut = group.shared
        tokens = group.rows[0].encoded.tokens[start:cut]
        q.image[i], q.length[i], q.tokens[i, : len(tokens)] = outcome.image, len(tokens), tokens
        q.is_answer[i, : len(tokens)] = np.arange(start, cut) >= group.rows[0].encoded.answer_range[0]
        for c, row in enumerate(group.rows):
            rest = row.encoded.tokens[cut:]
            q.choice_length[i, c], q.choice_tokens[i, c, : len(rest)] = len(rest), rest
            q.choice_is_answer[i, c, : len(rest)] = np.arange(cut, cut + len(rest)) >= row.encoded.answer_range[0]
    return q


def _choose(outcome, group, scores, config):
    outcome.scores[group.kind] = {name: [float(x) for x in values] for name, values in scores.items()}
    own, tie = scores[switch(config, "eval.mc_score")], switch(config, "eval.tie")
    outcome.predicted[group.kind] = choose(own, tie=tie, correct=group.correct)
    outcome.predicted_published[group.kind] = choose(scores[PUBLISHED_MEASURE])  # the first of equal scores, D 5.1


def _read(model, prefix, arrays, scores, batch, start, sizes):
    """Tags and features of the chosen and the correct row of each part question -> their span sets."""
    wanted = sorted({(i, c) for i, (o, g) in enumerate(batch) if g.kind == "part" for c in (o.predicted["part"], g.correct)})
    shift = prefix.hidden.shape[1] - start  # token -> position in the spliced row, behind the image
    rows = {}
    for at in range(0, len(wanted), sizes.questions):
        some = wanted[at : at + sizes.questions]
        index = np.zeros((2, sizes.questions), np.int32)
        index[:, : len(some)] = np.array(some).T
        readout = jax.device_get(generate.read_rows(model.graphdef, model.params, prefix, arrays, scores, *index))
        rows.update({key: generate.Readout(*(field[r] for field in readout)) for r, key in enumerate(some)})
    for i, (outcome, group) in enumerate(batch):
        if group.kind == "part":
            own, correct = outcome.predicted["part"], group.correct
            targets = group.rows[correct].targets
            outcome.truth = SpanSet(targets, pool(rows[i, correct].features[shift:], targets), [1.0] * len(targets))
            _own_spans(outcome, group.rows[own], rows[i, own], shift, switch(model.config.eval, "eval.span_scope"))


def _own_spans(outcome, chosen, readout, shift, scope):
    """The model's spans of the chosen answer; with scope "all" also those that begin in prompt or image (M D27), which name
    nothing: their token range is empty. Token t behind the image stands at position t + shift of the readout."""
    encoded = chosen.encoded
    start, end = encoded.answer_range
    inside = np.zeros(len(encoded.tokens), bool)
    inside[start:end] = True
    labels = readout.labels[shift : shift + len(encoded.tokens)]
    outcome.bio = bio_counts(labels, encoded.bio, inside)
    if scope == "all":
        tagged = [(a - shift, b - shift) for a, b in decode_spans(readout.labels[: shift + len(encoded.tokens)])]
        kept, ranges = tagged, [(a, b) if a >= start else (0, 0) for a, b in tagged]
    else:
        tagged = decode_spans(labels, inside)
        kept = [r for r in tagged if chosen.characters(*r)[0] < chosen.characters(*r)[1]]  # </s> alone has no mask
        ranges = kept
    outcome.counts = span_counts(tagged, chosen.targets)
    places = [(a + shift, b + shift) for a, b in kept]
    sure = [float(readout.confidence[a:b].mean()) for a, b in places]
    outcome.own = SpanSet(ranges, pool(readout.features, places), sure)


def _decode(model, images, outcomes, sizes):
    """Decodes the masks of all span sets, those with few spans together, so that few ranks are run for nothing."""
    todo = []
    for outcome in outcomes:
        same = outcome.predicted["part"] == outcome.part.correct and outcome.own.ranges == outcome.truth.ranges
        todo += [(outcome, outcome.truth, [outcome.truth, outcome.own] if same else [outcome.truth])]
        todo += [] if same else [(outcome, outcome.own, [outcome.own])]
    todo.sort(key=lambda item: len(item[1].ranges))
    for at in range(0, len(todo), sizes.masks):
        some = todo[at : at + sizes.masks]
        masks = model.decode(images, [o.image for o, _, _ in some], [s.embeds for _, s, _ in some], sizes.masks)
        for (_, _, owners), low_res in zip(some, masks, strict=True):
            for owner in owners:
                owner.low_res = low_res
