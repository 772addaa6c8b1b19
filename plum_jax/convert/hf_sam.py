"""SAM's tensors are named in two ways: by Meta's checkpoints (M 9.2), ours here, and by transformers' SamModel (M 9.3)."""

import re

NAMES = (  # (Meta's, transformers'); {} is a number, what follows is the same in both; the first that fits counts
    ("image_encoder.patch_embed.proj.", "vision_encoder.patch_embed.projection."),
    ("image_encoder.blocks.{}.norm{}.", "vision_encoder.layers.{}.layer_norm{}."),
    ("image_encoder.blocks.{}.", "vision_encoder.layers.{}."),
    ("image_encoder.neck.0.", "vision_encoder.neck.conv1."),
    ("image_encoder.neck.1.", "vision_encoder.neck.layer_norm1."),
    ("image_encoder.neck.2.", "vision_encoder.neck.conv2."),
    ("image_encoder.neck.3.", "vision_encoder.neck.layer_norm2."),
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "prompt_encoder.shared_embedding.positional_embedding"),
    ("prompt_encoder.point_embeddings.{}.", "prompt_encoder.point_embed.{}."),
    ("prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("mask_decoder.transformer.layers.{}.norm{}.", "mask_decoder.transformer.layers.{}.layer_norm{}."),
    ("mask_decoder.transformer.norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."),
    ("mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    ("mask_decoder.output_hypernetworks_mlps.{}.layers.0.", "mask_decoder.output_hypernetworks_mlps.{}.proj_in."),
    ("mask_decoder.output_hypernetworks_mlps.{}.layers.1.", "mask_decoder.output_hypernetworks_mlps.{}.layers.0."),
    ("mask_decoder.output_hypernetworks_mlps.{}.layers.2.", "mask_decoder.output_hypernetworks_mlps.{}.proj_out."),
    ("mask_decoder.iou_prediction_head.layers.0.", "mask_decoder.iou_prediction_head.proj_in."),
    ("mask_decoder.iou_prediction_head.layers.1.", "mask_decoder.iou_prediction_head.layers.0."),
    ("mask_decoder.iou_prediction_head.layers.2.", "mask_decoder.iou_prediction_head.proj_out."),
)


def to_hf(name):
    """Meta's name of a tensor -> its names in SamModel: one, but two for the matrix of the positional encoding."""
    found = [_rename(name, meta, hf) for meta, hf in NAMES]
    found = [new for new in found if new is not None]
    return (found[:2] if "pe_layer" in name else found[:1]) or [name]


def from_hf(name):
    """A name in SamModel -> Meta's name; both names of the positional encoding give the same."""
    return next((new for meta, hf in NAMES if (new := _rename(name, hf, meta)) is not None), name)


def _rename(name, pattern, template):
    """`name` with its beginning, which `pattern` describes, written as `template` does; None when it does not fit."""
    found = re.match(re.escape(pattern).replace(r"\{\}", r"(\d+)"), name)
    return found and template.format(*found.groups()) + name[found.end() :]
