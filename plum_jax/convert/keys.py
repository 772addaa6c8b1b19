"""The table of names: every parameter of ours, the PyTorch tensor that it comes from, and how one becomes the other (M 9).

Names on the PyTorch side are those of a merged PLUM folder (M 9.1), with `vision_model.*` for CLIP (M 9.4) and
`...lora_A.weight` for adapters (M 9.6). Readers of other formats rename to these first (sources.py).
"""

import functools
from typing import NamedTuple

import numpy as np

SAM = "model.visual_model."
LLAMA_LAYER, CLIP_LAYER = "model.layers.{}.", "vision_model.encoder.layers.{}."
BIO = "bio_encoder.encoder.layers.0."


class Form(NamedTuple):
    """How a tensor is turned around: both directions are exact rearrangements of the same numbers."""

    to_ours: object
    to_torch: object


def _transposed(order):
    inverse = tuple(int(i) for i in np.argsort(order))
    return Form(lambda x: x.transpose(order), lambda x: x.transpose(inverse))


FORMS = {
    "same": Form(lambda x: x, lambda x: x),
    "linear": _transposed((1, 0)),  # [out, in] -> [in, out]
    "conv": _transposed((2, 3, 1, 0)),  # [out, in, kh, kw] -> [kh, kw, in, out]
    "up_conv": _transposed((2, 3, 0, 1)),  # [in, out, kh, kw] -> [kh, kw, in, out]; stride = kernel, nothing is flipped
    "pointwise": Form(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),  # a 1x1 convolution as a linear layer
    "row": Form(lambda x: x[0], lambda x: x[None]),  # [1, ...] -> [...]
    "column": Form(lambda x: x[:, 0], lambda x: x[:, None]),  # [P, 1, D] -> [P, D]
}


class Rule(NamedTuple):
    """One parameter of ours, or one layer after the other of a stacked one."""

    path: str  # ours, "llama/layers/q_proj/kernel"
    name: str  # PyTorch's, "model.layers.{}.self_attn.q_proj.weight"
    form: str  # key of FORMS
    layers: tuple | None = None  # what {} runs over, in the order of our leading layer axis; None: not stacked
    piece: tuple = (0, 1)  # (i, n): the i-th of n equal parts of PyTorch's first axis, for packed q, k, v
    vocabulary: bool = False  # our vocabulary axis is padded (LlamaConfig.padded_vocab)

    def to_ours(self, tensor):
        """The whole PyTorch tensor -> our array (of one layer)."""
        part, count = self.piece
        size = len(tensor) // count
        return FORMS[self.form].to_ours(tensor[part * size : (part + 1) * size])

    def to_torch(self, array):
        """Our array (of one layer) -> the PyTorch tensor, or its piece."""
        return FORMS[self.form].to_torch(array)

    def items(self):
        """[(number of the layer or None, PyTorch name)] in stacking order."""
        if self.layers is None:
            return [(None, self.name)]
        return [(i, self.name.format(layer)) for i, layer in enumerate(self.layers)]


def rules(config):
    """PlumConfig -> [Rule] for every parameter of Plum, in the order of `plum.build(config)`'s parts."""
    found = [
        *_clip(config.clip), *_projector(config.projector), *_llama(config.llama), *_heads(config),
        *_sam_encoder(config.sam), *_prompt_encoder(), *_mask_decoder(config.decoder),
    ]  # fmt: skip
    return found + (_feedback() if config.feedback else [])


def _linear(path, name, layers=None, *, bias=True):
    found = [Rule(f"{path}/kernel", f"{name}.weight", "linear", layers)]
    return found + ([Rule(f"{path}/bias", f"{name}.bias", "same", layers)] if bias else [])


def _norm(path, name, layers=None):
    return [Rule(f"{path}/scale", f"{name}.weight", "same", layers), Rule(f"{path}/bias", f"{name}.bias", "same", layers)]


def _conv(path, name, form="conv"):
    return [Rule(f"{path}/kernel", f"{name}.weight", form), Rule(f"{path}/bias", f"{name}.bias", "same")]


def _packed(path, name, layers=None):
    """`name`weight [3 D, D] and `name`bias [3 D] -> q_proj, k_proj, v_proj."""
    found = []
    for i, part in enumerate("qkv"):
        found.append(Rule(f"{path}/{part}_proj/kernel", f"{name}weight", "linear", layers, (i, 3)))
        found.append(Rule(f"{path}/{part}_proj/bias", f"{name}bias", "same", layers, (i, 3)))
    return found


def _many(pairs, make, path, name, layers=None):
    return [rule for ours, theirs in pairs for rule in make(f"{path}/{ours}", f"{name}{theirs}", layers)]


def _llama(config):
    layers, path = tuple(range(config.depth)), "llama/layers"
    kernels = [(n, f"self_attn.{n}") for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
    kernels += [(n, f"mlp.{n}") for n in ("gate_proj", "up_proj", "down_proj")]
    found = [
        Rule("llama/embed", "model.embed_tokens.weight", "same", vocabulary=True),
        *_many(kernels, functools.partial(_linear, bias=False), path, LLAMA_LAYER, layers),
    ]
    for ours, theirs in (("input_norm", "input_layernorm"), ("post_attention_norm", "post_attention_layernorm")):
        found.append(Rule(f"{path}/{ours}/scale", f"{LLAMA_LAYER}{theirs}.weight", "same", layers))
    if config.lora_rank:
        for name in ("q_proj", "v_proj"):
            for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
                found.append(Rule(f"{path}/{name}/{ours}", f"{LLAMA_LAYER}self_attn.{name}.{theirs}.weight", "linear", layers))
    return [
        *found,
        Rule("llama/norm/scale", "model.norm.weight", "same"),
        Rule("llama/lm_head/kernel", "lm_head.weight", "linear", vocabulary=True),
    ]


def _clip(config):
    layers, path, embed = tuple(range(config.depth)), "clip/layers", "vision_model.embeddings."
    linears = [(f"{n}_proj", f"self_attn.{n}_proj") for n in ("q", "k", "v", "out")]
    linears += [("linear1", "mlp.fc1"), ("linear2", "mlp.fc2")]
    return [
        Rule("clip/patch_embed/kernel", f"{embed}patch_embedding.weight", "conv"),
        Rule("clip/class_embed", f"{embed}class_embedding", "same"),
        Rule("clip/position_embed", f"{embed}position_embedding.weight", "same"),
        *_norm("clip/norm", "vision_model.pre_layrnorm"),
        *_many(linears, _linear, path, CLIP_LAYER, layers),
        *_many([(f"norm{i}", f"layer_norm{i}") for i in (1, 2)], _norm, path, CLIP_LAYER, layers),
    ]


def _projector(kind):
    if kind == "linear":
        return _linear("projector", "model.mm_projector")
    return _linear("projector/linear1", "model.mm_projector.0") + _linear("projector/linear2", "model.mm_projector.2")


def _heads(config):
    found = []
    if config.tagger.bidirectional:
        at = "span_tagger/encoder"
        found += _packed(at, f"{BIO}self_attn.in_proj_") + _linear(f"{at}/out_proj", f"{BIO}self_attn.out_proj")
        found += _linear(f"{at}/linear1", f"{BIO}linear1") + _linear(f"{at}/linear2", f"{BIO}linear2")
        found += _norm(f"{at}/norm1", f"{BIO}norm1") + _norm(f"{at}/norm2", f"{BIO}norm2")
    for ours, theirs in (("span_tagger", "token_to_mask_fcs"), ("span_projector", "text_hidden_fcs")):
        found += _linear(f"{ours}/hidden", f"model.{theirs}.0.0") + _linear(f"{ours}/out", f"model.{theirs}.0.2")
    return found


def _sam_encoder(config):
    at = f"{SAM}image_encoder."
    found = [
        *_conv("sam_encoder/patch_embed", f"{at}patch_embed.proj"),
        Rule("sam_encoder/position_embed", f"{at}pos_embed", "row"),
    ]
    windows = tuple(i for i in range(config.depth) if i not in config.global_blocks)
    for stack, layers in (("window_blocks", windows), ("global_blocks", tuple(config.global_blocks))):
        path, block = f"sam_encoder/{stack}", f"{at}blocks.{{}}."
        found += _packed(f"{path}/attention", f"{block}attn.qkv.", layers)
        found += _linear(f"{path}/attention/out_proj", f"{block}attn.proj", layers)
        for name in ("rel_pos_h", "rel_pos_w"):
            found.append(Rule(f"{path}/attention/{name}", f"{block}attn.{name}", "same", layers))
        found += _many([("norm1", "norm1"), ("norm2", "norm2")], _norm, path, block, layers)
        found += _many([("linear1", "mlp.lin1"), ("linear2", "mlp.lin2")], _linear, path, block, layers)
    return [
        *found,
        Rule("sam_encoder/neck1/kernel", f"{at}neck.0.weight", "pointwise"),
        *_norm("sam_encoder/neck_norm1", f"{at}neck.1"),
        Rule("sam_encoder/neck2", f"{at}neck.2.weight", "conv"),
        *_norm("sam_encoder/neck_norm2", f"{at}neck.3"),
    ]


def _prompt_encoder():
    at, down = f"{SAM}prompt_encoder.", f"{SAM}prompt_encoder.mask_downscaling."
    return [
        Rule("prompt_encoder/gaussian_matrix", f"{at}pe_layer.positional_encoding_gaussian_matrix", "same"),
        Rule("prompt_encoder/no_mask_embed", f"{at}no_mask_embed.weight", "row"),
        Rule("prompt_encoder/point_embeddings", f"{at}point_embeddings.{{}}.weight", "row", tuple(range(4))),
        Rule("prompt_encoder/not_a_point_embed", f"{at}not_a_point_embed.weight", "row"),
        *_conv("prompt_encoder/conv1", f"{down}0"), *_norm("prompt_encoder/norm1", f"{down}1"),
        *_conv("prompt_encoder/conv2", f"{down}3"), *_norm("prompt_encoder/norm2", f"{down}4"),
        *_conv("prompt_encoder/conv3", f"{down}6", "pointwise"),
    ]  # fmt: skip


def _mask_decoder(config):
    at, path, layers = f"{SAM}mask_decoder.", "mask_decoder", tuple(range(config.depth))
    layer = f"{at}transformer.layers.{{}}."
    found = [
        Rule(f"{path}/iou_token", f"{at}iou_token.weight", "row"),
        Rule(f"{path}/mask_tokens", f"{at}mask_tokens.weight", "same"),
    ]
    projections = [(f"{n}_proj", f"{n}_proj") for n in ("q", "k", "v", "out")]
    for ours, theirs in (
        ("self_attention", "self_attn"), ("token_to_image", "cross_attn_token_to_image"),
        ("image_to_token", "cross_attn_image_to_token"),
    ):  # fmt: skip
        found += _many(projections, _linear, f"{path}/layers/{ours}", f"{layer}{theirs}.", layers)
    found += _many([(f"norm{i}", f"norm{i}") for i in (1, 2, 3, 4)], _norm, f"{path}/layers", layer, layers)
    found += _many([("linear1", "mlp.lin1"), ("linear2", "mlp.lin2")], _linear, f"{path}/layers", layer, layers)
    found += _many(projections, _linear, f"{path}/final_attention", f"{at}transformer.final_attn_token_to_image.")
    found += _norm(f"{path}/final_norm", f"{at}transformer.norm_final_attn")
    up = f"{at}output_upscaling."
    found += _conv(f"{path}/upscale1", f"{up}0", "up_conv") + _norm(f"{path}/upscale_norm", f"{up}1")
    found += _conv(f"{path}/upscale2", f"{up}3", "up_conv")
    mlp = [(f"linear{i + 1}", f"layers.{i}") for i in range(3)]
    found += _many(mlp, _linear, f"{path}/hypernetworks", f"{at}output_hypernetworks_mlps.{{}}.", tuple(range(4)))
    return found + _many(mlp, _linear, f"{path}/iou_head", f"{at}iou_prediction_head.")


def _feedback():
    at = "mask_pooler."
    found = [Rule("feedback/queries", f"{at}queries", "column"), *_packed("feedback", f"{at}attn.in_proj_")]
    found += _linear("feedback/out_proj", f"{at}attn.out_proj")
    return found + [rule for i in range(3) for rule in _linear(f"feedback/film{i + 1}", f"{at}mask_modulator.projections.{i}")]


POOLER_COPIES = {  # the pooler shares the prompt encoder's layers; a merged folder stores them a second time (M 9.1)
    "mask_pooler.block1.0.0.": f"{SAM}prompt_encoder.mask_downscaling.0.",
    "mask_pooler.block1.0.1.": f"{SAM}prompt_encoder.mask_downscaling.1.",
    "mask_pooler.block2.0.3.": f"{SAM}prompt_encoder.mask_downscaling.3.",
    "mask_pooler.block2.0.4.": f"{SAM}prompt_encoder.mask_downscaling.4.",
    "mask_pooler.final_conv.": f"{SAM}prompt_encoder.mask_downscaling.6.",
    "mask_pooler.prompt_encoder.": f"{SAM}prompt_encoder.",
}


def original_of(name):
    """Name of a second copy in a merged folder -> name of the tensor that it must equal, None for any other name."""
    for copy, original in POOLER_COPIES.items():
        if name.startswith(copy):
            return original + name.removeprefix(copy)
    return None
