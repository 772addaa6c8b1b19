import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plum_jax.models import sam_encoder
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
