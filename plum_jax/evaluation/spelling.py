"""The own spans of a model with <seg> tokens in a given answer: where it puts them itself when it spells the answer out.

A tagger reads a whole answer at once. A <seg> is part of the text, so the words are given one by one, and after each the model
may say <seg> before the next. What follows depends on it, as when the model speaks by itself.
"""

import jax
import numpy as np

from plum_jax.evaluation.outcome import Masks, Said
from plum_jax.evaluation.spans import bio_counts, decode_spans, span_counts
from plum_jax.greedy import Readout
from plum_jax.inference import PROMPT_BUCKET, pad_rows, pool
from plum_jax.seg_token import as_spans


def own_spans(model, programs, image_tokens, batch, total, longest):
    """Spells out answers.

    Args:
      model: inference.Model with a <seg>. programs: Programs. image_tokens: of the images of the batch.
      batch: [(row in the batch, Place of its image, rows.Row)]. total: rows of a batch. longest: tokens of the longest row.

    Returns:
      {row in the batch: Said}, still without masks.
    """
    cut = {at: row.encoded.answer_range[0] for at, _, row in batch}
    first = batch[0][2].encoded  # padding spells this, of whatever image
    prompts, answers = [[first.tokens[: first.answer_range[0]]] * total, [_words(first, model.seg)] * total]
    image, position = np.zeros(total, np.int32), np.full(total, first.image_position, np.int32)
    for at, place, row in batch:
        prompts[at], answers[at] = row.encoded.tokens[: cut[at]], _words(row.encoded, model.seg)
        image[at], position[at] = place.index, row.encoded.image_position
    tokens, count = pad_rows(prompts, total, PROMPT_BUCKET, least=longest)
    given, _ = pad_rows(answers, total, PROMPT_BUCKET, least=longest // 2)
    said, said_count, readout = jax.device_get(programs.answer(
        image_tokens, image, tokens, count, position, given, max_new_tokens=2 * given.shape[1], end_token=model.end_token,
    ))  # fmt: skip
    return {
        at: spelled(row, said[at, : said_count[at]], Readout(*(field[at : at + 1] for field in readout)), model.seg)
        for at, _, row in batch
    }


def _words(encoded, seg):
    """Tokens of the answer without <seg>."""
    tokens = encoded.tokens[slice(*encoded.answer_range)]
    return tokens[tokens != seg]


def spelled(row, tokens, readout, seg):
    """What the model spelled out -> Said, its spans as token ranges of `row`, where the <seg> tokens are constructed.

    Args:
      row: rows.Row. tokens: int[n], its answer with the model's <seg> tokens. readout: of these, [1, n, ...].
    """
    encoded, is_seg = row.encoded, tokens == seg
    start, end = encoded.answer_range
    places = start + np.flatnonzero(encoded.tokens[start:end] != seg)  # of the words in the row
    places = places[np.maximum(np.cumsum(~is_seg) - 1, 0)]  # for every token that was said: its word's, or the last word's
    chars = [row.characters(t, t + 1) for t in places]
    offsets = [(b, b) if mark else (a, b) for mark, (a, b) in zip(is_seg, chars, strict=True)]
    labels, confidence, features = (field[0] for field in as_spans(readout, is_seg[None], [(row.answer, offsets)]))
    found = decode_spans(labels[: len(tokens)])
    ranges = [(int(places[a]), int(places[b - 1]) + 1) for a, b in found]
    ranges = [(a, b + int(b < end and encoded.tokens[b] == seg)) for a, b in ranges]
    own = np.zeros(len(encoded.tokens), np.int8)
    for a, b in ranges:
        own[a:b], own[a] = 2, 1
    inside = (np.arange(len(own)) >= start) & (np.arange(len(own)) < end)
    return Said(
        row.answer, row.choice.index, ranges, [row.characters(*span) for span in ranges],
        [row.constructed.get(span) for span in ranges], Masks(pool(features, found)),
        [float(confidence[a:b].mean()) for a, b in found], span_counts(ranges, row.targets),
        bio_counts(own, encoded.bio, inside),
    )  # fmt: skip
