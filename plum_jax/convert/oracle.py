"""The PyTorch side of `plum convert --verify`: classes of transformers and torch, loaded with tensors of a checkpoint.

Every function returns a module that holds the tensors of one part, or of one layer, and nothing else: whoever runs it drops
it before the next one is made. Names are those of keys.py.
"""

import jax
import jax.numpy as jnp
import numpy as np

from plum_jax.convert.hf_sam import from_hf
from plum_jax.convert.keys import BIO, CLIP_LAYER, LLAMA_LAYER, SAM

TWO_WAY_EPSILON = 1e-5  # PLUM's; the default of transformers is 1e-6 (M 9.3)


class Reader:
    """Reads tensors as float32, rounded to bfloat16 first where ours are stored so.

    Rounding is what --dtype bf16 asks for, not an error of the conversion: with both sides rounded alike, what is left is
    the conversion, and one tolerance holds for both storage types. Adapters are never stored in bfloat16.
    """

    def __init__(self, tensors, ours):
        self.tensors = tensors
        self.rounded = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(ours))

    def __call__(self, name):
        import torch

        array = self.tensors[name].read()
        if self.rounded and ".lora_" not in name:
            array = array.astype(jnp.bfloat16)
        return torch.from_numpy(np.array(array, np.float32))  # a copy: what `read` returns may be a view of the file

    def adapted(self, name, scale):
        """A weight with its adapter added, where the checkpoint has one that stays apart."""
        weight, adapter = self(name), name.removesuffix("weight") + "lora_{}.weight"
        if adapter.format("A") not in self.tensors:
            return weight
        return weight + scale * self(adapter.format("B")) @ self(adapter.format("A"))


def _meta():
    """Modules made inside of it take no memory and no time to initialise."""
    import torch

    return torch.device("meta")


def _load(module, read, name_of):
    """Fills every tensor of a module; `name_of`: its own names -> those of the checkpoint."""
    module.load_state_dict({key: read(name_of(key)) for key in module.state_dict()}, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def linear(read, name, *, bias=True):
    import torch

    rows, columns = read.tensors[f"{name}.weight"].shape
    with _meta():
        module = torch.nn.Linear(columns, rows, bias=bias)
    return _load(module, read, lambda key: f"{name}.{key}")


def two_linear(read, names, activation):
    """Linear, activation, linear."""
    import torch

    return torch.nn.Sequential(linear(read, names[0]), activation(), linear(read, names[1]))


def projector(read):
    """Of CLIP features: one linear layer, or the two of LLaVA-1.5."""
    import torch

    if "model.mm_projector.weight" in read.tensors:
        return linear(read, "model.mm_projector")
    return two_linear(read, ("model.mm_projector.0", "model.mm_projector.2"), torch.nn.GELU)


# CLIP


def _clip_config(config):
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=config.width, intermediate_size=config.mlp, num_attention_heads=config.heads, image_size=config.image_size,
        patch_size=config.patch, layer_norm_eps=config.epsilon, hidden_act="quick_gelu", attn_implementation="eager",
    )  # fmt: skip


def clip_embedding(read, config):
    """[B, 3, I, I] -> [B, 1 + P, D], what the first layer takes."""
    import torch
    from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

    embeddings = _load(
        CLIPVisionEmbeddings(_clip_config(config)), read, lambda key: f"vision_model.embeddings.{key}"
    )  # fmt: skip
    norm = torch.nn.LayerNorm(config.width, eps=config.epsilon)
    return torch.nn.Sequential(embeddings, _load(norm, read, lambda key: f"vision_model.pre_layrnorm.{key}"))


def clip_layer(read, config, layer):
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    with _meta():
        module = CLIPEncoderLayer(_clip_config(config))
    _load(module, read, lambda key: CLIP_LAYER.format(layer) + key)
    return lambda x: module(x, attention_mask=None)


# Llama


def _llama_config(config):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.mlp, num_hidden_layers=config.depth,
        num_attention_heads=config.heads, num_key_value_heads=config.heads, rms_norm_eps=config.epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, attn_implementation="eager",
    )  # fmt: skip


def llama_layer(read, config, layer):
    """[1, T, D] -> [1, T, D], causal, positions 0 to T - 1."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    hf = _llama_config(config)
    with _meta():
        module = LlamaDecoderLayer(hf, layer)
    scale = config.lora_alpha / max(config.lora_rank, 1)
    _load(module, lambda name: read.adapted(name, scale), lambda key: LLAMA_LAYER.format(layer) + key)
    rotary = LlamaRotaryEmbedding(hf)

    def run(x):
        length = x.shape[1]
        mask = torch.full((length, length), torch.finfo(x.dtype).min).triu(1)[None, None]
        return module(x, attention_mask=mask, position_embeddings=rotary(x, torch.arange(length)[None]))

    return run


def final_norm(read, config):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return _load(LlamaRMSNorm(config.width, eps=config.epsilon), read, lambda key: f"model.norm.{key}")


# PLUM's heads


def tagger(read, config):
    """Decoder states [B, T, D] -> logits of O, B, I: the bidirectional layer where there is one, then the classifier."""
    import torch

    classifier = two_linear(read, ("model.token_to_mask_fcs.0.0", "model.token_to_mask_fcs.0.2"), torch.nn.ReLU)
    if not config.tagger.bidirectional:
        return classifier
    with _meta():
        layer = torch.nn.TransformerEncoderLayer(
            config.llama.width, config.tagger.heads, config.tagger.mlp, layer_norm_eps=config.tagger.epsilon, batch_first=True
        )
    return torch.nn.Sequential(_load(layer, read, lambda key: BIO + key), classifier)


def span_projector(read):
    import torch

    return two_linear(read, ("model.text_hidden_fcs.0.0", "model.text_hidden_fcs.0.2"), torch.nn.ReLU)


def pooled_masks(read, prompts, masks, embeds, pe, heads):
    """The dense prompt of past masks (M 5.2).

    Args:
      prompts: of `prompt_encoder`. masks: [n, 1, 4g, 4g]. embeds: [n, D]. pe: [1, D, g, g].

    Returns:
      [P, D].
    """
    import torch

    layers, at = prompts.mask_embed, "mask_pooler."

    def film(x, block):
        scale, shift = linear(read, f"{at}mask_modulator.projections.{block}")(embeds)[..., None, None].chunk(2, 1)
        return x * (1 + scale) + shift

    x = layers.activation(film(layers.layer_norm1(layers.conv1(masks)), 0))
    x = layers.activation(film(layers.layer_norm2(layers.conv2(x)), 1))
    keys = (layers.conv3(x) + pe).flatten(2).permute(2, 0, 1)
    with _meta():
        attention = torch.nn.MultiheadAttention(embeds.shape[-1], heads, batch_first=True)
    _load(attention, read, lambda key: f"{at}attn.{key}")
    return attention(read(f"{at}queries"), keys, keys)[0][:, 0]


# SAM


def _sam(prefix):
    """Names inside a module of transformers -> names of the table."""
    return lambda key: SAM + from_hf(prefix + key)


def _vision_config(config):
    from transformers import SamVisionConfig

    return SamVisionConfig(
        hidden_size=config.width, output_channels=config.out_width, num_hidden_layers=0, num_attention_heads=config.heads,
        image_size=config.image_size, patch_size=config.patch, mlp_dim=config.mlp, window_size=config.window,
        layer_norm_eps=config.epsilon, global_attn_indexes=[], num_pos_feats=config.out_width // 2,
        attn_implementation="eager",
    )  # fmt: skip


def sam_ends(read, config):
    """-> ([B, 3, S, S] -> [B, g, g, D], and [B, g, g, D] -> [B, W, g, g]): what is before and behind the blocks."""
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    encoder = _load(SamVisionEncoder(_vision_config(config)), read, _sam("vision_encoder."))
    return lambda pixels: encoder.patch_embed(pixels) + encoder.pos_embed, encoder.neck


def sam_block(read, config, block):
    from transformers.models.sam.modeling_sam import SamVisionLayer

    with _meta():
        module = SamVisionLayer(_vision_config(config), 0 if block in config.global_blocks else config.window)
    return _load(module, read, _sam(f"vision_encoder.layers.{block}."))


def prompt_encoder(read, config):
    """PlumConfig -> SamPromptEncoder."""
    from transformers import SamConfig
    from transformers.models.sam.modeling_sam import SamPromptEncoder

    sam = config.sam
    hf = SamConfig(
        vision_config=_vision_config(sam).to_dict(),
        prompt_encoder_config=dict(
            hidden_size=sam.out_width, image_size=sam.image_size, patch_size=sam.patch, image_embedding_size=sam.grid,
            mask_input_channels=config.decoder.mask_channels,
        ),
    )  # fmt: skip
    return _load(SamPromptEncoder(hf), read, _sam("prompt_encoder."))


def dense_pe(prompts, grid):
    """[1, D, g, g], as SamModel computes it."""
    import torch

    y, x = (torch.ones(grid, grid).cumsum(axis) - 0.5 for axis in (0, 1))
    return prompts.shared_embedding(torch.stack([x, y], -1) / grid).permute(2, 0, 1)[None]


def mask_decoder(read, config):
    from transformers import SamMaskDecoderConfig
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    hf = SamMaskDecoderConfig(
        hidden_size=config.width, mlp_dim=config.mlp, num_hidden_layers=config.depth, num_attention_heads=config.heads,
        attention_downsample_rate=config.attention_downsample, iou_head_hidden_dim=config.width,
        layer_norm_eps=TWO_WAY_EPSILON, attn_implementation="eager",
    )  # fmt: skip
    with _meta():
        module = SamMaskDecoder(hf)
    return _load(module, read, _sam("mask_decoder."))
