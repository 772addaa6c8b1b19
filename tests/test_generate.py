"""Shared-prefix scoring equals whole rows; cached greedy decoding equals the full forward; batches equal single prompts."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from plum_jax import generate
from plum_jax.evaluation.text import choose
from plum_jax.models.plum import bind
from plum_jax.precision import rounded
from tests.model_fixtures import small_model

CONFIG, GRAPHDEF, PARAMS = small_model()
MODEL = bind(GRAPHDEF, PARAMS)
PATCHES = MODEL.num_image_tokens
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, PATCHES, CONFIG.llama.width)).astype(np.float32)
PREFIX = np.array([1, 7, 9, 0], np.int32)  # the last one is the image


def random_tokens(n):
    return RNG.integers(3, CONFIG.llama.vocab_size, n).astype(np.int32)


def full_row(tokens, image):
    """Hidden states of one row on its own, and the negative log-likelihood of every token but the first."""
    position = len(PREFIX) - 1
    embeds, at = MODEL.embed(tokens[None], jnp.array([position]), IMAGES[image][None])
    hidden = MODEL.hidden(embeds, jnp.array([embeds.shape[1]]))
    logs = jax.nn.log_softmax(MODEL.logits(hidden))[0]
    before = np.asarray(at[0]) - 1
    nll = {t: -float(logs[before[t], tokens[t]]) for t in range(1, len(tokens)) if t != position}
    return hidden, nll


@pytest.fixture(scope="module")
def scored():
    """Three questions of different lengths with three choices each, in padded arrays; the answers start in the shared part."""
    shared, lengths, answer_from = [5, 3, 7], [[4, 2, 6], [1, 5, 3], [2, 2, 1]], [4, 3, 5]
    q = generate.Questions(
        np.array([0, 1, 0]), np.zeros((3, 9), np.int32), np.array(shared), np.zeros((3, 9), bool),
        np.zeros((3, 3, 8), np.int32), np.array(lengths), np.zeros((3, 3, 8), bool),
    )  # fmt: skip
    rows = {}
    for g in range(3):
        common = random_tokens(shared[g])
        q.tokens[g], q.tokens[g, : shared[g]] = 3, common  # padding that is not zero must not matter
        q.is_answer[g, answer_from[g] : shared[g]] = True
        for c in range(3):
            rest = random_tokens(lengths[g][c])
            q.choice_tokens[g, c], q.choice_tokens[g, c, : len(rest)] = 5, rest
            q.choice_is_answer[g, c] = True
            rows[g, c] = np.concatenate([PREFIX, common, rest]), len(PREFIX) + answer_from[g]
    prefix = generate.run_prefix(GRAPHDEF, PARAMS, IMAGES, PREFIX)
    return q, rows, prefix, generate.score_choices(GRAPHDEF, PARAMS, prefix, q)


def test_scores_equal_whole_rows(scored):
    q, rows, _, scores = scored
    for (g, c), (tokens, answer) in rows.items():
        _, nll = full_row(tokens, q.image[g])
        said = [value for t, value in nll.items() if t >= answer]
        np.testing.assert_allclose(scores.answer_sum[g, c], np.sum(said), rtol=1e-5)
        np.testing.assert_allclose(scores.answer_mean[g, c], np.mean(said), rtol=1e-5)
        np.testing.assert_allclose(scores.full_mean[g, c], np.mean(list(nll.values())), rtol=1e-5)


def test_readout_equals_whole_rows(scored):
    q, rows, prefix, scores = scored
    group, choice = np.array([0, 2, 1, 0]), np.array([2, 1, 0, 2])
    read = generate.read_rows(GRAPHDEF, PARAMS, prefix, q, scores, group, choice)
    for r, key in enumerate(zip(group.tolist(), choice.tolist(), strict=True)):
        hidden, _ = full_row(rows[key][0], q.image[key[0]])
        n = hidden.shape[1]
        tags = jax.nn.softmax(MODEL.tag_logits(hidden, jnp.ones((1, n), bool)))[0]
        np.testing.assert_array_equal(read.labels[r, :n], tags.argmax(-1))
        np.testing.assert_allclose(read.confidence[r, :n], tags.max(-1), rtol=1e-4)
        np.testing.assert_allclose(read.features[r, :n], MODEL.project(hidden)[0], atol=1e-5)


PROMPTS = [(np.concatenate([PREFIX, random_tokens(n)]), i % 2) for i, n in enumerate((3, 6, 1))]


def run(prompts, pad, end_token, limit=7, **options):
    width = max(len(tokens) for tokens, _ in prompts) + pad
    tokens = np.full((len(prompts), width), 4, np.int32)
    for row, (text, _) in enumerate(prompts):
        tokens[row, : len(text)] = text
    counts = np.array([len(text) for text, _ in prompts])
    position = np.full(len(prompts), len(PREFIX) - 1)
    images = IMAGES[[image for _, image in prompts]]
    return jax.device_get(generate.generate(
        GRAPHDEF, PARAMS, images, tokens, counts, position, max_new_tokens=limit, end_token=end_token, **options
    ))  # fmt: skip


def greedy_by_full_forward(tokens, image, limit):
    tokens = list(tokens)
    for _ in range(limit):
        hidden, _ = full_row(np.array(tokens, np.int32), image)
        tokens.append(int(MODEL.logits(hidden[0, -1]).argmax()))
    return np.array(tokens, np.int32)


def test_cached_decoding_equals_the_full_forward():
    generated, count, read = run(PROMPTS, pad=2, end_token=2)
    for row, (tokens, image) in enumerate(PROMPTS):
        full = greedy_by_full_forward(tokens, image, 7)
        n = count[row]
        np.testing.assert_array_equal(generated[row, :n], full[len(tokens) : len(tokens) + n])
        hidden, _ = full_row(full[: len(tokens) + n], image)  # the last generated token is part of the sequence
        tags = jax.nn.softmax(MODEL.tag_logits(hidden, jnp.ones(hidden.shape[:2], bool)))[0, -n:]
        np.testing.assert_array_equal(read.labels[row, :n], tags.argmax(-1))
        np.testing.assert_allclose(read.features[row, :n], MODEL.project(hidden)[0, -n:], atol=1e-5)


def test_rows_stop_at_the_end_token_on_their_own():
    generated, _, _ = run(PROMPTS, pad=0, end_token=-1)
    end = int(generated[1, 2])
    want = [int(np.flatnonzero(row == end)[0]) + 1 if (row == end).any() else 7 for row in generated]
    stopped, count, _ = run(PROMPTS, pad=0, end_token=end)
    np.testing.assert_array_equal(count, want)
    for row, n in enumerate(want):
        np.testing.assert_array_equal(stopped[row, :n], generated[row, :n])
        assert (stopped[row, n:] == end).all()


def test_batched_equals_one_by_one_at_any_padding():
    generated, count, read = run(PROMPTS, pad=3, end_token=2)
    for row, prompt in enumerate(PROMPTS):
        alone, n, read_alone = run([prompt], pad=row, end_token=2)
        assert n[0] == count[row]
        np.testing.assert_array_equal(alone[0], generated[row])
        np.testing.assert_array_equal(read_alone.labels[0, : n[0]], read.labels[row, : n[0]])
        np.testing.assert_allclose(read_alone.features[0, : n[0]], read.features[row, : n[0]], atol=1e-5)


def test_scores_can_have_the_digits_of_a_bf16_run(scored):
    """Likelihood of each token, their sum and the mean are rounded (M D24): scores on a grid, far apart and often equal."""
    q, rows, _, exact = scored
    prefix = generate.run_prefix(GRAPHDEF, PARAMS, IMAGES, PREFIX, dtype="bfloat16")
    scores = generate.score_choices(GRAPHDEF, PARAMS, prefix, q, dtype="bfloat16")
    low = lambda x: np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)  # noqa: E731
    for (g, c), (tokens, answer) in rows.items():
        _, nll = full_row(tokens, q.image[g])
        every, said = (low(np.sum([low(x) for t, x in nll.items() if t >= first])) for first in (0, answer))
        count = sum(t >= answer for t in nll)
        want = low(every / len(nll)), low(said), low(said / count)
        got = scores.full_mean[g, c], scores.answer_sum[g, c], scores.answer_mean[g, c]
        np.testing.assert_allclose(got, want, rtol=2**-8)  # one digit: float32 sums in another order
        np.testing.assert_array_equal(got, low(got))
    assert not np.allclose(scores.full_mean, exact.full_mean, rtol=1e-5)


def test_choices_that_differ_by_little_tie_in_bfloat16_and_the_first_wins():
    """Reversing two such choices changes what the reference answers, and nothing in float32."""
    first, second = np.float32(1.5), np.float32(1.5 - 2**-9)
    low = jax.jit(rounded, static_argnums=1)
    for scores in ([first, second], [second, first]):
        assert choose(scores) == int(np.argmin(scores))
        assert choose(np.asarray(low(np.array(scores), "bfloat16"))) == 0


def test_whole_rows_are_read_out_on_request():
    generated, count, answers = run(PROMPTS, pad=2, end_token=2)
    same, _, whole = run(PROMPTS, pad=2, end_token=2, whole_rows=True)
    np.testing.assert_array_equal(same, generated)
    for row, (tokens, image) in enumerate(PROMPTS):
        first, n = len(tokens) + PATCHES - 1, count[row]
        hidden, _ = full_row(np.concatenate([tokens, generated[row, :n]]), image)
        tags = jax.nn.softmax(MODEL.tag_logits(hidden, jnp.ones(hidden.shape[:2], bool)))[0]
        np.testing.assert_array_equal(whole.labels[row, : first + n], tags.argmax(-1))
        np.testing.assert_allclose(whole.features[row, : first + n], MODEL.project(hidden)[0], atol=1e-5)
        np.testing.assert_array_equal(whole.labels[row, first : first + n], answers.labels[row, :n])


def test_masks_can_be_decoded_without_feedback():
    """As from a merged checkpoint of the reference (M D20): the first mask is the same, no later one sees it."""
    grid, width = CONFIG.sam.grid, CONFIG.sam.out_width
    images = RNG.normal(size=(1, grid, grid, width)).astype(np.float32)
    embeds = RNG.normal(size=(1, 3, width)).astype(np.float32)
    decode = lambda e, n, **kw: generate.decode_masks(  # noqa: E731
        GRAPHDEF, PARAMS, images, np.array([0]), e, np.arange(3)[None] < n, **kw
    )
    fed, alone = decode(embeds, 3)[0], decode(embeds, 3, use_feedback=False)[0]
    np.testing.assert_allclose(alone[0], fed[0], atol=1e-5)
    for rank in (1, 2):
        np.testing.assert_allclose(alone[rank], decode(np.roll(embeds, -rank, 1), 1)[0, 0], atol=1e-5)
        assert np.abs(alone[rank] - fed[rank]).max() > 1e-3
