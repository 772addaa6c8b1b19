"""The losses of M 6 and the training forward over a batch, in PyTorch; differentiable in every tensor."""

import dataclasses

import torch
import torch.nn.functional as F

from tests.reference import torch_plum, torch_sam
from tests.reference.torch_layers import linear
from tests.reference.torch_plum import IGNORE

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Switches:
    """Variants of the objective. Defaults are the weights of the merge script (M 6)."""

    shape: str = "dice"  # or "focal_tversky"
    class_weights: tuple | None = (0.1, 1.0, 1.0)
    feedback: bool = True
    bidirectional: bool = True
    tag_weight: float = 8.0
    reference_weight: float = 0.1
    shape_weight: float = 8.0
    bce_weight: float = 2.0
    dice_scale: float = 1000.0
    alpha: float = 0.7
    beta: float = 0.3
    gamma: float = 0.75


def language_loss(logits, labels):
    """[C, S, V], int64[C, S] -> mean over supervised positions, shifted by one."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)


def tag_loss(logits, labels, class_weights):
    """[C, S, 3], int64[C, S] -> over all positions of the rows with a label; 0 without such a row."""
    kept = (labels > 0).any(-1)
    if not kept.any():
        return logits.sum() * 0
    weight = None if class_weights is None else torch.tensor(class_weights)
    return F.cross_entropy(logits[kept].flatten(0, 1), labels[kept].flatten(), weight)


def shape_loss(z, t, s):
    """Logits and target [H, W] -> Dice or focal Tversky."""
    p, one = z.sigmoid(), 1 + 1e-8  # num_masks is 1 in every call
    if s.shape == "dice":
        overlap = 2 * (p / s.dice_scale * t).sum()
        total = (p / s.dice_scale).sum() + (t / s.dice_scale).sum()
        return (1 - (overlap + EPSILON) / (total + EPSILON)) / one
    hit, missed, extra = (p * t).sum(), ((1 - p) * t).sum(), (p * (1 - t)).sum()
    index = (hit + EPSILON) / (hit + s.alpha * missed + s.beta * extra + EPSILON)
    return (1 - index) ** s.gamma / one


def bce_loss(z, t):
    return F.binary_cross_entropy_with_logits(z, t) / (1 + 1e-8)


def reference_loss(hidden, teacher):
    """Of one span: half the mean squared distance of its states [n, D] to the teacher's."""
    return 0.5 * (hidden - teacher).pow(2).mean()


def target_of(image_rows, masks, row_in_image, rank):
    """Which mask a span owns: the row's where there is one mask per conversation, else the one of its rank (M 6)."""
    return masks[row_in_image] if image_rows == len(masks) else masks[rank]


def train_forward(w, numbers, batch, switches, teacher=None):
    """Losses of one micro-batch.

    Args:
      batch: images float32[B, 3, S, S], images_clip float32[B, 3, I, I], input_ids, labels, attention_masks,
        per_token_labels [C, L], offset [B + 1], mask_positions: C lists of the positions of B before splicing,
        gt_masks: B tensors [M, H, W], resize and original_size int[B, 2].
      teacher: tensors of the reference decoder (`model.layers.`, `model.norm`), or None. It sees the student's embeddings.

    Returns:
      Dictionary with the losses and everything on the way; lists per span are in decoding order.
    """
    offset = [int(x) for x in batch["offset"]]
    counts = torch.tensor([b - a for a, b in zip(offset, offset[1:], strict=False)])
    features = torch_plum.project(w, torch_plum.clip_features(w, numbers, batch["images_clip"]))
    features = features.repeat_interleave(counts, 0)
    ids = batch["input_ids"]
    embeds, labels, mask = torch_plum.splice(w, ids, batch["labels"], batch["attention_masks"], features)
    states = torch_plum.llama_states(w, numbers, embeds, mask)
    hidden, logits = states[-1], linear(w, "lm_head", states[-1])
    shift = features.shape[1] - 1 if (ids == numbers.image_start).any() else 0  # one switch for the batch (M 1.9)
    bio = F.pad(batch["per_token_labels"], (shift, 0))
    tags = torch_plum.tag_logits(w, numbers, hidden, mask, switches.bidirectional)
    out = dict(embeds=embeds, mask=mask, states=states, logits=logits, tag_logits=tags, bio=bio)
    out["ce_loss"] = language_loss(logits, labels)
    out["seg_cls_loss"] = tag_loss(tags, bio, switches.class_weights)
    base = None
    if teacher is not None:
        with torch.no_grad():
            base = torch_plum.llama_states(teacher, numbers, embeds, mask)[-1]
    out.update(span_losses(w, numbers, batch, switches, hidden, base, bio, shift))
    out["loss"] = (
        out["ce_loss"]
        + switches.tag_weight * out["seg_cls_loss"]
        + switches.reference_weight * out["kl_loss"]
        + switches.shape_weight * out["mask_dice_loss"]
        + switches.bce_weight * out["mask_bce_loss"]
    )
    return out


def span_losses(w, numbers, batch, switches, hidden, base, bio, shift):
    """Every span of the batch: its embedding, its mask, its losses; the three losses are means over all spans (M 6)."""
    zero = hidden.sum() * 0
    sums = dict(kl_loss=zero, mask_dice_loss=zero, mask_bce_loss=zero)
    found = dict(span_embeds=[], low_res=[], iou=[], masks=[], targets=[])
    features = torch_plum.span_features(w, hidden)
    for image, masks in enumerate(batch["gt_masks"]):
        rows = range(int(batch["offset"][image]), int(batch["offset"][image + 1]))
        if not len(masks):
            continue
        embedding, _ = torch_sam.image_encoder(w, numbers, batch["images"][image : image + 1])
        for row in rows:
            spans = torch_plum.labelled_spans(bio[row], [p + shift for p in batch["mask_positions"][row]])
            embeds = [features[row, a:b].mean(0) for a, b in spans]
            low_res, iou = torch_plum.decode_spans(w, numbers, embedding, embeds, switches.feedback)
            logits = torch_plum.at_original_size(w, low_res, batch["resize"][image], batch["original_size"][image])
            for rank, ((a, b), z) in enumerate(zip(spans, logits, strict=True)):
                target = target_of(len(rows), masks, row - rows[0], rank).float()
                sums["mask_dice_loss"] = sums["mask_dice_loss"] + shape_loss(z, target, switches)
                sums["mask_bce_loss"] = sums["mask_bce_loss"] + bce_loss(z, target)
                if base is not None:
                    sums["kl_loss"] = sums["kl_loss"] + reference_loss(hidden[row, a:b], base[row, a:b])
                found["targets"].append(target)
            for name, values in zip(("span_embeds", "low_res", "iou", "masks"), (embeds, low_res, iou, logits), strict=True):
                found[name] += values
    count = max(len(found["masks"]), 1)
    return {name: value / count for name, value in sums.items()} | found
