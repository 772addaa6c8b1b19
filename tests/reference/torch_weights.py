"""PyTorch tensors -> our parameters, for the vision modules: the names of the original checkpoints (M 9.1, 9.2, 9.4).

Every function takes a dictionary of float32 NumPy arrays and removes from it what it uses, so that a test sees what is left.
"""

import re

import jax
import numpy as np

HF_SAM = (  # names of transformers -> names of Meta's checkpoint, in this order (M 9.3)
    (r"^vision_encoder\.", "image_encoder."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"image_encoder\.layers\.", "image_encoder.blocks."),
    (r"(blocks\.\d+\.|transformer\.layers\.\d+\.)layer_norm", r"\1norm"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (r"encoder\.point_embed\.", "encoder.point_embeddings."),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"((hypernetworks_mlps\.\d+|prediction_head)\.)layers\.0", r"\1layers.1"),
    (r"((hypernetworks_mlps\.\d+|prediction_head)\.)proj_in", r"\1layers.0"),
    (r"((hypernetworks_mlps\.\d+|prediction_head)\.)proj_out", r"\1layers.2"),
)


def randomise(module, seed):
    """Draws every parameter of a torch module, norms and position tables included, so that no term can be missing unseen."""
    import torch

    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            fan_in = p[0].numel() if p.ndim > 1 else 1
            scale = fan_in**-0.5 if p.ndim > 1 and "norm" not in name else 0.2
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(torch.from_numpy((centre + scale * rng.normal(size=p.shape)).astype(np.float32)))
    return module.eval().requires_grad_(False)


def tensors(module, prefix=""):
    """State of a torch module as NumPy, Meta's names for SAM."""
    out = {}
    for name, value in module.state_dict().items():
        name = prefix + name
        for pattern, new in HF_SAM:
            name = re.sub(pattern, new, name)
        out[name] = value.detach().numpy()
    return out


def linear(t, name):
    out = {"kernel": t.pop(f"{name}.weight").T}
    return out | ({"bias": t.pop(f"{name}.bias")} if f"{name}.bias" in t else {})


def norm(t, name):
    return {"scale": t.pop(f"{name}.weight"), "bias": t.pop(f"{name}.bias")}


def conv(t, name):
    """[out, in, kh, kw] -> [kh, kw, in, out]."""
    out = {"kernel": t.pop(f"{name}.weight").transpose(2, 3, 1, 0)}
    return out | ({"bias": t.pop(f"{name}.bias")} if f"{name}.bias" in t else {})


def up_conv(t, name):
    """[in, out, kh, kw] -> [kh, kw, in, out]; stride = kernel, so nothing is flipped."""
    return {"kernel": t.pop(f"{name}.weight").transpose(2, 3, 0, 1), "bias": t.pop(f"{name}.bias")}


def stacked(trees):
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def split_packed(weight, bias):
    """Packed [3 D, D] and [3 D] -> q_proj, k_proj, v_proj."""
    parts = zip(np.split(weight, 3), np.split(bias, 3), strict=True)
    return {f"{n}_proj": {"kernel": w.T, "bias": b} for n, (w, b) in zip("qkv", parts, strict=True)}


def clip(t, depth, prefix="vision_model."):
    """`depth` layers; what the language model does not see stays in `t`."""

    def layer(i):
        at = f"{prefix}encoder.layers.{i}."
        return (
            {f"{n}_proj": linear(t, f"{at}self_attn.{n}_proj") for n in ("q", "k", "v", "out")}
            | {f"norm{i}": norm(t, f"{at}layer_norm{i}") for i in (1, 2)}
            | {f"linear{i}": linear(t, f"{at}mlp.fc{i}") for i in (1, 2)}
        )

    return {
        "patch_embed": conv(t, f"{prefix}embeddings.patch_embedding"),
        "class_embed": t.pop(f"{prefix}embeddings.class_embedding"),
        "position_embed": t.pop(f"{prefix}embeddings.position_embedding.weight"),
        "norm": norm(t, f"{prefix}pre_layrnorm"),
        "layers": stacked([layer(i) for i in range(depth)]),
    }


def sam_encoder(t, depth, global_blocks, prefix="image_encoder."):
    def block(i):
        at = f"{prefix}blocks.{i}."
        attention = split_packed(t.pop(f"{at}attn.qkv.weight"), t.pop(f"{at}attn.qkv.bias"))
        attention |= {n: t.pop(f"{at}attn.{n}") for n in ("rel_pos_h", "rel_pos_w")}
        return (
            {"attention": attention | {"out_proj": linear(t, f"{at}attn.proj")}}
            | {f"norm{i}": norm(t, f"{at}norm{i}") for i in (1, 2)}
            | {f"linear{i}": linear(t, f"{at}mlp.lin{i}") for i in (1, 2)}
        )

    blocks = [block(i) for i in range(depth)]
    neck1 = t.pop(f"{prefix}neck.0.weight")[:, :, 0, 0].T
    return {
        "patch_embed": conv(t, f"{prefix}patch_embed.proj"),
        "position_embed": t.pop(f"{prefix}pos_embed")[0],
        "window_blocks": stacked([b for i, b in enumerate(blocks) if i not in global_blocks]),
        "global_blocks": stacked([b for i, b in enumerate(blocks) if i in global_blocks]),
        "neck1": {"kernel": neck1},
        "neck_norm1": norm(t, f"{prefix}neck.1"),
        "neck2": conv(t, f"{prefix}neck.2")["kernel"],
        "neck_norm2": norm(t, f"{prefix}neck.3"),
    }


def prompt_encoder(t, prefix="prompt_encoder."):
    down = f"{prefix}mask_downscaling."
    conv3 = {"kernel": t.pop(f"{down}6.weight")[:, :, 0, 0].T, "bias": t.pop(f"{down}6.bias")}
    return {
        "gaussian_matrix": t.pop(f"{prefix}pe_layer.positional_encoding_gaussian_matrix"),
        "no_mask_embed": t.pop(f"{prefix}no_mask_embed.weight")[0],
        "point_embeddings": np.concatenate([t.pop(f"{prefix}point_embeddings.{i}.weight") for i in range(4)]),
        "not_a_point_embed": t.pop(f"{prefix}not_a_point_embed.weight")[0],
        "conv1": conv(t, f"{down}0"),
        "norm1": norm(t, f"{down}1"),
        "conv2": conv(t, f"{down}3"),
        "norm2": norm(t, f"{down}4"),
        "conv3": conv3,
    }


def mask_decoder(t, depth, prefix="mask_decoder."):
    def cross_attention(name):
        return {f"{n}_proj": linear(t, f"{prefix}transformer.{name}.{n}_proj") for n in ("q", "k", "v", "out")}

    def layer(i):
        at = f"{prefix}transformer.layers.{i}."
        return (
            {
                "self_attention": cross_attention(f"layers.{i}.self_attn"),
                "token_to_image": cross_attention(f"layers.{i}.cross_attn_token_to_image"),
                "image_to_token": cross_attention(f"layers.{i}.cross_attn_image_to_token"),
            }
            | {f"norm{i}": norm(t, f"{at}norm{i}") for i in (1, 2, 3, 4)}
            | {f"linear{i}": linear(t, f"{at}mlp.lin{i}") for i in (1, 2)}
        )

    def mlp(name):
        return {f"linear{i + 1}": linear(t, f"{prefix}{name}.layers.{i}") for i in range(3)}

    return {
        "iou_token": t.pop(f"{prefix}iou_token.weight")[0],
        "mask_tokens": t.pop(f"{prefix}mask_tokens.weight"),
        "layers": stacked([layer(i) for i in range(depth)]),
        "final_attention": cross_attention("final_attn_token_to_image"),
        "final_norm": norm(t, f"{prefix}transformer.norm_final_attn"),
        "upscale1": up_conv(t, f"{prefix}output_upscaling.0"),
        "upscale_norm": norm(t, f"{prefix}output_upscaling.1"),
        "upscale2": up_conv(t, f"{prefix}output_upscaling.3"),
        "hypernetworks": stacked([mlp(f"output_hypernetworks_mlps.{i}") for i in range(4)]),
        "iou_head": mlp("iou_prediction_head"),
    }


def feedback(t, prefix="mask_pooler."):
    return {
        "queries": t.pop(f"{prefix}queries")[:, 0],
        **split_packed(t.pop(f"{prefix}attn.in_proj_weight"), t.pop(f"{prefix}attn.in_proj_bias")),
        "out_proj": linear(t, f"{prefix}attn.out_proj"),
        **{f"film{i + 1}": linear(t, f"{prefix}mask_modulator.projections.{i}") for i in range(3)},
    }
