"""The sizes of a model, from the shapes of its tensors and from what only a config.json says (M 1.2 to 1.4, M 4)."""

import math
import re

from plum_jax.convert.keys import BIO, SAM
from plum_jax.errors import UserError

HEADS = (
    8  # of SAM's mask decoder, the span tagger and the pooler: constants of the reference that no file holds (M 3.1, 4.3, 5.2)
)
TAGGER_MLP = 2048  # M 3.1
ROPE_THETA = 10000.0  # of Llama-2, whose config.json did not have the entry yet (M 1.2)


def model_config(language, sam, clip, *, vocab, lora, tagger_heads=HEADS):
    """The model part of a config file.

    Args:
      language, sam, clip: Source.
      vocab: number of tokens that the tokenizer has, image tokens included.
      lora: entries lora_rank, lora_alpha and lora_dropout of the decoder's part.

    Raises:
      UserError: the checkpoint is of an architecture that PLUM does not have, or does not say a size.
    """
    tensors = language.tensors
    decoder, sam_sizes = _decoder(sam), _sam(sam)
    has = lambda prefix: any(name.startswith(prefix) for name in tensors)  # noqa: E731
    heads_given = has("model.token_to_mask_fcs.")
    linear1 = tensors.get(f"{BIO}linear1.weight")
    return dict(
        dtype="float32",
        llama=_llama(language, vocab) | lora,
        clip=_clip(clip, language.facts),
        sam=sam_sizes,
        decoder=decoder,
        tagger=dict(
            heads=tagger_heads, mlp=linear1.shape[0] if linear1 else TAGGER_MLP, epsilon=1e-5, dropout=0.1,
            bidirectional=linear1 is not None or not heads_given,
        ),
        feedback=has("mask_pooler.") or not heads_given,
        feedback_heads=HEADS,
        remat="full",
        projector="mlp" if has("model.mm_projector.0.") else "linear",
    )  # fmt: skip


def _fact(source, *names):
    """The first of these entries of config.json that is there."""
    for name in names:
        if source.facts.get(name) is not None:
            return source.facts[name]
    raise UserError(
        f"{source.path}: config.json does not say {names[0]}, which no tensor shows; restore it, or give --hf-config FILE"
    )


def _shape(source, name):
    if name not in source.tensors:
        raise UserError(f"{source.path}: {name} is missing; the checkpoint is incomplete or of another architecture")
    return source.tensors[name].shape


def _count(tensors, pattern):
    """One more than the largest number that `pattern` finds in the names."""
    numbers = [int(found.group(1)) for found in map(re.compile(pattern).match, tensors) if found]
    return max(numbers, default=-1) + 1


def _llama(source, vocab):
    facts, tensors = source.facts, source.tensors
    if source.kind == "llava_hf":
        facts = {**facts.get("text_config", {}), "vision_feature_layer": facts.get("vision_feature_layer")}
        source = source._replace(facts=facts)
    rope = facts.get("rope_parameters") or {}
    heads = _fact(source, "num_attention_heads")
    for name, value, wanted in (
        ("num_key_value_heads", facts.get("num_key_value_heads", heads), (heads,)),
        ("hidden_act", facts.get("hidden_act", "silu"), ("silu",)),
        ("pretraining_tp", facts.get("pretraining_tp", 1), (1,)),  # more bypasses LoRA in the reference (M D16)
        ("rope_scaling", facts.get("rope_scaling") or rope.get("rope_type", "default"), ("default",)),
        ("attention_bias", facts.get("attention_bias", False), (False,)),
    ):
        if value not in wanted:
            raise UserError(
                f"{source.path}: config.json has {name} {value!r}, PLUM's decoder has {wanted[0]!r}; it cannot be converted"
            )
    rows, width = _shape(source, "model.embed_tokens.weight")
    return dict(
        vocab_size=max(rows, vocab), width=width, depth=_count(tensors, r"model\.layers\.(\d+)\."), heads=heads,
        mlp=_shape(source, "model.layers.0.mlp.gate_proj.weight")[0], epsilon=float(_fact(source, "rms_norm_eps")),
        rope_theta=float(facts.get("rope_theta") or rope.get("rope_theta") or ROPE_THETA),
    )  # fmt: skip


def _clip(source, language):
    tensors = source.tensors
    positions, width = _shape(source, "vision_model.embeddings.position_embedding.weight")
    patch = _shape(source, "vision_model.embeddings.patch_embedding.weight")[-1]
    if source.facts.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise UserError(
            f"{source.path}: has activation {source.facts['hidden_act']!r}, not CLIP's quick_gelu; give OpenAI's CLIP"
        )
    layers = _count(tensors, r"vision_model\.encoder\.layers\.(\d+)\.")
    select = language.get("mm_vision_select_layer", language.get("vision_feature_layer", -2))
    feature = language.get("mm_vision_select_feature", language.get("vision_feature_select_strategy", "patch"))
    if not isinstance(select, int) or feature not in ("patch", "default"):
        raise UserError(
            f"{source.path}: takes layer {select!r} and features {feature!r}; only the patch features of one layer work"
        )
    return dict(
        image_size=patch * math.isqrt(positions - 1), patch=patch, width=width,
        depth=select if select >= 0 else layers + 1 + select,  # hidden state 0 is the embedding: -2 runs all but one layer
        heads=_fact(source, "num_attention_heads"), mlp=_shape(source, "vision_model.encoder.layers.0.mlp.fc1.weight")[0],
        epsilon=float(source.facts.get("layer_norm_eps", 1e-5)),
    )  # fmt: skip


def _sam(source):
    at, tensors = f"{SAM}image_encoder.", source.tensors
    _, grid, _, width = _shape(source, f"{at}pos_embed")
    patch = _shape(source, f"{at}patch_embed.proj.weight")[-1]
    depth = _count(tensors, re.escape(at) + r"blocks\.(\d+)\.")
    lengths = [_shape(source, f"{at}blocks.{i}.attn.rel_pos_h") for i in range(depth)]
    wide = tuple(i for i, shape in enumerate(lengths) if shape[0] == 2 * grid - 1)
    if len(wide) == depth:  # the window is as large as the grid
        wide = tuple(source.facts.get("vision_config", {}).get("global_attn_indexes", wide))
    windows = [shape[0] for i, shape in enumerate(lengths) if i not in wide]
    return dict(
        image_size=grid * patch, patch=patch, width=width, depth=depth, heads=width // lengths[0][1],
        mlp=_shape(source, f"{at}blocks.0.mlp.lin1.weight")[0], window=(windows[0] + 1) // 2 if windows else grid,
        global_blocks=wide, epsilon=1e-6, out_width=_shape(source, f"{at}neck.0.weight")[0],
    )  # fmt: skip


def _decoder(source):
    at, tensors = f"{SAM}mask_decoder.", source.tensors
    layer = f"{at}transformer.layers.0."
    width = _shape(source, f"{at}iou_token.weight")[1]
    return dict(
        depth=_count(tensors, re.escape(at) + r"transformer\.layers\.(\d+)\."),
        heads=source.facts.get("mask_decoder_config", {}).get("num_attention_heads", HEADS),
        mlp=_shape(source, f"{layer}mlp.lin1.weight")[0],
        attention_downsample=width // _shape(source, f"{layer}cross_attn_token_to_image.q_proj.weight")[0],
        mask_channels=_shape(source, f"{SAM}prompt_encoder.mask_downscaling.3.weight")[0], pe_dtype="float32",
    )  # fmt: skip
