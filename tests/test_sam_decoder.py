import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plum_jax.models import sam_decoder
from tests.reference import modules, torch_weights

CONFIG = sam_decoder.MaskDecoderConfig(
    width=32, grid=7, depth=2, heads=4, mlp=48, attention_downsample=2, mask_channels=16, pe_dtype="float32"
)  # fmt: skip


def sam(seed):
    """SamModel of transformers, tiny and random; the norms of its two-way transformer have the reference's epsilon (M 9.3)."""
    pytest.importorskip("torch")
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config=dict(
            hidden_size=8, output_channels=32, num_hidden_layers=1, num_attention_heads=1, image_size=56, patch_size=8,
            mlp_dim=8, window_size=0, global_attn_indexes=[0], num_pos_feats=16, scale=1.0,
        ),
        prompt_encoder_config=dict(
            hidden_size=32, image_size=56, patch_size=8, image_embedding_size=7, mask_input_channels=16
        ),
        mask_decoder_config=dict(
            hidden_size=32, mlp_dim=48, num_hidden_layers=2, num_attention_heads=4, iou_head_hidden_dim=32,
            layer_norm_eps=1e-5,
        ),
    )  # fmt: skip
    return torch_weights.randomise(SamModel(config), seed)


def prompt_encoder(model, config=CONFIG):
    tensors = torch_weights.tensors(model.prompt_encoder, "prompt_encoder.")
    params = torch_weights.prompt_encoder(tensors)
    assert not tensors
    return modules.load(lambda: sam_decoder.PromptEncoder(config, rngs=nnx.Rngs(0)), params)


@pytest.mark.parametrize("height, width", [(7, 7), (5, 9)])
@pytest.mark.parametrize("depth", [2, 3])
def test_masks_equal_transformers(height, width, depth):
    pytest.importorskip("torch")
    import torch
    from transformers import SamMaskDecoderConfig
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    oracle = SamMaskDecoder(
        SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=48, num_hidden_layers=depth, num_attention_heads=4, iou_head_hidden_dim=32,
            layer_norm_eps=1e-5,
        )
    )  # fmt: skip
    tensors = torch_weights.tensors(torch_weights.randomise(oracle, 0), "mask_decoder.")
    params = torch_weights.mask_decoder(tensors, depth)
    assert not tensors
    config = dataclasses.replace(CONFIG, depth=depth)
    ours = modules.load(lambda: sam_decoder.MaskDecoder(config, rngs=nnx.Rngs(0)), params)

    draw = lambda *shape: np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)  # noqa: E731
    image, dense = draw(3, height, width, 32), draw(3, height, width, 32)[::-1] / 2
    pe, sparse = draw(height, width, 32), draw(3, 1, 32)
    first = lambda x: torch.from_numpy(np.moveaxis(x, -1, -3).copy())  # noqa: E731
    with torch.no_grad():
        masks, iou = oracle(
            first(image), first(pe)[None].repeat(3, 1, 1, 1), torch.from_numpy(sparse)[:, None], first(dense), False
        )
    got, got_iou = jax.jit(lambda *args: ours(*args))(image, sparse, dense, pe)
    assert got.shape == (3, 4 * height, 4 * width)
    np.testing.assert_allclose(got, masks[:, 0, 0], atol=1e-5)
    np.testing.assert_allclose(got_iou, iou[:, 0, 0], atol=1e-5)


def test_mask_prompt_and_no_mask_prompt_equal_transformers():
    model = sam(1)
    import torch

    ours = prompt_encoder(model)
    masks = np.random.default_rng(2).normal(size=(2, 28, 28)).astype(np.float32)
    with torch.no_grad():
        want = model.prompt_encoder(None, None, None, torch.from_numpy(masks)[:, None])[1]
        none = model.prompt_encoder(None, None, None, None)[1]
    got = jax.jit(lambda x: ours.conv3(ours.mask_maps(x)))(masks)
    np.testing.assert_allclose(got, want.numpy().transpose(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_array_equal(ours.no_mask_embed[...], none[0, :, 3, 4])


def test_dense_pe_equals_transformers():
    model = sam(1)
    want = model.get_image_wide_positional_embeddings()[0].detach().numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(prompt_encoder(model).dense_pe(), want, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_dense_pe_is_rounded_as_in_torch(compiled):
    """The published weights saw these distorted positions (M D29); fused kernels must not keep more digits."""
    model = sam(3)
    import torch

    with torch.no_grad():
        model.shared_image_embedding.positional_embedding.mul_(9)
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    ours = prompt_encoder(model, dataclasses.replace(CONFIG, pe_dtype="bfloat16"))
    exact = prompt_encoder(model).dense_pe()
    matrix = model.shared_image_embedding.positional_embedding.detach().to(torch.bfloat16)
    ones = torch.ones(7, 7, dtype=torch.bfloat16)
    y, x = (ones.cumsum(axis) - 0.5 for axis in (0, 1))
    angle = 2 * np.pi * ((2 * torch.stack([x / 7, y / 7], -1) - 1) @ matrix)
    want = torch.cat([angle.sin(), angle.cos()], -1).float().numpy()
    got = (jax.jit if compiled else lambda f: f)(lambda: ours.dense_pe())()
    np.testing.assert_array_equal(got, want)
    assert 0.02 < np.abs(got - exact).max() < 0.5


def test_gradient_reaches_what_the_reference_trains():
    """No gradient in the IoU head and in hypernetworks 1 to 3; all tokens take part in the attention (M 4.5)."""
    graphdef, params = modules.random_params(lambda: sam_decoder.MaskDecoder(CONFIG, rngs=nnx.Rngs(0)), 0)
    keys = jax.random.split(jax.random.key(1), 4)
    image, dense, pe = (jax.random.normal(k, (2, 7, 7, 32)) for k in keys[:3])
    sparse = jax.random.normal(keys[3], (2, 1, 32))
    loss = lambda p: jnp.sin(nnx.merge(graphdef, p)(image, sparse, dense, pe[0])[0]).sum()  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    assert not any(np.any(g) for g in jax.tree.leaves(grads.pop("iou_head")))
    for g in jax.tree.leaves(grads.pop("hypernetworks")):
        assert np.any(g[0]) and not np.any(g[1:])
    assert np.all(np.any(grads["mask_tokens"], 1))
    assert all(np.any(g) for g in jax.tree.leaves(grads))


def test_masks_are_float32_and_close_in_bfloat16():
    model = modules.random_module(lambda: sam_decoder.MaskDecoder(CONFIG, rngs=nnx.Rngs(0)), 0)
    decoder = jax.jit(lambda *args: model(*args))
    keys = jax.random.split(jax.random.key(1), 3)
    image, pe = jax.random.normal(keys[0], (1, 7, 7, 32)), jax.random.normal(keys[1], (7, 7, 32))
    sparse = jax.random.normal(keys[2], (1, 1, 32))
    want, _ = decoder(image, sparse, jnp.zeros(32), pe)
    got, iou = decoder(image.astype(jnp.bfloat16), sparse, jnp.zeros(32), pe)
    assert got.dtype == iou.dtype == jnp.float32
    assert jnp.abs(got - want).max() < 0.1 * jnp.abs(want).max()
