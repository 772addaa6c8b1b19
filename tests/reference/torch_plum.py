"""PLUM in PyTorch as M 1 to 5 and 8.1 write it down: slow and readable, nothing cached, one span after the other.

It shares no code with plum_jax, and the tests compare plum_jax with it. Everything is a function of a dictionary of float32
tensors with the names of published checkpoints: M 9.1 (merged folder), M 9.4 (`vision_model.`), M 9.6 without prefix for
adapters (`model.layers.0.self_attn.q_proj.lora_A.weight`). Sizes come from the tensors. No dropout.
"""

import dataclasses

import torch
import torch.nn.functional as F

from tests.reference import torch_sam
from tests.reference.torch_layers import attend, depth_of, layer_norm, linear, packed_attention

IMAGE, IGNORE, PAD = -200, -100, 0
OUTSIDE, BEGIN, INSIDE = 0, 1, 2
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
BIO = "bio_encoder.encoder.layers.0."
POOLER = "mask_pooler."


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What the shapes of the tensors do not tell."""

    llama_heads: int
    rms_epsilon: float
    rope_theta: float
    lora_scale: float  # alpha / rank
    clip_heads: int
    clip_layers: int  # that run: all but the last of the tower (M 1.3)
    sam_heads: int
    sam_window: int
    sam_global_blocks: tuple
    decoder_heads: int
    bio_heads: int
    pooler_heads: int
    image_start: int  # id of <im_start>; 32000 in published checkpoints
    end: int  # id of </s>


# What the language model sees


def clip_input(pixels):
    """uint8[..., I, I, 3] -> float32[..., 3, I, I] (M 1.3)."""
    return ((torch.as_tensor(pixels).float() / 255 - CLIP_MEAN) / CLIP_STD).movedim(-1, -3)


def clip_states(w, numbers, images):
    """float32[B, 3, I, I] -> states [B, 1 + P, D]: after the embedding, then after each layer that runs (M 1.3)."""
    at = "vision_model.embeddings."
    patch = w[f"{at}patch_embedding.weight"]
    x = F.conv2d(images, patch, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w[f"{at}class_embedding"].expand(len(x), 1, -1), x], 1) + w[f"{at}position_embedding.weight"]
    states = [layer_norm(w, "vision_model.pre_layrnorm", x, 1e-5)]
    for i in range(numbers.clip_layers):
        at, x = f"vision_model.encoder.layers.{i}.", states[-1]
        y = layer_norm(w, f"{at}layer_norm1", x, 1e-5)
        q, k, v = (linear(w, f"{at}self_attn.{n}_proj", y) for n in "qkv")
        x = x + linear(w, f"{at}self_attn.out_proj", attend(q, k, v, numbers.clip_heads))
        y = linear(w, f"{at}mlp.fc1", layer_norm(w, f"{at}layer_norm2", x, 1e-5))
        states.append(x + linear(w, f"{at}mlp.fc2", y * torch.sigmoid(1.702 * y)))
    return states


def clip_features(w, numbers, images):
    """float32[B, 3, I, I] -> [B, P, D]: last state, class token dropped."""
    return clip_states(w, numbers, images)[-1][:, 1:]


def project(w, features):
    """CLIP features [B, P, D'] -> [B, P, D]: one linear layer, or the two of LLaVA-1.5 (M 1.1)."""
    if "model.mm_projector.weight" in w:
        return linear(w, "model.mm_projector", features)
    return linear(w, "model.mm_projector.2", F.gelu(linear(w, "model.mm_projector.0", features)))


def embed(w, ids):
    """int64[T] -> [T, D]. No gradient reaches the row of the padding id, as in the reference."""
    return F.embedding(ids, w["model.embed_tokens.weight"], padding_idx=PAD)


def splice(w, input_ids, labels, attention_mask, features):
    """Image features in place of the placeholder (M 1.10).

    Args:
      input_ids: int64[C, L]. labels: int64[C, L]. attention_mask: bool[C, L]. features: [C, P, D], one entry per row.

    Returns:
      (embeds [C, S, D], labels int64[C, S], mask bool[C, S]), right-padded.
    """
    rows = []
    for ids, row_labels, mask, image in zip(input_ids, labels, attention_mask, features, strict=True):
        at = (ids == IMAGE).nonzero().flatten().tolist()
        if not at:
            rows.append((embed(w, ids), row_labels, mask))
            continue
        (p,) = at
        ignored = torch.full((len(image),), IGNORE)
        embeds = torch.cat([embed(w, ids[:p]), image, embed(w, ids[p + 1 :])])
        more = len(embeds) - len(ids)
        rows.append((
            embeds,
            torch.cat([row_labels[:p], ignored, row_labels[p + 1 :]]),
            torch.cat([torch.ones(more, dtype=torch.bool), mask]),  # on the left, as in the reference
        ))  # fmt: skip
    size = max(len(row[0]) for row in rows)
    return (
        torch.stack([F.pad(e, (0, 0, 0, size - len(e))) for e, _, _ in rows]),
        torch.stack([F.pad(x, (0, size - len(x)), value=IGNORE) for _, x, _ in rows]),
        torch.stack([F.pad(m, (0, size - len(m)), value=False) for _, _, m in rows]),
    )


# The decoder


def rms_norm(w, name, x, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * w[f"{name}.weight"]


def rotate(x, heads, theta):
    """Rotary embedding, rotate-half layout: [B, T, D] -> [B, T, D], positions 0..T-1 (M 1.2)."""
    x = x.reshape(*x.shape[:2], heads, -1)
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1]).float()[:, None] * (1 / theta ** (torch.arange(half).float() / half))
    cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
    return (x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin).flatten(2)


def adapted(w, name, x, scale):
    """W x + scale B A x; without adapter tensors W x (M 7.2)."""
    y = linear(w, name, x)
    if f"{name}.lora_A.weight" not in w:
        return y
    return y + scale * F.linear(F.linear(x, w[f"{name}.lora_A.weight"]), w[f"{name}.lora_B.weight"])


def llama_states(w, numbers, embeds, mask):
    """embeds [B, T, D], mask bool[B, T] -> states [B, T, D]: embeds, every layer, the last one after the final norm (M 2)."""
    count = depth_of(w, "model.layers.")
    causal = torch.ones(embeds.shape[1], embeds.shape[1]).tril().bool()
    allowed = (causal & mask[:, None])[:, None]
    states, x = [embeds], embeds
    for i in range(count):
        at = f"model.layers.{i}."
        y = rms_norm(w, f"{at}input_layernorm", x, numbers.rms_epsilon)
        q, v = (adapted(w, f"{at}self_attn.{n}_proj", y, numbers.lora_scale) for n in "qv")
        k = linear(w, f"{at}self_attn.k_proj", y)
        q, k = (rotate(z, numbers.llama_heads, numbers.rope_theta) for z in (q, k))
        x = x + linear(w, f"{at}self_attn.o_proj", attend(q, k, v, numbers.llama_heads, allowed))
        y = rms_norm(w, f"{at}post_attention_layernorm", x, numbers.rms_epsilon)
        gated = F.silu(linear(w, f"{at}mlp.gate_proj", y)) * linear(w, f"{at}mlp.up_proj", y)
        x = x + linear(w, f"{at}mlp.down_proj", gated)
        states.append(x)
    states[-1] = rms_norm(w, "model.norm", x, numbers.rms_epsilon)
    return states


def without_adapters(w):
    """The same decoder before LoRA: the teacher (M 6.1)."""
    return {name: value for name, value in w.items() if ".lora_" not in name}


# The span extractor


def bio_encoder(w, numbers, x, mask):
    """States [B, T, D], mask bool[B, T] of the keys -> [B, T, D] (M 3.1)."""
    y = packed_attention(w, f"{BIO}self_attn", x, x, numbers.bio_heads, mask[:, None, None])
    x = layer_norm(w, f"{BIO}norm1", x + y, 1e-5)
    y = linear(w, f"{BIO}linear2", F.relu(linear(w, f"{BIO}linear1", x)))
    return layer_norm(w, f"{BIO}norm2", x + y, 1e-5)


def two_linear(w, name, x):
    return linear(w, f"model.{name}.0.2", F.relu(linear(w, f"model.{name}.0.0", x)))


def tag_logits(w, numbers, hidden, mask, bidirectional=True):
    """[B, T, D] -> [B, T, 3] (M 3.2)."""
    return two_linear(w, "token_to_mask_fcs", bio_encoder(w, numbers, hidden, mask) if bidirectional else hidden)


def span_features(w, hidden):
    """[..., D] -> [..., 256]; a span's embedding is the mean of it over the tokens of the span (M 3.3)."""
    return two_linear(w, "text_hidden_fcs", hidden)


def predicted_spans(labels):
    """BIO labels int[T] -> [(start, end)] (M 3.3)."""
    spans, start = [], None
    for t, label in enumerate(labels.tolist()):
        if label == INSIDE:
            continue
        if start is not None:
            spans.append((start, t))
        start = t if label == BEGIN else None
    return spans if start is None else [*spans, (start, len(labels))]


def labelled_spans(labels, starts):
    """BIO labels int[T] and the positions of the B's -> [(start, end)] (M 3.4)."""
    spans = []
    for start in starts:
        assert labels[start] == BEGIN
        end = start + 1
        while end < len(labels) and labels[end] == INSIDE:
            end += 1
        spans.append((start, end))
    return spans


# Masks, each seeing those before it


def pool(w, numbers, masks, embeds, grid):
    """Past masks [4g, 4g] and span embeddings [256], two lists -> dense prompt [1, 256, g, g] (M 5.2)."""
    if not masks:
        return torch_sam.no_mask(w, grid)
    embeds = torch.stack(embeds)

    def film(x, block):
        scale, shift = linear(w, f"{POOLER}mask_modulator.projections.{block}", embeds)[..., None, None].chunk(2, 1)
        return x * (1 + scale) + shift

    x = torch_sam.mask_prompt(w, torch.stack(masks)[:, None], film) + torch_sam.dense_pe(w, grid)
    keys = x.flatten(2).permute(2, 0, 1)  # a batch of g * g locations with n keys each
    out = packed_attention(w, f"{POOLER}attn", w[f"{POOLER}queries"], keys, numbers.pooler_heads)
    return out[:, 0].T.reshape(1, -1, grid, grid)


def decode_spans(w, numbers, image_embedding, embeds, feedback=True):
    """The masks of one conversation, in the order of the text (M 5.1).

    Args:
      image_embedding: [1, 256, g, g]. embeds: list of [256].

    Returns:
      (list of low-resolution logits [4g, 4g], list of predicted IoU []).
    """
    masks, ious, grid = [], [], image_embedding.shape[-1]
    for i, embed in enumerate(embeds):
        past = (masks, embeds[:i]) if feedback else ([], [])
        dense = pool(w, numbers, *past, grid)
        low_res, iou = torch_sam.mask_decoder(w, numbers, image_embedding, embed[None, None], dense)
        masks.append(low_res[0, 0])
        ious.append(iou[0, 0])
    return masks, ious


def at_original_size(w, low_res, resized, original):
    """List of [4g, 4g] -> list of float32[H, W]."""
    size = torch_sam.image_size(w)
    return [torch_sam.postprocess(x[None, None], size, resized, original)[0, 0] for x in low_res]


# Inference (M 8.1)


def read_masks(w, numbers, hidden, spans, image, resized, original, feedback):
    """hidden [T, D] of one row, spans in its positions, image float32[1, 3, S, S] -> dictionary of embeddings and masks."""
    embeds = [span_features(w, hidden[start:end]).mean(0) for start, end in spans]
    embedding, _ = torch_sam.image_encoder(w, numbers, image)
    low_res, ious = decode_spans(w, numbers, embedding, embeds, feedback)
    masks = at_original_size(w, low_res, resized, original)
    return dict(spans=spans, embeddings=embeds, low_res=low_res, iou=ious, masks=masks)


@torch.no_grad()
def choose(w, numbers, image_clip, image, input_ids, attention_mask, resized, original, bio=None, feedback=True):
    """Multiple choice: every row of input_ids int64[C, L] is one choice about one image.

    Args:
      image_clip: float32[1, 3, I, I]. image: float32[1, 3, S, S]. attention_mask: bool[C, L].
      bio: int64[C, L] labels before splicing that replace the predicted ones, or None.

    Returns:
      Dictionary: scores float32[C] (lower is better), hidden, tag_logits, rows: what `read_masks` returns of each.
    """
    rows = len(input_ids)
    features = project(w, clip_features(w, numbers, image_clip)).expand(rows, -1, -1)
    labels = input_ids.masked_fill(input_ids == PAD, IGNORE)
    embeds, labels, mask = splice(w, input_ids, labels, attention_mask, features)
    hidden = llama_states(w, numbers, embeds, mask)[-1]
    logs = linear(w, "lm_head", hidden[:, :-1]).log_softmax(-1)
    counted = labels[:, 1:] != IGNORE
    nll = -logs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    scores = (nll * counted).sum(-1) / counted.sum(-1).clamp(min=1)
    tags = tag_logits(w, numbers, hidden, mask)
    offset = hidden.shape[1] - input_ids.shape[1]
    found = tags.argmax(-1) if bio is None else F.pad(bio, (offset, 0))
    read = [
        read_masks(w, numbers, states, predicted_spans(found_row), image, resized, original, feedback)
        for states, found_row in zip(hidden, found, strict=True)
    ]
    return dict(scores=scores, hidden=hidden, tag_logits=tags, rows=read)


@torch.no_grad()
def generate(w, numbers, image_clip, image, input_ids, limit, resized, original, feedback=True, state_of_last=False):
    """Greedy decoding of one prompt int64[L], the whole sequence again for every token, then its spans and masks.

    Args:
      state_of_last: True runs the last generated token too and tags it; the reference has no state for it (M D25).

    Returns:
      Dictionary: output_ids int64[n], step_logits [n, V], hidden [T, D], tag_logits [T, 3], and what `read_masks` returns
      for the spans predicted anywhere in the T positions; without masks for a prompt without image.
    """
    features = project(w, clip_features(w, numbers, image_clip))
    ids, step_logits = input_ids, []

    def states():
        ones = torch.ones(1, len(ids), dtype=torch.bool)
        embeds, _, mask = splice(w, ids[None], ids[None], ones, features)
        return llama_states(w, numbers, embeds, mask)[-1]

    while len(step_logits) < limit and (not step_logits or ids[-1] != numbers.end):
        hidden = states()
        step_logits.append(linear(w, "lm_head", hidden[0, -1]))
        ids = torch.cat([ids, step_logits[-1].argmax()[None]])
    if state_of_last:
        hidden = states()
    tags = tag_logits(w, numbers, hidden, torch.ones(hidden.shape[:2], dtype=torch.bool))[0]
    spans = predicted_spans(tags.argmax(-1))
    read = dict(
        spans=spans, embeddings=[span_features(w, hidden[0, a:b]).mean(0) for a, b in spans], low_res=[], iou=[], masks=[]
    )
    if numbers.image_start in input_ids.tolist():
        read = read_masks(w, numbers, hidden[0], spans, image, resized, original, feedback)
    output_ids = ids[len(input_ids) :]
    return dict(output_ids=output_ids, step_logits=torch.stack(step_logits), hidden=hidden[0], tag_logits=tags, **read)
