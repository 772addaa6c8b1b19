"""Questions as token rows: the choices of a question with what they share, and the padded sizes for them (host side, NumPy)."""

import dataclasses

import numpy as np

from data_pipelines.conversation import END, Encoded, encode
from data_pipelines.partonomy.records import Choice, conversations, second_conversations
from plum_jax.errors import UserError
from plum_jax.evaluation.spans import decode_spans, strip
from plum_jax.switches import switch

SECOND = "second_after_predicted"  # kind of the rows of the second question after the first answer that the model chose
TOKEN_BUCKET = 8
BUCKET_SHARE = 0.8  # the smaller of two padded lengths holds this share of the questions


@dataclasses.dataclass(frozen=True)
class Row:
    """A choice and its tokens."""

    choice: Choice
    encoded: Encoded

    @property
    def answer(self):
        return self.choice.turns[-1][1]

    def characters(self, start, end):
        """Token range -> character range in the answer, without white space and </s>; (0, 0) for one that starts before it."""
        if start < self.encoded.answer_range[0]:
            return 0, 0
        base = len(self.encoded.text) - len(END) - len(self.answer)
        a, b = int(self.encoded.offsets[start, 0]) - base, int(self.encoded.offsets[end - 1, 1]) - base
        return strip(self.answer, max(a, 0), min(b, len(self.answer)))

    @property
    def targets(self):
        """Token ranges of the constructed spans of the answer, in text order; not those of an earlier answer."""
        t = np.arange(len(self.encoded.bio))
        return decode_spans(self.encoded.bio, (t >= self.encoded.answer_range[0]) & (t < self.encoded.answer_range[1]))

    @property
    def constructed(self):
        """{token range: part} of the constructed spans."""
        return dict(zip(self.targets, self.choice.parts, strict=True))


@dataclasses.dataclass(frozen=True)
class Group:
    """The rows of one question of one kind, which differ only in their last answer."""

    index: int  # of the question in the file
    kind: str  # "part", "object" or SECOND
    rows: list
    shared: int  # leading tokens that all rows share; at least one token of each row is left

    @property
    def correct(self):
        return next(i for i, row in enumerate(self.rows) if row.choice.correct)

    @property
    def asks_for(self):
        """ "part" or "object"."""
        return self.rows[0].choice.kind

    @property
    def lengths(self):
        """Tokens of the question part and of the longest choice part, as `generate.Questions` holds them."""
        start = self.rows[0].encoded.image_position + 1
        return self.shared - start, max(len(row.encoded.tokens) for row in self.rows) - self.shared

    @property
    def spread(self):
        """By how many tokens the longest row is longer than the correct one."""
        lengths = [len(row.encoded.tokens) for row in self.rows]
        return max(lengths) - lengths[self.correct]


def make_groups(index, question, tokenizer, data, source):
    """Question -> its Groups, {"part": ..., "object": ... where asked}. UserError when an answer does not list its parts.

    Args:
      index: of the question in its file. data: config.data. source: the file, for messages.
    """
    rows = {}
    for row in _encode(index, lambda: conversations(question), tokenizer, data, source):
        rows.setdefault(row.choice.kind, []).append(row)
    return {kind: Group(index, kind, members, _shared(members)) for kind, members in rows.items()}


def second_group(index, question, first, tokenizer, data, source):
    """The rows of the second of two questions after answer `first` to the first; arguments and errors of `make_groups`."""
    rows = _encode(index, lambda: second_conversations(question, first), tokenizer, data, source)
    return Group(index, SECOND, rows, _shared(rows))


def _encode(index, choices, tokenizer, data, source):
    try:
        found = []
        for choice in choices():
            flavour = switch(data, "data.tokenizer_flavour")
            found.append(Row(choice, encode(choice.turns, tokenizer, data.template, choice.spans, flavour=flavour)))
        return found
    except ValueError as error:
        raise UserError(f"{source}: entry {index}: {error}; write the part names at its end, joined as in D 3.1") from error


def _shared(rows):
    """Length of the common prefix of the rows, cut so that every row keeps a token of its own."""
    shortest = min(len(row.encoded.tokens) for row in rows) - 1
    stacked = np.stack([row.encoded.tokens[:shortest] for row in rows])
    differs = (stacked != stacked[0]).any(0)
    return int(differs.argmax()) if differs.any() else shortest


class Buckets:
    """Padded sizes (question part, choice part) for groups, few of them: of each part one for most and one for the longest.

    Args:
      groups: [{kind: Group}] of all questions of the run, so that a part of the run has the same sizes.
    """

    def __init__(self, groups):
        every = [group for kinds in groups for group in kinds.values()]
        # The second question may follow another answer than the correct one, and a longer one.
        longest = [kinds["part"].spread + kinds["object"].spread for kinds in groups if "object" in kinds]
        extra = max(longest, default=0), 0
        self.edges = [edges([group.lengths[axis] for group in every], extra[axis]) for axis in (0, 1)]
        self.choices = max(len(group.rows) for group in every)

    def __call__(self, group):
        """-> (Q, A)."""
        return tuple(
            next((edge for edge in axis if edge >= n), _round_up(n)) for axis, n in zip(self.edges, group.lengths, strict=True)
        )

    @staticmethod
    def fill(items, total):
        """[((Q, A), item)] -> [((Q, A), items)]: full batches in their own size, what is left over together in the next one."""
        shapes, found, rest, size = {}, [], [], (0, 0)
        for shape, item in items:
            shapes.setdefault(shape, []).append(item)
        for shape in sorted(shapes):
            members, size = rest + shapes[shape], tuple(map(max, size if rest else shape, shape))
            whole = len(members) // total * total
            found += [(size, members[:whole])] if whole else []
            rest = members[whole:]
        return found + ([(size, rest)] if rest else [])


def edges(lengths, extra=0):
    """Padded sizes for these lengths, at most two; the larger one holds the longest with `extra` more."""
    return sorted({_round_up(np.quantile(lengths, BUCKET_SHARE)), _round_up(max(lengths) + extra)})


def _round_up(length):
    return int(-(-length // TOKEN_BUCKET) * TOKEN_BUCKET)
