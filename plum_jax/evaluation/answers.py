"""Tags and features of token rows -> answers with their spans (`Said`), still without masks."""

import numpy as np

from plum_jax.evaluation.occurrences import token_ranges
from plum_jax.evaluation.outcome import Masks, Said
from plum_jax.evaluation.spans import bio_counts, decode_spans, named_spans, span_counts, strip
from plum_jax.inference import characters, pool, token_offsets


def constructed(row, readout, shift, everywhere=False):
    """The spans where the answer's renderer put the part names (published protocol).

    Args:
      row: rows.Row. readout: greedy.Readout of the row. shift: token t behind the image stands at t + shift of the readout.
      everywhere: instead, every place where a search finds a name, as the published evaluation does (D 4.1.5).
    """
    ranges, parts = row.targets, list(row.choice.parts)
    if everywhere:
        found = token_ranges(row.encoded, parts)
        ranges, parts = [tokens for tokens, _ in found], [name for _, name in found]
    chars = [row.characters(*span) for span in ranges]
    return Said(
        row.answer, row.choice.index, ranges, chars, parts, Masks(pool(readout.features[shift:], ranges)),
        [1.0] * len(ranges),
    )  # fmt: skip


def tagged(row, readout, shift, scope):
    """The model's own spans of a choice; arguments of `constructed`.

    Args:
      scope: "all" takes also those that begin in prompt or image (M D27), which name nothing: their text is empty.
    """
    encoded = row.encoded
    start, end = encoded.answer_range
    inside = np.zeros(len(encoded.tokens), bool)
    inside[start:end] = True
    labels = readout.labels[shift : shift + len(encoded.tokens)]
    if scope == "all":
        found = [(a - shift, b - shift) for a, b in decode_spans(readout.labels[: shift + len(encoded.tokens)])]
        kept = found
    else:
        found = decode_spans(labels, inside)
        kept = [span for span in found if row.characters(*span)[0] < row.characters(*span)[1]]  # </s> alone has no mask
    places = [(a + shift, b + shift) for a, b in kept]
    names = dict(zip(row.targets, row.choice.parts, strict=True))  # a span that stands there names that part (D28)
    return Said(
        row.answer, row.choice.index, kept, [row.characters(*span) for span in kept], [names.get(span) for span in kept],
        Masks(pool(readout.features, places)), _sure(readout, places),
        span_counts(found, row.targets), bio_counts(labels, encoded.bio, inside),
    )  # fmt: skip


def generated(tokenizer, tokens, readout, before):
    """What the model said by itself.

    Args:
      tokens: int[n] generated ids with </s>. readout: of these tokens; or of the whole row, whose prompt and image fill the
        `before` first positions, and then spans may begin there.
    """
    text, offsets = token_offsets(tokenizer, tokens)
    labels = readout.labels[: before + len(tokens)]
    places = decode_spans(labels) if before else named_spans(labels, offsets)
    chars = [strip(text, *characters(a - before, b - before, offsets)) for a, b in places]
    return Said(text, None, places, chars, [None] * len(places), Masks(pool(readout.features, places)), _sure(readout, places))


def _sure(readout, places):
    return [float(readout.confidence[a:b].mean()) for a, b in places]
