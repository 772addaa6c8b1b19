"""SAM in PyTorch as M 4 writes it down: image encoder, mask prompts, two-way mask decoder, masks at original size.

Functions of a dictionary of tensors with the names of M 9.2 under `model.visual_model.`; all sizes come from the tensors,
except the numbers of heads, the window and which blocks are global.
"""

import torch
import torch.nn.functional as F

from tests.reference.torch_layers import attend, depth_of, heads_of, layer_norm, layer_norm_2d, linear

SAM = "model.visual_model."
ENCODER, PROMPT, DECODER = f"{SAM}image_encoder.", f"{SAM}prompt_encoder.", f"{SAM}mask_decoder."
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def sam_input(pixels, resized):
    """uint8[S, S, 3] with an image of size `resized` in its corner -> float32[3, S, S], zero outside of it (M 1.4)."""
    height, width = (int(x) for x in resized)
    image = (torch.as_tensor(pixels[:height, :width]).float() - MEAN) / STD
    size = pixels.shape[0]
    return F.pad(image.permute(2, 0, 1), (0, size - width, 0, size - height))


def image_size(w):
    """Side of the padded square in pixels."""
    return w[f"{ENCODER}pos_embed"].shape[1] * w[f"{ENCODER}patch_embed.proj.weight"].shape[-1]


def relative_positions(q, table_h, table_w):
    """q [B, N, K, K, H] (not scaled), tables [2K - 1, H] -> bias [B, N, K * K, K * K] (M 4.1)."""
    size = q.shape[2]
    offset = torch.arange(size)[:, None] - torch.arange(size)[None] + size - 1
    rel_h = torch.einsum("bnyxh,yjh->bnyxj", q, table_h[offset])
    rel_w = torch.einsum("bnyxh,xjh->bnyxj", q, table_w[offset])
    bias = rel_h[..., :, None] + rel_w[..., None, :]
    return bias.reshape(*q.shape[:2], size * size, size * size)


def encoder_attention(w, name, x, heads):
    """[B, K, K, D] -> [B, K, K, D]."""
    batch, size, _, width = x.shape
    q, k, v = (heads_of(part, heads) for part in linear(w, f"{name}.qkv", x.reshape(batch, -1, width)).chunk(3, -1))
    bias = relative_positions(
        q.reshape(batch, heads, size, size, -1), w[f"{name}.rel_pos_h"], w[f"{name}.rel_pos_w"]
    )  # fmt: skip
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
    out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, size, size, width)
    return linear(w, f"{name}.proj", out)


def in_windows(attention, x, window):
    """Pads [B, g, g, D] with zeros at bottom and right, attends inside each window, padding included, and cuts it off."""
    batch, grid, _, width = x.shape
    pad = (window - grid % window) % window
    x = F.pad(x, (0, 0, 0, pad, 0, pad))
    count = (grid + pad) // window
    rows = []
    for i in range(count):
        row = [attention(x[:, i * window :, j * window :][:, :window, :window]) for j in range(count)]
        rows.append(torch.cat(row, 2))
    return torch.cat(rows, 1)[:, :grid, :grid]


def image_encoder(w, numbers, images):
    """float32[B, 3, S, S] -> ([B, 256, g, g], list of block outputs [B, g, g, D])."""
    patch = w[f"{ENCODER}patch_embed.proj.weight"]
    x = F.conv2d(images, patch, w[f"{ENCODER}patch_embed.proj.bias"], stride=patch.shape[-1]).permute(0, 2, 3, 1)
    x = x + w[f"{ENCODER}pos_embed"]
    blocks = []
    for i in range(depth_of(w, f"{ENCODER}blocks.")):
        at = f"{ENCODER}blocks.{i}"

        def attention(y, at=at):
            return encoder_attention(w, f"{at}.attn", y, numbers.sam_heads)

        y = layer_norm(w, f"{at}.norm1", x, 1e-6)
        x = x + (attention(y) if i in numbers.sam_global_blocks else in_windows(attention, y, numbers.sam_window))
        y = layer_norm(w, f"{at}.norm2", x, 1e-6)
        x = x + linear(w, f"{at}.mlp.lin2", F.gelu(linear(w, f"{at}.mlp.lin1", y)))
        blocks.append(x)
    x = F.conv2d(x.permute(0, 3, 1, 2), w[f"{ENCODER}neck.0.weight"])
    x = layer_norm_2d(w, f"{ENCODER}neck.1", x)
    x = F.conv2d(x, w[f"{ENCODER}neck.2.weight"], padding=1)
    return layer_norm_2d(w, f"{ENCODER}neck.3", x), blocks


def dense_pe(w, grid):
    """[1, 256, g, g], computed in the dtype of the Gaussian matrix (M 4.2)."""
    matrix = w[f"{PROMPT}pe_layer.positional_encoding_gaussian_matrix"]
    ones = torch.ones(grid, grid, dtype=matrix.dtype)
    y, x = (ones.cumsum(axis) - 0.5 for axis in (0, 1))
    angle = 2 * torch.pi * ((2 * torch.stack([x / grid, y / grid], -1) - 1) @ matrix)
    return torch.cat([angle.sin(), angle.cos()], -1).permute(2, 0, 1)[None]


def no_mask(w, grid):
    """The dense prompt without a mask, [1, 256, g, g]."""
    return w[f"{PROMPT}no_mask_embed.weight"].reshape(1, -1, 1, 1).expand(1, -1, grid, grid)


def mask_prompt(w, masks, modulate=lambda x, block: x):
    """Mask logits [n, 1, 4g, 4g] -> [n, 256, g, g]. modulate(x, 0 or 1): after each norm and before its GELU (M 5.2)."""
    down = f"{PROMPT}mask_downscaling."
    x = F.conv2d(masks, w[f"{down}0.weight"], w[f"{down}0.bias"], stride=2)
    x = F.gelu(modulate(layer_norm_2d(w, f"{down}1", x), 0))
    x = F.conv2d(x, w[f"{down}3.weight"], w[f"{down}3.bias"], stride=2)
    x = F.gelu(modulate(layer_norm_2d(w, f"{down}4", x), 1))
    return F.conv2d(x, w[f"{down}6.weight"], w[f"{down}6.bias"])


def two_way(w, numbers, queries, keys, key_pe):
    """queries [B, 6, 256], keys and key_pe [B, g * g, 256] -> both after the layers and the last attention (M 4.3)."""
    query_pe = queries

    def attention(name, q, k, v):
        q, k, v = (linear(w, f"{DECODER}transformer.{name}.{x}_proj", y) for x, y in zip("qkv", (q, k, v), strict=True))
        return linear(w, f"{DECODER}transformer.{name}.out_proj", attend(q, k, v, numbers.decoder_heads))

    def norm(name, x):
        return layer_norm(w, f"{DECODER}transformer.{name}", x, 1e-5)

    for i in range(depth_of(w, f"{DECODER}transformer.layers.")):
        at = f"layers.{i}"
        if i == 0:
            queries = attention(f"{at}.self_attn", queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + attention(f"{at}.self_attn", q, q, queries)
        queries = norm(f"{at}.norm1", queries)
        queries = queries + attention(f"{at}.cross_attn_token_to_image", queries + query_pe, keys + key_pe, keys)
        queries = norm(f"{at}.norm2", queries)
        inner = F.relu(linear(w, f"{DECODER}transformer.{at}.mlp.lin1", queries))
        queries = norm(f"{at}.norm3", queries + linear(w, f"{DECODER}transformer.{at}.mlp.lin2", inner))
        keys = keys + attention(f"{at}.cross_attn_image_to_token", keys + key_pe, queries + query_pe, queries)
        keys = norm(f"{at}.norm4", keys)
    queries = queries + attention("final_attn_token_to_image", queries + query_pe, keys + key_pe, keys)
    return norm("norm_final_attn", queries), keys


def mask_decoder(w, numbers, image_embedding, sparse, dense):
    """
    Args:
      image_embedding: [1, 256, g, g], repeated for every row. sparse: [B, n, 256]. dense: [B or 1, 256, g, g].

    Returns:
      (masks [B, 4, 4g, 4g], IoU [B, 4]); PLUM uses number 0 of the four.
    """
    rows, grid = sparse.shape[0], image_embedding.shape[-1]
    tokens = torch.cat([w[f"{DECODER}iou_token.weight"], w[f"{DECODER}mask_tokens.weight"]])
    tokens = torch.cat([tokens[None].expand(rows, -1, -1), sparse], 1)
    image = image_embedding.expand(rows, -1, -1, -1) + dense
    pe = dense_pe(w, grid).expand(rows, -1, -1, -1)
    tokens, keys = two_way(w, numbers, tokens, image.flatten(2).transpose(1, 2), pe.flatten(2).transpose(1, 2))
    up = f"{DECODER}output_upscaling."
    x = keys.transpose(1, 2).reshape(image.shape)
    x = F.conv_transpose2d(x, w[f"{up}0.weight"], w[f"{up}0.bias"], stride=2)
    x = F.gelu(layer_norm_2d(w, f"{up}1", x))
    x = F.gelu(F.conv_transpose2d(x, w[f"{up}3.weight"], w[f"{up}3.bias"], stride=2))

    def mlp(name, x):
        for i in range(3):
            x = linear(w, f"{DECODER}{name}.layers.{i}", F.relu(x) if i else x)
        return x

    hyper = torch.stack([mlp(f"output_hypernetworks_mlps.{i}", tokens[:, 1 + i]) for i in range(4)], 1)
    masks = (hyper @ x.flatten(2)).reshape(rows, 4, *x.shape[-2:])
    return masks, mlp("iou_prediction_head", tokens[:, 0])


def postprocess(low_res, size, resized, original):
    """[n, 1, 4g, 4g] -> float32[n, 1, H, W]: to the padded square of `size`, crop, to the original size (M 4.4)."""
    masks = F.interpolate(low_res.float(), (size, size), mode="bilinear", align_corners=False)
    masks = masks[..., : int(resized[0]), : int(resized[1])]
    return F.interpolate(masks, tuple(int(x) for x in original), mode="bilinear", align_corners=False)
