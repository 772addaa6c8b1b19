from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plum_jax.models import feedback, sam_decoder
from tests.reference import modules, recompute_feedback, torch_weights

WIDTH, GRID, HEADS, CHANNELS = 32, 3, 4, 16
CONFIG = sam_decoder.MaskDecoderConfig(
    width=WIDTH, grid=GRID, depth=1, heads=4, mlp=24, attention_downsample=2, mask_channels=CHANNELS, pe_dtype="float32"
)  # fmt: skip
MAKE = dict(
    prompt=lambda: sam_decoder.PromptEncoder(CONFIG, rngs=nnx.Rngs(0)),
    decoder=lambda: sam_decoder.MaskDecoder(CONFIG, rngs=nnx.Rngs(0)),
    pooler=lambda: feedback.Feedback(WIDTH, GRID, HEADS, CHANNELS, rngs=nnx.Rngs(0)),
)
VALID = ((1, 1, 0, 1, 1), (0, 1, 0, 0, 1), (0, 0, 0, 0, 0), (1, 1, 1, 1, 1))  # gaps, late starts, none, all


@pytest.fixture(scope="module")
def parts():
    """name -> (graphdef, params)."""
    return {name: modules.random_params(make, seed) for seed, (name, make) in enumerate(MAKE.items())}


def inputs(rows, ranks):
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (rows, GRID, GRID, WIDTH)), jax.random.normal(keys[1], (rows, ranks, WIDTH))


def linear_form(parts, params, images, embeds, valid, **kwargs):
    prompt, decoder, pooler = (nnx.merge(parts[name][0], params[name]) for name in MAKE)
    return feedback.decode_spans(prompt, decoder, pooler, images, embeds, valid, **kwargs)


@partial(jax.jit, static_argnums=0)  # compiled once for all spans: inside one large jit each would be compiled again
def one_mask(graphdef, params, image, embed, dense, pe):
    return nnx.merge(graphdef, params)(image[None], embed[None, None], dense[None], pe)


def recomputed(parts, params, images, embeds, valid):
    pe = nnx.merge(parts["prompt"][0], params["prompt"]).dense_pe()

    def decode(image, embed, dense):
        mask, iou = one_mask(parts["decoder"][0], params["decoder"], image, embed, dense, pe)
        return mask[0], iou[0]

    rows = [
        recompute_feedback.decode_row(params["prompt"], params["pooler"], pe, HEADS, decode, *row)
        for row in zip(images, embeds, valid, strict=True)
    ]
    return tuple(jnp.stack(x) for x in zip(*rows, strict=True))


@pytest.fixture(scope="module")
def both(parts):
    """(values, gradients) of the linear form and of the recomputed one, on the same rows."""
    images, embeds = inputs(len(VALID), len(VALID[0]))
    params = {name: p for name, (_, p) in parts.items()}
    weights = jax.random.normal(jax.random.key(3), (len(VALID), len(VALID[0]), 4 * GRID, 4 * GRID))

    def run(form, valid, compiled):
        def loss(params, images, embeds):
            low_res, iou = form(parts, params, images, embeds, valid)
            return (jnp.tanh(low_res) * weights).mean() + iou.mean(), (low_res, iou)

        gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
        return (jax.jit(gradient) if compiled else gradient)(params, images, embeds)[::-1]

    return run(linear_form, jnp.array(VALID, bool), True), run(recomputed, VALID, False)


def test_masks_equal_the_recomputed_ones(both):
    (got, _), (want, _) = both
    np.testing.assert_allclose(got[0], want[0], atol=1e-5 * np.abs(want[0]).max())  # logits of about 4
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    assert not np.any(got[0][~np.array(VALID, bool)])


def test_gradients_equal_the_recomputed_ones(both):
    """Through earlier masks, span embeddings, images and every parameter."""
    (_, got), (_, want) = both
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    pooler = got[0]["pooler"]
    pooler["k_proj"].pop("bias")  # adds the same to every logit: exactly no gradient, in torch up to rounding
    unused = pooler.pop("film3")
    assert not any(np.any(g) for g in jax.tree.leaves(unused))
    assert all(np.any(g) for g in jax.tree.leaves(pooler))


def test_a_mask_depends_on_earlier_masks_only(parts):
    images, embeds = inputs(1, 3)
    params = {name: p for name, (_, p) in parts.items()}
    run = jax.jit(lambda e, v: linear_form(parts, params, images, e, v)[0][0])
    valid = jnp.array([[True, True, True]])
    masks = run(embeds, valid)
    changed = run(embeds.at[0, 1].add(1.0), valid)
    np.testing.assert_array_equal(changed[0], masks[0])
    assert jnp.abs(changed[2] - masks[2]).max() > 1e-3
    skipped = run(embeds, jnp.array([[True, False, True]]))
    assert jnp.abs(skipped[2] - masks[2]).max() > 1e-3
    alone = run(embeds[:, [2, 0, 1]], jnp.array([[True, False, False]]))
    first_is_last = run(embeds, jnp.array([[False, False, True]]))
    np.testing.assert_allclose(alone[0], first_is_last[2], atol=1e-5)  # an empty slot before it changes nothing


def test_without_feedback_all_spans_see_the_no_mask_prompt(parts):
    images, embeds = inputs(2, 3)
    prompt, decoder, pooler = (nnx.merge(*parts[name]) for name in MAKE)
    valid = jnp.array([[True, False, True], [False, True, True]])
    masks, iou = jax.jit(lambda v: feedback.decode_spans(prompt, decoder, None, images, embeds, v))(valid)
    with_feedback = jax.jit(lambda v: feedback.decode_spans(prompt, decoder, pooler, images, embeds, v))
    for rank in range(3):  # the first mask of a row has no earlier one, whatever its slot
        first_masks, first_iou = with_feedback(jnp.zeros((2, 3), bool).at[:, rank].set(valid[:, rank]))
        np.testing.assert_allclose(masks[:, rank], first_masks[:, rank], atol=1e-5)
        np.testing.assert_allclose(iou[:, rank], first_iou[:, rank], atol=1e-5)
    assert not np.any(masks[~np.asarray(valid)])


def test_pooling_equals_torch_attention(parts):
    """The packed projections of torch.nn.MultiheadAttention, keys and values with the positional encoding (M 5.2)."""
    pytest.importorskip("torch")
    import torch

    rng = np.random.default_rng(5)
    attn = torch_weights.randomise(torch.nn.MultiheadAttention(WIDTH, HEADS), 5)
    draw = lambda *shape: (0.3 * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    tensors = {f"mask_pooler.attn.{name}": value.numpy() for name, value in attn.state_dict().items()}
    tensors["mask_pooler.queries"] = draw(GRID * GRID, 1, WIDTH)
    for i, c in enumerate((CHANNELS // 4, CHANNELS, WIDTH)):
        tensors[f"mask_pooler.mask_modulator.projections.{i}.weight"] = draw(2 * c, WIDTH)
        tensors[f"mask_pooler.mask_modulator.projections.{i}.bias"] = draw(2 * c)
    queries = torch.from_numpy(tensors["mask_pooler.queries"])
    params = torch_weights.feedback(tensors)
    assert not tensors
    pooler = modules.load(MAKE["pooler"], params)
    prompt = nnx.merge(*parts["prompt"])

    masks, embeds = draw(4, 4 * GRID, 4 * GRID), draw(4, WIDTH)
    folded = pooler.fold(prompt)
    state = feedback.start(1, folded)
    np.testing.assert_array_equal(feedback.dense(state, folded, prompt.no_mask_embed[...])[0, 5], prompt.no_mask_embed[...])
    for n in (1, 2, 3, 4):
        mask, embed = masks[n - 1 : n], embeds[n - 1 : n]
        state = feedback.append(state, folded, pooler.encode(prompt, mask, embed), jnp.ones(1, bool))
        encoded = recompute_feedback.encode(parts["prompt"][1], params, masks[:n], embeds[:n]) + prompt.dense_pe()
        keys = torch.from_numpy(np.array(encoded).reshape(n, -1, WIDTH))  # n keys for each of the locations, its batch
        with torch.no_grad():
            want = attn(queries.transpose(0, 1), keys, keys)[0][0]
        np.testing.assert_allclose(feedback.dense(state, folded, prompt.no_mask_embed[...])[0], want, atol=1e-5)


def test_running_softmax_stays_finite_for_extreme_logits(parts):
    folded = nnx.merge(*parts["pooler"]).fold(nnx.merge(*parts["prompt"]))
    maps = jax.random.normal(jax.random.key(0), (3, 2, GRID * GRID, CHANNELS)) * 1e4

    def pooled(maps):
        state = feedback.start(2, folded)
        for i, keep in enumerate(((True, False), (True, False), (False, False))):
            state = feedback.append(state, folded, maps[i], jnp.array(keep))
        return feedback.dense(state, folded, jnp.zeros(WIDTH))

    out, gradient = jax.jit(lambda m: (pooled(m), jax.grad(lambda x: pooled(x).sum())(m)))(maps)
    assert np.all(np.isfinite(out)) and np.all(np.isfinite(gradient))
    assert not np.any(gradient[2]) and not np.any(gradient[:, 1])
    logit = np.einsum("jpc,pnc->jpn", maps[:2, 0], folded.query)
    weight = np.exp(logit - logit.max(0)) / np.exp(logit - logit.max(0)).sum(0)
    want = np.einsum("jpn,jpc,ncd->pd", weight, maps[:2, 0], folded.value) + folded.constant
    np.testing.assert_allclose(out[0], want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_initial_values_are_torch_defaults():
    """Queries N(0, 1), Xavier over the packed projection, FiLM random in weight and bias, the other biases 0 (M 5.2)."""
    params = nnx.to_pure_dict(nnx.state(feedback.Feedback(64, 8, 8, CHANNELS, rngs=nnx.Rngs(0))))
    assert abs(np.std(params["queries"]) - 1) < 0.05
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert not np.any(params[name]["bias"])
    for name, limit in (("q_proj", (6 / 256) ** 0.5), ("out_proj", 1 / 8), ("film1", 1 / 8), ("film2", 1 / 8)):
        assert 0.95 * limit < np.abs(params[name]["kernel"]).max() <= limit
    assert 0.1 < np.abs(params["film2"]["bias"]).max() <= 1 / 8
    assert set(params) == {"queries", "q_proj", "k_proj", "v_proj", "out_proj", "film1", "film2", "film3"}
