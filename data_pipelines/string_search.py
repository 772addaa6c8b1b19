"""Spans found by searching the text for their words, as the reference finds them (D 4.1.5).

For faithful runs alone (config.data.span_source = "string_search"): a part name that stands in the label of the object, before
the list of parts, is taken for the part, and a name that is tokenised otherwise inside the sentence is not found.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from data_pipelines.conversation import BEGIN, INSIDE, OUTSIDE, encode
from plum_jax.switches import switch

ANSWER = "ASSISTANT:"
WORD_START = "▁"


class TextSwitches(NamedTuple):
    """The switches of config.data that decide about tokens and labels; looked up once, as each row needs them."""

    flavour: str
    span_source: str

    @classmethod
    def of(cls, data):
        return cls(switch(data, "data.tokenizer_flavour"), switch(data, "data.span_source"))


def search_spans(encoded, names, tokenizer, *, every=False):
    """The labels of a conversation as the reference makes them.

    Longer names are searched first. A name is found where its tokens stand after the first `ASSISTANT:`, begin on a token that
    has no label yet, and are not followed by the rest of a word; what precedes them is not looked at.

    Args:
      encoded: Encoded, whose own spans do not matter.
      names: the words to search for; equal ones are searched once.
      every: whether all places of a name are labelled (its evaluation) or only the first (its training).

    Returns:
      (Encoded with these labels, [number in `names` of each span], in text order). Of equal names the number is the last one,
      as in a dictionary.
    """
    tokens = encoded.tokens.tolist()
    pieces = tokenizer.convert_ids_to_tokens(tokens)
    if encoded.image_position >= 0:
        tokens[encoded.image_position], pieces[encoded.image_position] = -1, WORD_START  # an id that no word has
    answer = tokenizer(ANSWER, add_special_tokens=False).input_ids
    after = next((j for j in range(len(tokens)) if tokens[j : j + len(answer)] == answer), len(tokens))
    labels, owner = np.full(len(tokens), OUTSIDE, np.int8), {}
    numbers = {name: number for number, name in enumerate(names)}
    for name in sorted(numbers, key=len, reverse=True):
        word = tokenizer(name, add_special_tokens=False).input_ids
        for j in range(after + 1, len(tokens) - len(word) + 1):
            end = j + len(word)
            if not word or tokens[j:end] != word or labels[j] != OUTSIDE or _inside_word(pieces, end):
                continue
            labels[j:end], labels[j] = INSIDE, BEGIN
            owner[j] = numbers[name]
            if not every:
                break
    starts = np.flatnonzero(labels == BEGIN)  # a longer reach of another name may have overwritten one
    spans = np.where(labels == OUTSIDE, 0, np.cumsum(labels == BEGIN)).astype(np.int8)
    return dataclasses.replace(encoded, bio=labels, span_of_token=spans), [owner[j] for j in starts.tolist()]


def encode_owned(turns, spans, owners, names, tokenizer, data, switches):
    """A conversation with the labels that config.data.span_source says.

    Args:
      turns, spans: as of `encode`. owners, names: for each span what owns it, and the word that a search looks for.
      data: config.data. switches: its `TextSwitches`.

    Returns:
      (Encoded, [owner of each of its spans], number of owners that no span has any more).
    """
    search = switches.span_source == "string_search"
    encoded = encode(turns, tokenizer, data.template, () if search else spans, flavour=switches.flavour)
    if not search:
        return encoded, list(owners), 0
    encoded, found = search_spans(encoded, names, tokenizer)
    return encoded, [owners[number] for number in found], len(owners) - len(set(found))


def _inside_word(pieces, end):
    """Whether the token after a name goes on with its word."""
    return end < len(pieces) and WORD_START not in pieces[end] and pieces[end][:1].isalnum()
