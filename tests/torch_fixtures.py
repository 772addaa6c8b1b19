"""A random PLUM in two forms: named tensors as in published checkpoints, and our parameters.

Every axis has its own length, norms are off 1, biases and position tables off 0: a swapped or forgotten tensor shows.
"""

import numpy as np
from model_fixtures import small_config

from tests.reference import torch_weights

LORA = (3, 6.0)


def parity_config(**model):
    """Config with the smallest sizes at which all axes of the model differ; `model` overrides entries of config.model."""
    config = small_config(
        llama=dict(
            vocab_size=70, width=24, depth=3, heads=2, mlp=34, rope_theta=500.0, epsilon=1e-3, lora_rank=LORA[0],
            lora_alpha=LORA[1], lora_dropout=0.0, vocab_multiple=16,
        ),
        clip=dict(image_size=20, patch=5, width=18, depth=2, heads=3, mlp=28, epsilon=1e-5),
        sam=dict(
            image_size=56, patch=8, width=20, depth=4, heads=2, mlp=44, window=3, global_blocks=(1, 3), epsilon=1e-6,
            out_width=40,
        ),
        decoder=dict(depth=2, heads=4, mlp=36, attention_downsample=2, mask_channels=12, pe_dtype="float32"),
        tagger=dict(heads=4, mlp=52, epsilon=1e-5, dropout=0.0),
        feedback_heads=2,
    )  # fmt: skip
    config.model.update(model)
    return config


def numbers(config):
    """PlumConfig -> what the PyTorch transcription must be told beside the tensors."""
    from tests.reference.torch_plum import Numbers

    c = config
    return Numbers(
        llama_heads=c.llama.heads,
        rms_epsilon=c.llama.epsilon,
        rope_theta=c.llama.rope_theta,
        lora_scale=c.llama.lora_alpha / max(c.llama.lora_rank, 1),
        clip_heads=c.clip.heads,
        clip_layers=c.clip.depth,
        sam_heads=c.sam.heads,
        sam_window=c.sam.window,
        sam_global_blocks=tuple(c.sam.global_blocks),
        decoder_heads=c.decoder.heads,
        bio_heads=c.tagger.heads,
        pooler_heads=c.feedback_heads,
        image_start=c.llama.vocab_size - 2,
        end=2,
    )


def tensor_shapes(c):
    """PlumConfig -> {name: shape} of a merged checkpoint with adapters, CLIP included (M 9.1, 9.2, 9.4, 9.6)."""
    d, shapes = c.llama.width, {}

    def linear(name, d_in, d_out, bias=True):
        shapes[f"{name}.weight"] = (d_out, d_in)
        shapes.update({f"{name}.bias": (d_out,)} if bias else {})

    def norm(name, width):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def conv(name, *shape, bias=None):
        shapes[f"{name}.weight"] = shape
        shapes.update({f"{name}.bias": (bias,)} if bias else {})

    _decoder_shapes(shapes, linear, c.llama)
    _clip_shapes(shapes, linear, norm, conv, c.clip)
    if c.projector == "mlp":
        linear("model.mm_projector.0", c.clip.width, d)
        linear("model.mm_projector.2", d, d)
    else:
        linear("model.mm_projector", c.clip.width, d)
    for name, out in (("token_to_mask_fcs", 3), ("text_hidden_fcs", c.decoder.width)):
        linear(f"model.{name}.0.0", d, d)
        linear(f"model.{name}.0.2", d, out)
    if c.tagger.bidirectional:
        at = "bio_encoder.encoder.layers.0."
        shapes.update({f"{at}self_attn.in_proj_weight": (3 * d, d), f"{at}self_attn.in_proj_bias": (3 * d,)})
        linear(f"{at}self_attn.out_proj", d, d)
        linear(f"{at}linear1", d, c.tagger.mlp)
        linear(f"{at}linear2", c.tagger.mlp, d)
        norm(f"{at}norm1", d)
        norm(f"{at}norm2", d)
    _sam_encoder_shapes(shapes, linear, norm, conv, c.sam)
    _prompt_shapes(shapes, linear, norm, conv, c)
    _mask_decoder_shapes(shapes, linear, norm, conv, c.decoder)
    return shapes


def _decoder_shapes(shapes, linear, c):
    d = c.width
    shapes.update(
        {"model.embed_tokens.weight": (c.vocab_size, d), "lm_head.weight": (c.vocab_size, d), "model.norm.weight": (d,)}
    )
    for i in range(c.depth):
        at = f"model.layers.{i}."
        for n in "qkvo":
            linear(f"{at}self_attn.{n}_proj", d, d, bias=False)
        for n in ("gate", "up"):
            linear(f"{at}mlp.{n}_proj", d, c.mlp, bias=False)
        linear(f"{at}mlp.down_proj", c.mlp, d, bias=False)
        shapes.update({f"{at}input_layernorm.weight": (d,), f"{at}post_attention_layernorm.weight": (d,)})
        for n in "qv" if c.lora_rank else "":
            linear(f"{at}self_attn.{n}_proj.lora_A", d, c.lora_rank, bias=False)
            linear(f"{at}self_attn.{n}_proj.lora_B", c.lora_rank, d, bias=False)


def _clip_shapes(shapes, linear, norm, conv, c):
    """One layer more than runs, as in published towers."""
    at = "vision_model.embeddings."
    shapes.update({f"{at}class_embedding": (c.width,), f"{at}position_embedding.weight": (c.grid**2 + 1, c.width)})
    conv(f"{at}patch_embedding", c.width, 3, c.patch, c.patch)
    norm("vision_model.pre_layrnorm", c.width)
    norm("vision_model.post_layernorm", c.width)
    for i in range(c.depth + 1):
        at = f"vision_model.encoder.layers.{i}."
        for n in ("q", "k", "v", "out"):
            linear(f"{at}self_attn.{n}_proj", c.width, c.width)
        linear(f"{at}mlp.fc1", c.width, c.mlp)
        linear(f"{at}mlp.fc2", c.mlp, c.width)
        norm(f"{at}layer_norm1", c.width)
        norm(f"{at}layer_norm2", c.width)


def _sam_encoder_shapes(shapes, linear, norm, conv, c):
    at, d = "model.visual_model.image_encoder.", c.width
    shapes[f"{at}pos_embed"] = (1, c.grid, c.grid, d)
    conv(f"{at}patch_embed.proj", d, 3, c.patch, c.patch, bias=d)
    for i in range(c.depth):
        block = f"{at}blocks.{i}."
        size = c.grid if i in c.global_blocks else c.window
        shapes.update({f"{block}attn.rel_pos_{x}": (2 * size - 1, d // c.heads) for x in "hw"})
        linear(f"{block}attn.qkv", d, 3 * d)
        linear(f"{block}attn.proj", d, d)
        linear(f"{block}mlp.lin1", d, c.mlp)
        linear(f"{block}mlp.lin2", c.mlp, d)
        norm(f"{block}norm1", d)
        norm(f"{block}norm2", d)
    conv(f"{at}neck.0", c.out_width, d, 1, 1)
    norm(f"{at}neck.1", c.out_width)
    conv(f"{at}neck.2", c.out_width, c.out_width, 3, 3)
    norm(f"{at}neck.3", c.out_width)


def _prompt_shapes(shapes, linear, norm, conv, config):
    """Prompt encoder and pooler."""
    at, d, c = "model.visual_model.prompt_encoder.", config.decoder.width, config.decoder.mask_channels
    shapes[f"{at}pe_layer.positional_encoding_gaussian_matrix"] = (2, d // 2)
    for name in (*(f"point_embeddings.{i}" for i in range(4)), "not_a_point_embed", "no_mask_embed"):
        shapes[f"{at}{name}.weight"] = (1, d)
    conv(f"{at}mask_downscaling.0", c // 4, 1, 2, 2, bias=c // 4)
    norm(f"{at}mask_downscaling.1", c // 4)
    conv(f"{at}mask_downscaling.3", c, c // 4, 2, 2, bias=c)
    norm(f"{at}mask_downscaling.4", c)
    conv(f"{at}mask_downscaling.6", d, c, 1, 1, bias=d)
    if config.feedback:
        shapes["mask_pooler.queries"] = (config.decoder.grid**2, 1, d)
        shapes.update({"mask_pooler.attn.in_proj_weight": (3 * d, d), "mask_pooler.attn.in_proj_bias": (3 * d,)})
        linear("mask_pooler.attn.out_proj", d, d)
        for i, channels in enumerate((c // 4, c, d)):
            linear(f"mask_pooler.mask_modulator.projections.{i}", d, 2 * channels)


def _mask_decoder_shapes(shapes, linear, norm, conv, c):
    at, d, inner = "model.visual_model.mask_decoder.", c.width, c.width // c.attention_downsample

    def attention(name, width):
        for n in "qkv":
            linear(f"{at}transformer.{name}.{n}_proj", d, width)
        linear(f"{at}transformer.{name}.out_proj", width, d)

    for i in range(c.depth):
        attention(f"layers.{i}.self_attn", d)
        attention(f"layers.{i}.cross_attn_token_to_image", inner)
        attention(f"layers.{i}.cross_attn_image_to_token", inner)
        linear(f"{at}transformer.layers.{i}.mlp.lin1", d, c.mlp)
        linear(f"{at}transformer.layers.{i}.mlp.lin2", c.mlp, d)
        for k in range(1, 5):
            norm(f"{at}transformer.layers.{i}.norm{k}", d)
    attention("final_attn_token_to_image", inner)
    norm(f"{at}transformer.norm_final_attn", d)
    shapes.update({f"{at}iou_token.weight": (1, d), f"{at}mask_tokens.weight": (4, d)})
    conv(f"{at}output_upscaling.0", d, d // 4, 2, 2, bias=d // 4)
    norm(f"{at}output_upscaling.1", d // 4)
    conv(f"{at}output_upscaling.3", d // 4, d // 8, 2, 2, bias=d // 8)
    for name, out in (*((f"output_hypernetworks_mlps.{i}", d // 8) for i in range(4)), ("iou_prediction_head", 4)):
        for k in range(3):
            linear(f"{at}{name}.layers.{k}", d, out if k == 2 else d)


def random_tensors(config, seed=0):
    """PlumConfig -> {name: float32 array}, in the scale that trained weights have."""
    rng, out = np.random.default_rng(seed), {}
    for name, shape in sorted(tensor_shapes(config).items()):
        noise = rng.standard_normal(shape).astype(np.float32)
        is_norm = len(shape) == 1 and name.endswith("weight")
        table = any(x in name for x in ("embed", "iou_token", "mask_tokens", "pos", "queries", "gaussian"))
        fan_in = shape[0] if "output_upscaling" in name else np.prod(shape[1:])  # a transposed convolution is [in, out, ...]
        scale = 0.2 if len(shape) == 1 else 1.0 if table and "patch" not in name else float(fan_in) ** -0.5
        out[name] = (scale * noise + is_norm).astype(np.float32)
    return out


def to_params(tensors, config):
    """{name: array} -> our parameters; CLIP's last layer, which does not run, is left out."""
    left = dict(tensors)
    params = torch_weights.plum(left, config)
    unused = (f"vision_model.encoder.layers.{config.clip.depth}.", "vision_model.post_layernorm.")
    assert all(name.startswith(unused) for name in left), sorted(left)
    return params
