import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_fixtures import compiled_text, kernels_in, tpu_mesh

from plum_jax.models import grid_attention, sam_encoder, splash
from tests.reference import modules, torch_weights

CONFIG = sam_encoder.SamEncoderConfig(
    image_size=44, patch=4, width=16, depth=6, heads=2, mlp=40, window=4, global_blocks=(2, 5), epsilon=1e-6, out_width=12
)  # fmt: skip  # a grid of 11 and windows of 4: one row and one column of padding


@pytest.mark.parametrize("window", [4, 11, 14])  # padded; exact; a window larger than the grid
def test_embeddings_equal_transformers(window):
    pytest.importorskip("torch")
    import torch
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    oracle = SamVisionEncoder(
        SamVisionConfig(
            hidden_size=16, output_channels=12, num_hidden_layers=6, num_attention_heads=2, image_size=44, patch_size=4,
            mlp_dim=40, window_size=window, global_attn_indexes=[2, 5], layer_norm_eps=1e-6,
        )
    )  # fmt: skip
    tensors = torch_weights.tensors(torch_weights.randomise(oracle, 0), "vision_encoder.")
    assert np.abs(tensors["image_encoder.blocks.2.attn.rel_pos_h"]).max() > 0.1
    config = dataclasses.replace(CONFIG, window=window)
    params = torch_weights.sam_encoder(tensors, 6, (2, 5))
    assert not tensors
    ours = modules.load(lambda: sam_encoder.SamEncoder(config, rngs=nnx.Rngs(0)), params)

    pixels = np.random.default_rng(1).normal(size=(2, 44, 44, 3)).astype(np.float32)
    with torch.no_grad():
        want = oracle(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).last_hidden_state
    np.testing.assert_allclose(jax.jit(lambda x: ours(x))(pixels), want.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_normalise_reads_nothing_outside_of_the_resized_image():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    sizes = np.array([[5, 8], [8, 3]], np.int32)
    want = np.zeros((2, 8, 8, 3), np.float32)
    for i, (h, w) in enumerate(sizes):
        want[i, :h, :w] = (pixels[i, :h, :w] - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    np.testing.assert_allclose(sam_encoder.normalise(pixels, jnp.asarray(sizes), jnp.float32), want, atol=1e-6)


def test_every_parameter_has_a_gradient():
    graphdef, params = modules.random_params(lambda: sam_encoder.SamEncoder(CONFIG, rngs=nnx.Rngs(0)), 0)
    pixels = jax.random.normal(jax.random.key(1), (1, 44, 44, 3))
    loss = lambda p: jnp.sin(nnx.merge(graphdef, p)(pixels, remat=True)).sum()  # noqa: E731
    assert all(np.all(np.isfinite(g)) and np.any(g) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


def test_global_blocks_at_irregular_places_are_refused():
    with pytest.raises(ValueError, match="every n-th"):
        dataclasses.replace(CONFIG, global_blocks=(1, 5))


def test_embeddings_follow_the_dtype_of_the_pixels():
    encoder = modules.random_module(lambda: sam_encoder.SamEncoder(CONFIG, rngs=nnx.Rngs(0)), 0)
    model = jax.jit(lambda x: encoder(x))
    pixels = jax.random.normal(jax.random.key(1), (1, 44, 44, 3))
    low = model(pixels.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert jnp.abs(low.astype(jnp.float32) - model(pixels)).mean() < 0.05


def grid(seed, b, size, heads, head, dtype=jnp.float32):
    """q, k, v, rel_h, rel_w of grid_attention."""
    keys = jax.random.split(jax.random.key(seed), 5)
    widths = head, head, head, size, size
    return [jax.random.normal(k, (b, size, size, heads, w), dtype) for k, w in zip(keys, widths, strict=True)]


def wide_form(kernel):
    """The form for fused kernels, with `kernel` in place of them."""
    return lambda *arrays: grid_attention.widened(kernel, -(-(arrays[0].shape[-1] + 2 * arrays[0].shape[1]) // 8) * 8)(*arrays)


def plain_kernel(q, k, v):
    """Logits without a scale and values of another width, as the kernels take them."""
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k)), v)


@pytest.mark.parametrize(("b", "size", "head"), [(3, 5, 6), (2, 14, 80), (1, 32, 4)])
def test_both_forms_of_relative_positions_equal_the_formula(b, size, head):
    """14 and 80: the windows of ViT-H. 32: large enough to run head by head."""
    arrays = grid(0, b, size, 2, head)
    assert (2 * size**4 >= grid_attention.LOOP_FROM) == (size == 32)

    def formula(q, k, v, rel_h, rel_w):
        logits = jnp.einsum("byxnh,buvnh->bnyxuv", q, k) / head**0.5
        logits += rel_h.transpose(0, 3, 1, 2, 4)[..., :, None] + rel_w.transpose(0, 3, 1, 2, 4)[..., None, :]
        weights = jax.nn.softmax(logits, (-2, -1))
        return jnp.einsum("bnyxuv,buvnh->byxnh", weights, v).reshape(b, size * size, 2, head)

    def gradients(form):
        return jax.jit(jax.value_and_grad(lambda *a: (jnp.sin(out := form(*a)).sum(), out), tuple(range(5)), True))(*arrays)

    (_, want), want_gradients = gradients(formula)
    for form in (grid_attention.grid_attention, wide_form(plain_kernel)):
        (_, got), got_gradients = gradients(form)
        np.testing.assert_allclose(got, want, atol=3e-6)
        for a, b_ in zip(got_gradients, want_gradients, strict=True):
            np.testing.assert_allclose(a, b_, atol=1e-5)


def test_the_wide_form_of_the_tpu_kernel_equals_the_form_with_a_bias():
    arrays = grid(1, 2, 14, 1, 80)
    kernel = functools.partial(splash.splash_attention, scale=1.0, interpret=True)
    got = jax.jit(wide_form(kernel))(*arrays)
    np.testing.assert_allclose(got, grid_attention.grid_attention(*arrays), atol=3e-6)


def test_every_block_of_a_program_for_tpu_is_a_kernel():
    """A window of 14 has 196 positions, the grid of 16 has 256; the stacks are loops, so that each kernel is there once."""
    config = dataclasses.replace(CONFIG, image_size=64, width=160, depth=8, window=14, global_blocks=(1, 3, 5, 7))
    graphdef, params = nnx.split(nnx.eval_shape(lambda: sam_encoder.SamEncoder(config, rngs=nnx.Rngs(0))))
    mesh = tpu_mesh(8, 1, 1)
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16, sharding=whole), params)
    pixels = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.bfloat16, sharding=rows)
    with jax.set_mesh(mesh):
        run = jax.jit(lambda params, pixels: nnx.merge(graphdef, params)(pixels), out_shardings=rows)
        text = compiled_text(run.lower(params, pixels))
    assert kernels_in(text) == 2
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if f" {word}" in text]
