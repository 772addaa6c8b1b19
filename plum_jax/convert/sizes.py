"""The sizes of a model, from the shapes of its tensors and from what only a config.json says (M 1.2 to 1.4, M 4)."""

import math
import re

from plum_jax.convert.keys import BIO, SAM
from plum_jax.errors import UserError

HEADS = (
    8  # of SAM's mask decoder, the span tagger and the pooler: constants of the reference that no file holds (M 3.1, 4.3, 5.2)
)
TAGGER_MLP = 2048  # M 3.1
LARGEST = 1e30  # of a number in config.json: the programs compute in float32
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
    linear1 = _shape(language, f"{BIO}linear1.weight", 2) if f"{BIO}linear1.weight" in tensors else None
    return dict(
        dtype="float32",
        llama=_llama(language, vocab) | lora,
        clip=_clip(clip, language),
        sam=sam_sizes,
        decoder=decoder,
        tagger=dict(
            heads=tagger_heads, mlp=linear1[0] if linear1 else TAGGER_MLP, epsilon=1e-5, dropout=0.1,
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


def _inner(source, name):
    """The part of config.json with this name, {} when there is none."""
    part = source.facts.get(name) or {}
    if not isinstance(part, dict):
        raise UserError(f"{source.path}: config.json has {name} {part!r}, not an object; download config.json again")
    return part


def _positive(source, name, value):
    """An entry of config.json -> float."""
    if type(value) not in (int, float) or not 0 < value < LARGEST:
        raise UserError(f"{source.path}: config.json has {name} {value!r}, not a positive number; download config.json again")
    return float(value)


def _heads(source, width):
    heads = _fact(source, "num_attention_heads")
    if type(heads) is not int or heads < 1 or width % heads:
        raise UserError(
            f"{source.path}: config.json has num_attention_heads {heads!r}, which does not divide the width of the tensors, "
            f"{width}; download config.json again"
        )
    return heads


def _shape(source, name, rank):
    """Shape of a tensor that must be there, with `rank` dimensions, none of them empty."""
    if name not in source.tensors:
        raise UserError(f"{source.path}: {name} is missing; the checkpoint is incomplete or of another architecture")
    shape = source.tensors[name].shape
    if len(shape) != rank or 0 in shape:
        raise UserError(
            f"{source.tensors[name].file}: {name} has shape {list(shape)}, PLUM's has {rank} dimensions; it is damaged or of "
            "another architecture"
        )
    return shape


def _count(source, prefix):
    """Number of the layers `prefix`0, `prefix`1, ...: none may be missing between them."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = {int(found.group(1)) for found in map(pattern.match, source.tensors) if found}
    absent = next(i for i in range(len(numbers) + 1) if i not in numbers)
    if not numbers or absent < len(numbers):
        raise UserError(f"{source.path}: {prefix}{absent} is missing; the checkpoint is incomplete, download it again")
    return len(numbers)


def _llama(source, vocab):
    facts = source.facts
    if source.kind == "llava_hf":
        facts = {**_inner(source, "text_config"), "vision_feature_layer": facts.get("vision_feature_layer")}
        source = source._replace(facts=facts)
    rope = _inner(source, "rope_parameters")
    rows, width = _shape(source, "model.embed_tokens.weight", 2)
    heads = _heads(source, width)
    depth, mlp = _count(source, "model.layers."), _shape(source, "model.layers.0.mlp.gate_proj.weight", 2)[0]
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
    for name, value in (("num_hidden_layers", depth), ("hidden_size", width), ("intermediate_size", mlp)):
        if facts.get(name, value) != value:  # fewer layers: the file that holds the last of them is missing
            raise UserError(
                f"{source.path}: config.json has {name} {facts[name]!r}, the tensors show {value}; one of them is of another "
                "checkpoint or incomplete, download both again"
            )
    theta = next((x for x in (facts.get("rope_theta"), rope.get("rope_theta")) if x is not None), ROPE_THETA)
    return dict(
        vocab_size=max(rows, vocab), width=width, depth=depth, heads=heads, mlp=mlp,
        epsilon=_positive(source, "rms_norm_eps", _fact(source, "rms_norm_eps")),
        rope_theta=_positive(source, "rope_theta", theta),
    )  # fmt: skip


def _clip(source, language):
    positions, width = _shape(source, "vision_model.embeddings.position_embedding.weight", 2)
    patch, grid = _shape(source, "vision_model.embeddings.patch_embedding.weight", 4)[-1], math.isqrt(positions - 1)
    if not grid or grid**2 != positions - 1:
        raise UserError(f"{source.path}: has {positions} positions, not one and a square grid; give OpenAI's CLIP")
    if source.facts.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise UserError(
            f"{source.path}: has activation {source.facts['hidden_act']!r}, not CLIP's quick_gelu; give OpenAI's CLIP"
        )
    layers, facts = _count(source, "vision_model.encoder.layers."), language.facts
    select = facts.get("mm_vision_select_layer", facts.get("vision_feature_layer", -2))
    feature = facts.get("mm_vision_select_feature", facts.get("vision_feature_select_strategy", "patch"))
    if type(select) is not int or feature not in ("patch", "default"):
        raise UserError(
            f"{language.path}: takes layer {select!r} and features {feature!r}; only the patch features of one layer work"
        )
    depth = select if select >= 0 else layers + 1 + select  # hidden state 0 is the embedding: -2 runs all but one layer
    if not 1 <= depth <= layers:
        raise UserError(
            f"{language.path}: takes layer {select} of CLIP, whose {source.path} has {layers}; give the CLIP it names"
        )
    return dict(
        image_size=patch * grid, patch=patch, width=width, depth=depth, heads=_heads(source, width),
        mlp=_shape(source, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        epsilon=_positive(source, "layer_norm_eps", source.facts.get("layer_norm_eps", 1e-5)),
    )  # fmt: skip


def _sam(source):
    at = f"{SAM}image_encoder."
    _, grid, _, width = _shape(source, f"{at}pos_embed", 4)
    patch = _shape(source, f"{at}patch_embed.proj.weight", 4)[-1]
    depth = _count(source, f"{at}blocks.")
    lengths = [_shape(source, f"{at}blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    wide = tuple(i for i, shape in enumerate(lengths) if shape[0] == 2 * grid - 1)
    if len(wide) == depth:  # the window is as large as the grid
        wide = _global_blocks(source, depth)
    windows = [shape[0] for i, shape in enumerate(lengths) if i not in wide]
    return dict(
        image_size=grid * patch, patch=patch, width=width, depth=depth, heads=width // lengths[0][1],
        mlp=_shape(source, f"{at}blocks.0.mlp.lin1.weight", 2)[0], window=(windows[0] + 1) // 2 if windows else grid,
        global_blocks=wide, epsilon=1e-6, out_width=_shape(source, f"{at}neck.0.weight", 4)[0],
    )  # fmt: skip


def _global_blocks(source, depth):
    """Which blocks see the whole grid, where the tables of all have one length. Without config.json: all, which is the same."""
    found = _inner(source, "vision_config").get("global_attn_indexes", list(range(depth)))
    if not isinstance(found, list) or not all(type(i) is int and 0 <= i < depth for i in found):
        raise UserError(
            f"{source.path}: config.json has global_attn_indexes {found!r}, SAM has {depth} blocks; download it again"
        )
    return tuple(sorted(set(found)))


def _decoder(source):
    at = f"{SAM}mask_decoder."
    layer = f"{at}transformer.layers.0."
    width = _shape(source, f"{at}iou_token.weight", 2)[1]
    return dict(
        depth=_count(source, f"{at}transformer.layers."),
        heads=_inner(source, "mask_decoder_config").get("num_attention_heads", HEADS),
        mlp=_shape(source, f"{layer}mlp.lin1.weight", 2)[0],
        attention_downsample=width // _shape(source, f"{layer}cross_attn_token_to_image.q_proj.weight", 2)[0],
        mask_channels=_shape(source, f"{SAM}prompt_encoder.mask_downscaling.3.weight", 4)[0], pe_dtype="float32",
    )  # fmt: skip
