"""What the language model is run for after training: scoring answer choices, greedy decoding, reading out spans.

Answer choices share their prefix (design 4): the rows of an image agree up to the image, the choices of a question agree up
to the answer. Each shared part runs once, its keys and values are kept, and only the rest is run per choice. Everything is
jitted with the graph definition as a static argument, so two checkpoints of one config share their compiled programs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plum_jax import greedy
from plum_jax.greedy import Readout
from plum_jax.models.plum import PlumConfig, bind, build
from plum_jax.precision import rounded
from plum_jax.switches import switch

jit = functools.partial(jax.jit, static_argnames="graphdef")


class Prefix(NamedTuple):
    """What all rows of an image share: the tokens up to and including the image. B images, S0 spliced positions."""

    hidden: jax.Array  # [B, S0, D] after the final norm
    keys: jax.Array  # [L, B, N, S0, H]
    values: jax.Array
    nll: jax.Array  # float32[B] summed over the text tokens but the first
    count: int  # of those tokens


class Questions(NamedTuple):
    """G questions with C choices each. A row is prefix + question part + choice part; both parts are never empty.

    Which tokens stand in which part is free as long as the rows of a question share the question part.
    """

    image: jax.Array  # int32[G] index into the prefix
    tokens: jax.Array  # int32[G, Q] right-padded
    length: jax.Array  # int32[G]
    is_answer: jax.Array  # bool[G, Q] tokens of the scored answer (the start that all choices share)
    choice_tokens: jax.Array  # int32[G, C, A] right-padded
    choice_length: jax.Array  # int32[G, C]; padding choices have length 1 and are ignored by the caller
    choice_is_answer: jax.Array  # bool[G, C, A]


class Scores(NamedTuple):
    """Negative log-likelihoods float32[G, C], lower is better, and the states that were computed on the way."""

    answer_mean: jax.Array  # per answer token, </s> included
    answer_sum: jax.Array  # of the answer: minus its log-probability
    full_mean: jax.Array  # per text token of the whole row but <s>: the reference's score (M 8.1, D 5.1)
    hidden: jax.Array  # [G, Q, D]
    choice_hidden: jax.Array  # [G, C, A, D]


class LivePrograms(NamedTuple):
    """What `inference.Model` runs on the device; `serving.ExportedPrograms` has the same methods."""

    graphdef: object
    params: dict
    use_feedback: bool  # config.eval.feedback

    @classmethod
    def of(cls, loaded):
        """LoadedModel -> its programs, the parameters on the device."""
        config = loaded.config
        graphdef = build(PlumConfig.from_dict(config.model.to_dict()))[0]
        return cls(graphdef, jax.tree.map(jnp.asarray, loaded.params), bool(switch(config.eval, "eval.feedback")))

    def encode_images(self, clip_pixels, sam_pixels, resized_hw):
        return encode_images(self.graphdef, self.params, clip_pixels, sam_pixels, resized_hw)

    def generate(self, image_tokens, tokens, token_count, image_position, **options):
        return generate(self.graphdef, self.params, image_tokens, tokens, token_count, image_position, **options)

    def decode_masks(self, image_embeddings, image, span_embeds, span_valid):
        return decode_masks(
            self.graphdef, self.params, image_embeddings, image, span_embeds, span_valid, use_feedback=self.use_feedback
        )


@jit
def encode_images(graphdef, params, clip_pixels, sam_pixels, resized_hw):
    """uint8[B, I, I, 3], uint8[B, S, S, 3], int32[B, 2] -> (image tokens [B, P, D], image embeddings [B, g, g, W])."""
    model = bind(graphdef, params)
    return model.image_tokens(clip_pixels), model.image_embeddings(sam_pixels, resized_hw)


@jit
def image_tokens(graphdef, params, clip_pixels):
    """uint8[B, I, I, 3] -> [B, P, D]: what the language model sees of images that SAM need not see."""
    return bind(graphdef, params).image_tokens(clip_pixels)


@functools.partial(jax.jit, static_argnames=("graphdef", "dtype"))
def run_prefix(graphdef, params, image_tokens, tokens, *, dtype="float32"):
    """The shared start of all rows.

    Args:
      image_tokens: [B, P, D]. tokens: int32[T0], the same for all images; the last one is the image placeholder.
      dtype: of the likelihoods, as of `score_choices`.

    Returns:
      Prefix.
    """
    model = bind(graphdef, params)
    batch, text = len(image_tokens), tokens.shape[0] - 1
    rows = jnp.broadcast_to(tokens, (batch, text + 1))
    embeds, _ = model.embed(rows, jnp.full(batch, text), image_tokens)
    lengths = jnp.full(batch, embeds.shape[1])
    cache = model.llama.empty_cache(batch, embeds.shape[1], embeds.dtype)
    hidden, (keys, values, _) = model.llama.extend(embeds, cache, lengths, empty=True)
    nll = _nll(model, hidden[:, : text - 1], rows[:, 1:text], dtype).sum(-1)
    return Prefix(hidden, keys, values, nll, jnp.int32(text - 1))


@functools.partial(jax.jit, static_argnames=("graphdef", "dtype"))
def score_choices(graphdef, params, prefix, questions, *, dtype="float32"):
    """Scores every choice of every question. Equal to running each row on its own, up to rounding.

    Args:
      prefix: Prefix of B images. questions: Questions.
      dtype: "bfloat16" rounds the likelihood of each token, the sum over a row and its mean, as a bf16 run of the reference
        does: scores between 1 and 2 then lie 1/128 apart, and choices tie (M D24).

    Returns:
      Scores.
    """
    model, q = bind(graphdef, params), questions
    groups, choices, size = q.choice_tokens.shape
    start, long = prefix.hidden.shape[1], q.tokens.shape[1]
    grown = long + choices * size
    room = ((0, 0), (0, 0), (0, 0), (0, grown), (0, 0))
    cache = tuple(jnp.pad(x[:, q.image], room) for x in (prefix.keys, prefix.values))
    positions, mask = _tree(start, q.length, long, choices, size)
    tokens = jnp.concatenate([q.tokens, q.choice_tokens.reshape(groups, -1)], 1)
    states, _ = model.llama.extend(
        _text(model, tokens), (*cache, jnp.full(groups, start)), jnp.full(groups, grown), positions=positions, mask=mask
    )
    hidden, choice_hidden = states[:, :long], states[:, long:].reshape(groups * choices, size, -1)
    before = prefix.hidden[q.image, -1]
    nll, answer_nll, answer_count = _sums(model, before, hidden, q.tokens, q.length, q.is_answer, dtype)

    flat = lambda x: x.reshape(groups * choices, *x.shape[2:])  # noqa: E731
    last = jnp.take_along_axis(hidden, q.length[:, None, None] - 1, 1)[:, 0]
    choice_nll, choice_answer_nll, choice_count = _sums(
        model, jnp.repeat(last, choices, 0), choice_hidden, flat(q.choice_tokens), flat(q.choice_length),
        flat(q.choice_is_answer), dtype,
    )  # fmt: skip
    by_choice = lambda x: x.reshape(groups, choices, *x.shape[1:])  # noqa: E731
    answer = rounded(answer_nll[:, None] + by_choice(choice_answer_nll), dtype)
    full = rounded((prefix.nll[q.image] + nll)[:, None] + by_choice(choice_nll), dtype)
    answer_count = answer_count[:, None] + by_choice(choice_count)
    full_count = prefix.count + q.length[:, None] + q.choice_length
    answer_mean, full_mean = (rounded(x, dtype) for x in (answer / jnp.maximum(answer_count, 1), full / full_count))
    return Scores(answer_mean, answer, full_mean, hidden, by_choice(choice_hidden))


def _tree(start, length, long, choices, size):
    """A question of `long` padded tokens and `choices` x `size` tokens of its choices in one row, behind `start` positions.

    Every choice continues the question as if it were alone: nothing is stored or computed once per choice that all share.

    Args:
      length: int32[G] valid tokens of the question parts.

    Returns:
      (positions int32[G, n], mask bool[G, 1, n, start + n]) with n = long + choices * size.
    """
    at = jnp.arange(long + choices * size)
    piece = jnp.where(at < long, -1, (at - long) // size)  # -1: the question
    within = jnp.where(at < long, at, (at - long) % size)
    positions = start + within + jnp.where(piece < 0, 0, length[:, None])
    same = (piece[:, None] == piece) & (at[:, None] >= at)
    question = (piece[:, None] >= 0) & (at < length[:, None, None])
    mask = jnp.pad(same | question, ((0, 0), (0, 0), (start, 0)), constant_values=True)
    return positions, mask[:, None]


@jit
def read_rows(graphdef, params, prefix, questions, scores, group, choice):
    """Tags and span features of chosen rows, over their whole length: the tagger looks in both directions.

    Args:
      group, choice: int32[R], which row of `questions`.

    Returns:
      Readout with T = S0 + Q + A; positions are those of the spliced row.
    """
    model, q = bind(graphdef, params), questions
    shared, question = prefix.hidden[q.image[group]], scores.hidden[group]
    pieces = jnp.concatenate([shared, question, scores.choice_hidden[group, choice]], 1)
    skip = questions.tokens.shape[1] - q.length[group, None]  # padding of the question part, in the middle of a row
    t = jnp.arange(pieces.shape[1])
    at = t + jnp.where(t >= shared.shape[1] + q.length[group, None], skip, 0)
    hidden = jnp.take_along_axis(pieces, jnp.minimum(at, pieces.shape[1] - 1)[..., None], 1)
    length = shared.shape[1] + q.length[group] + q.choice_length[group, choice]
    return _read(model, hidden, length)


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "end_token", "whole_rows"))
def generate(
    graphdef, params, image_tokens, tokens, token_count, image_position, answer=None, *, max_new_tokens, end_token,
    whole_rows=False,
):  # fmt: skip
    """Greedy decoding of R prompts of different lengths, then one run of the tagger over each full sequence.

    Args:
      image_tokens: [R, P, D]. tokens: int32[R, T] right-padded prompts. token_count: int32[R].
      image_position: int32[R], -1 for a prompt without image. end_token: id of </s>.
      answer: int32[R, A] answers to spell out, each up to </s>: the model only puts its <seg> tokens between their words.
      whole_rows: read out the prompt and the image too.

    Returns:
      (generated int32[R, max_new_tokens], count int32[R] with </s> included, Readout at the generated positions, or at all
      positions of the spliced rows, where the answer follows the prompt at once).
    """
    model = bind(graphdef, params)
    rows, size = tokens.shape[0], tokens.shape[1] - 1 + image_tokens.shape[1] + max_new_tokens
    keys, values, _ = model.llama.empty_cache(rows, size, model.config.dtype)
    hidden, token, cache = prefill(model, image_tokens, tokens, token_count, image_position, keys, values)
    step = functools.partial(decode_step, model)
    if answer is not None:
        step, token, cache = functools.partial(spell, model, answer), answer[:, 0], (*cache, jnp.ones(rows, jnp.int32))
    said = greedy.decode(step, token, cache, hidden, max_new_tokens=max_new_tokens, end_token=end_token)
    length = cache[2]
    readout = read_sequence(model, hidden, said.states, length, said.count)
    return said.generated, said.count, readout if whole_rows else greedy.take_generated(readout, length, max_new_tokens)


def prefill(model, image_tokens, tokens, token_count, image_position, keys, values):
    """Runs the prompts, with the image features in place of the placeholder.

    Args:
      model: Plum. image_tokens, tokens, token_count, image_position: as of `generate`.
      keys, values: [L, R, N, S + room, H] of zeros, with S = T - 1 + P spliced positions.

    Returns:
      (hidden [R, S, D], first token of the answers int32[R], cache (keys, values, int32[R] spliced lengths)).
    """
    embeds, _ = model.embed(tokens, image_position, image_tokens)
    length = token_count + jnp.where(image_position >= 0, model.num_image_tokens - 1, 0)
    hidden, cache = model.llama.extend(embeds, (keys, values, jnp.zeros_like(length)), length, empty=True)
    last = jnp.take_along_axis(hidden, length[:, None, None] - 1, 1)[:, 0]
    return hidden, _most_likely(model, last), cache


def decode_step(model, token, active, cache):
    """One token of every row: int32[R], bool[R], cache -> (next token int32[R], state [R, D] of `token`, cache)."""
    state, cache = model.llama.extend(_text(model, token[:, None]), cache, active.astype(jnp.int32))
    return _most_likely(model, state[:, 0]), state[:, 0], cache


def spell(model, answer, token, active, cache):
    """`decode_step` along given answers int32[R, A]: the next token is <seg> where the model finds that most likely and has not
    just said it, else the answer's next. The last entry of the cache is int32[R], the token of the answer that comes next."""
    *cache, at = cache
    likely, state, cache = decode_step(model, token, active, tuple(cache))
    insert = (likely == model.config.seg_token) & (token != model.config.seg_token)
    following = jnp.take_along_axis(answer, jnp.minimum(at, answer.shape[1] - 1)[:, None], 1)[:, 0]
    return jnp.where(insert, likely, following), state, (*cache, jnp.where(insert, at, at + 1))


def read_sequence(model, hidden, states, length, count):
    """Tags and span features of prompts and answers as one sequence, which the tagger sees in both directions.

    Args:
      hidden: [R, S, D] of the prompts, `length` int32[R] of them valid.
      states: [R, M, D] of the answers, `count` int32[R] of them valid.

    Returns:
      Readout at S + M positions: `length` of the prompt, `count` of the answer, then padding.
    """
    size, room = hidden.shape[1], states.shape[1]
    t = jnp.arange(size + room)
    at = jnp.where(t < length[:, None], t, jnp.minimum(size + t - length[:, None], size + room - 1))
    full = jnp.take_along_axis(jnp.concatenate([hidden, states], 1), at[..., None], 1)
    return _read(model, full, length + count)


@functools.partial(jax.jit, static_argnames=("graphdef", "use_feedback"))
def decode_masks(graphdef, params, image_embeddings, image, span_embeds, span_valid, *, use_feedback=True):
    """Masks of the spans of R answers, each span seeing the masks of the spans before it (M 5.1).

    Args:
      image_embeddings: [B, g, g, W]. image: int32[R]. span_embeds: float32[R, N, W]. span_valid: bool[R, N].
      use_feedback: False decodes every span alone, as the reference does once a checkpoint is merged (M D20).

    Returns:
      float32[R, N, 4g, 4g] logits, zeros for invalid slots.
    """
    return masks_of(bind(graphdef, params), image_embeddings, image, span_embeds, span_valid, use_feedback=use_feedback)


def masks_of(model, image_embeddings, image, span_embeds, span_valid, *, use_feedback=True):
    """`decode_masks` of a bound model."""
    embeds = span_embeds.astype(image_embeddings.dtype)
    return model.decode_masks(image_embeddings[image], embeds, span_valid, use_feedback=use_feedback)[0]


def _text(model, tokens):
    """int32[...] -> token embeddings [..., D] in the dtype of activations."""
    return model.llama.token_embeddings(tokens).astype(model.config.dtype)


def _most_likely(model, state):
    """[R, D] -> int32[R], the token that the head finds most likely next."""
    return model.logits(state).argmax(-1).astype(jnp.int32)


def _nll(model, hidden, targets, dtype):
    """hidden [..., D], targets int32[...] -> float32[...] negative log-likelihood of each target, rounded to `dtype`."""
    logits = model.logits(hidden)
    return rounded(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0], dtype)


def _sums(model, before, hidden, tokens, length, is_answer, dtype):
    """Summed negative log-likelihood of one part of R rows: (of all tokens, of those of the answer, how many are these).

    Args:
      before: [R, D], the state that predicts the first token. hidden: [R, T, D] of `tokens` int32[R, T].
    """
    nll = _nll(model, jnp.concatenate([before[:, None], hidden[:, :-1]], 1), tokens, dtype)
    valid = jnp.arange(tokens.shape[1]) < length[:, None]
    said = valid & is_answer
    return jnp.where(valid, nll, 0).sum(-1), jnp.where(said, nll, 0).sum(-1), said.sum(-1)


def _read(model, hidden, length):
    """hidden [R, T, D], length int32[R] -> Readout of the whole rows.

    Without a tagger there are no labels: tokens say what is a <seg>, and the confidence is how likely each was to be one.
    """
    features = model.project(hidden).astype(jnp.float32)
    if model.config.seg_token is not None:
        likely = jax.nn.softmax(model.logits(hidden))[..., model.config.seg_token]
        return Readout(jnp.zeros(likely.shape, jnp.int8), jnp.pad(likely[:, :-1], ((0, 0), (1, 0))), features)
    valid = jnp.arange(hidden.shape[1]) < length[:, None]
    tags = model.tag_logits(hidden, valid)
    return Readout(tags.argmax(-1).astype(jnp.int8), jax.nn.softmax(tags).max(-1), features)
