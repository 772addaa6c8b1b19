"""Prompts, tokens, loss weights and BIO labels of conversations about one image (M 1.6 to M 1.9, D 4.1).

Spans are found by construction, never by searching the text: the renderer knows where every part name stands.
"""

import dataclasses
import functools
import re

import numpy as np

from plum_jax.errors import UserError

IMAGE = "<image>"
END = "</s>"
SEG = "<seg>"  # behind every span, where the tokenizer knows it (plum_jax/seg_token.py)
OUTSIDE, BEGIN, INSIDE = 0, 1, 2
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)
TEMPLATES = {"llava_v1": SYSTEM, "brief": ""}  # what stands before the first "USER: "; brief is ours, for short rows


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters [char_start, char_end) of the answer of turn number `turn`."""

    turn: int
    char_start: int
    char_end: int


@dataclasses.dataclass(frozen=True)
class Rendered:
    """`text` of a conversation, and for every turn the characters of its answer with the `</s>` that ends it."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One conversation of L tokens; the image placeholder is one token, with id 0, which nobody reads."""

    tokens: np.ndarray  # int32[L]
    loss_weight: np.ndarray  # float32[L] 1 on answers and their </s>
    image_position: int  # index of the placeholder, -1 without an image
    bio: np.ndarray  # int8[L]
    span_of_token: np.ndarray  # int8[L] 0 none, s + 1 the s-th span
    answer_range: tuple[int, int]  # tokens of the last answer with its </s>; empty at the end of an open prompt
    text: str
    offsets: np.ndarray  # int32[L, 2] characters of `text` that a token covers

    @property
    def num_spans(self):
        return int(self.span_of_token.max(initial=0))


def join_parts(parts):
    """["a", "b", "c"] -> "a, b, and c"; two parts give "a, and b" (L(parts) of D 3.1)."""
    return ", ".join([*parts[:-1], f"and {parts[-1]}"]) if len(parts) > 1 else "".join(parts)


def answer_spans(answer, parts):
    """Characters of each part name in an answer that ends in join_parts(parts) + "." -> [(start, end)], in order.

    Answers of comparison questions may list other words for the same parts (head words, D28); they are matched by position
    in the list after the last colon, so that text and masks stay paired. Raises ValueError when there is no such list.
    """
    words = list(parts)
    start = len(answer) - len(join_parts(words)) - 1
    if not (answer.endswith(join_parts(words) + ".") and (start == 0 or answer[start - 1] == " ")):
        head, colon, tail = answer.rpartition(": ")
        words = tail.removesuffix(".").replace(", and ", ", ").split(", ")
        start = len(head) + len(colon)
        if not colon or len(words) != len(parts) or answer[start:] != join_parts(words) + ".":
            raise ValueError(f"answer {answer!r} does not end in the list {join_parts(parts)!r} of its parts")
    spans = []
    for number, word in enumerate(words):
        start += 0 if number == 0 else len(", ") + (len("and ") if number == len(words) - 1 else 0)
        spans.append((start, start + len(word)))
        start += len(word)
    return spans


def render(turns, template, flavour="fast"):
    """[(question, answer or None)] -> Rendered. `<image>` in a question becomes `<im_start><image><im_end>`.

    An answer of None, allowed in the last turn only, ends the prompt at `ASSISTANT:`. Flavour "slow" leaves out white space
    beside the image tokens, which is what the slow Llama tokenizer does that the reference chats with; it trains and
    evaluates with the fast one (M 1.6, D22).
    """
    if template not in TEMPLATES:
        raise UserError(f"template {template!r} is unknown; use one of {', '.join(sorted(TEMPLATES))}")
    text, answers = TEMPLATES[template], []
    for number, (question, answer) in enumerate(turns):
        said = question + (answer or "")
        if END in said or SEG in said or IMAGE in (answer or "") or IMAGE in question[1:]:
            words = f"{END}, {SEG} and {IMAGE} are reserved; {IMAGE} may only start a question"
            raise UserError(f"turn {question!r}, {answer!r}: {words}")
        if not answer and number < len(turns) - 1:
            raise UserError(f"turn {question!r} has no answer but is not the last one; only the last answer may be open")
        said = f"USER: {question} ASSISTANT:".replace(IMAGE, f"<im_start>{IMAGE}<im_end>")
        text += re.sub(rf"\s*(<im_start>{IMAGE}<im_end>)\s*", r"\1", said) if flavour == "slow" else said
        start = len(text)
        text += f" {answer}{END}" if answer else ""
        answers.append((start + 1, len(text)) if answer else (start, start))
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise UserError(f"{text[-200:]!r} holds half of a surrogate pair, which is no character; write whole characters")
    if text.count(IMAGE) > 1:
        raise UserError(f"{text.count(IMAGE)} images in one conversation; one is supported")
    return Rendered(text, tuple(answers))


def _tokenize(text, tokenizer):
    """Text -> (tokens, offsets, image position). The pieces around the image are tokenised separately (M 1.6)."""
    tokens, offsets, image_position, start = [], [], -1, 0
    for number, piece in enumerate(text.split(IMAGE)):
        if number:
            image_position = len(tokens)
            tokens.append(0)
            offsets.append((start, start + len(IMAGE)))
            start += len(IMAGE)
        ids, characters = (_piece if number else _first_piece)(piece, tokenizer)
        skip = int(number > 0)  # the begin-of-sentence token of every piece but the first
        tokens += ids[skip:]
        offsets += [(start + a, start + b) for a, b in characters[skip:]]
        start += len(piece)
    return np.array(tokens, np.int32), np.array(offsets, np.int32).reshape(-1, 2), image_position


def _piece(text, tokenizer):
    """-> (ids, (start, end) of the characters of each)."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _first_piece(text, tokenizer):
    """`_piece` of what stands before the image, which is the same in all conversations of a template."""
    return _remembered(text, tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=64)
def _remembered(text, tokenizer, size):  # size: a tokenizer that has learned a word is another one
    return _piece(text, tokenizer)


def encode(turns, tokenizer, template, spans=(), *, flavour="fast"):
    """Turns and the spans of their answers, in text order -> Encoded. Template and flavour as of `render`.

    A ▁ belongs to the word after it, so the space before an answer or a span counts with it. A tokenizer that knows <seg> gets
    one as the last token of every span.
    """
    rendered = render(turns, template, flavour)
    tokens, offsets, image_position = _tokenize(rendered.text, tokenizer)

    def covered(start, end):
        start -= int(start > 0 and rendered.text[start - 1] == " ")
        return np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))

    loss_weight = np.zeros(len(tokens), np.float32)
    answer_range = (len(tokens), len(tokens))
    for start, end in rendered.answers:
        if end > start:
            inside = covered(start, end)
            loss_weight[inside] = 1
            answer_range = (int(inside[0]), int(inside[-1]) + 1)
        else:
            answer_range = (len(tokens), len(tokens))
    bio, span_of_token = np.zeros(len(tokens), np.int8), np.zeros(len(tokens), np.int8)
    for number, span in enumerate(spans):
        base = rendered.answers[span.turn][0]
        inside = covered(base + span.char_start, base + span.char_end)
        if len(inside) == 0 or span_of_token[inside].any():
            word = rendered.text[base + span.char_start : base + span.char_end]
            raise UserError(f"span {word!r} in {rendered.text!r} has no token of its own; keep spans apart and in text order")
        bio[inside] = INSIDE
        bio[inside[0]] = BEGIN
        span_of_token[inside] = number + 1
    encoded = Encoded(tokens, loss_weight, image_position, bio, span_of_token, answer_range, rendered.text, offsets)
    seg = seg_id(tokenizer)
    return encoded if seg is None or not len(spans) else _with_seg(encoded, seg)


def seg_id(tokenizer):
    """Id of <seg>, None for a tokenizer without it."""
    found = tokenizer.convert_tokens_to_ids(SEG)
    return None if found in (None, tokenizer.unk_token_id) else found


def _with_seg(encoded, seg):
    """Adds <seg> behind every span: an answer token of the span that covers no character."""
    last = [int(np.flatnonzero(encoded.span_of_token == s + 1)[-1]) for s in range(encoded.num_spans)]
    at = np.array(last) + 1
    start, end = encoded.answer_range
    return dataclasses.replace(
        encoded,
        tokens=np.insert(encoded.tokens, at, seg),
        loss_weight=np.insert(encoded.loss_weight, at, 1),
        bio=np.insert(encoded.bio, at, INSIDE),
        span_of_token=np.insert(encoded.span_of_token, at, np.arange(1, len(at) + 1)),
        answer_range=(start + int((at <= start).sum()), end + int((at < end).sum())),
        offsets=np.insert(encoded.offsets, at, encoded.offsets[last][:, 1:], axis=0),
    )


def keep_spans(encoded, kept):
    """Only the spans with these numbers (0-based, increasing); the others become outside, the kept ones close up."""
    slots = np.zeros(encoded.num_spans + 1, np.int8)
    for new, old in enumerate(kept):
        slots[old + 1] = new + 1
    span_of_token = slots[encoded.span_of_token]
    bio = np.where(span_of_token > 0, encoded.bio, OUTSIDE).astype(np.int8)
    return dataclasses.replace(encoded, bio=bio, span_of_token=span_of_token)


def truncate(encoded, max_tokens):
    """At most `max_tokens` tokens. A span that does not fit is dropped whole, never cut (D 4.1.4). -> (Encoded, kept spans)."""
    fits = [s for s in range(encoded.num_spans) if np.flatnonzero(encoded.span_of_token == s + 1)[-1] < max_tokens]
    if len(encoded.tokens) <= max_tokens:
        return encoded, fits
    if encoded.image_position >= max_tokens:
        raise UserError(f"config.data.max_tokens {max_tokens} cuts the image off; use more than {encoded.image_position}")
    short = keep_spans(encoded, fits)
    cut = {name: getattr(short, name)[:max_tokens] for name in ("tokens", "loss_weight", "bio", "span_of_token", "offsets")}
    start, end = short.answer_range
    return dataclasses.replace(short, answer_range=(min(start, max_tokens), min(end, max_tokens)), **cut), fits
