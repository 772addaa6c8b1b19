import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plum_jax.models import clip
from tests.reference import modules, torch_weights

CONFIG = clip.ClipConfig(image_size=35, patch=5, width=24, depth=2, heads=3, mlp=40, epsilon=1e-5)


def test_features_equal_transformers():
    pytest.importorskip("torch")
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    oracle = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=35, patch_size=5
        )
    )  # fmt: skip
    torch_weights.randomise(oracle, 0)
    tensors = torch_weights.tensors(oracle)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tensors) else ""
    ours = modules.load(lambda: clip.Clip(CONFIG, rngs=nnx.Rngs(0)), torch_weights.clip(tensors, 2, prefix))
    unused = (f"{prefix}encoder.layers.2.", f"{prefix}post_layernorm.", f"{prefix}embeddings.position_ids")
    assert all(name.startswith(unused) for name in tensors), sorted(tensors)

    pixels = np.random.default_rng(1).normal(size=(2, 35, 35, 3)).astype(np.float32)
    with torch.no_grad():
        states = oracle(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states
    want = states[-2][:, 1:].numpy()
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(jax.jit(lambda x: ours(x))(pixels), want, atol=1e-5)


def test_normalise():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), dtype=np.uint8)
    want = (pixels / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(clip.normalise(pixels, jnp.float32), want, atol=1e-6)
    assert clip.normalise(pixels, jnp.bfloat16).dtype == jnp.bfloat16


def test_recomputed_layers_have_the_same_gradient():
    graphdef, params = modules.random_params(lambda: clip.Clip(CONFIG, rngs=nnx.Rngs(0)), 0)
    pixels = jax.random.normal(jax.random.key(1), (1, 35, 35, 3))

    def gradient(remat):
        return jax.jit(jax.grad(lambda p: jnp.sin(nnx.merge(graphdef, p)(pixels, remat=remat)).sum()))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(True), gradient(False))


def test_activations_follow_the_dtype_of_the_pixels():
    model = modules.random_module(lambda: clip.Clip(CONFIG, rngs=nnx.Rngs(0)), 0)
    out = jax.jit(lambda x: model(x))(jnp.zeros((1, 35, 35, 3), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert out.shape == (1, 49, 24)
