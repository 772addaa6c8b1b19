"""Random batches in two layouts, that of the PyTorch transcription and our `Batch`, for the config of torch_fixtures.py."""

import numpy as np

from plum_jax.batch import Batch
from plum_jax.models.plum import PlumConfig

KINDS = {  # per image: (masks, spans of each conversation)
    "one mask per conversation": [(3, [1, 2, 1]), (2, [1, 1])],
    "one conversation, many parts": [(6, [6]), (2, [2])],
    "text": [(0, [0, 0]), (0, [0])],
    "mixed": [(0, [0, 0]), (4, [4])],
}
SHAPE = dict(conversations=3, length=26, spans=6, masks=6, canvas=(26, 30))
IMAGE_AT = 3


def random_batches(config, kind, seed=0):
    """A batch of `kind` -> (NumPy dictionary in the layout of the transcription, Batch). One shape for all kinds."""
    rng, plan = np.random.default_rng(seed), KINDS[kind]
    plum = PlumConfig.from_dict(config.model)
    length, canvas = SHAPE["length"], SHAPE["canvas"]
    rows = [[_row(rng, plum, count, length) for count in spans] for _, spans in plan]
    flat = [row for image in rows for row in image]
    original = np.stack([rng.integers(canvas[0] // 2, canvas[0] + 1, 2), rng.integers(canvas[1] // 2, canvas[1] + 1, 2)], 1)
    resized = np.rint(original * plum.sam.image_size / original.max(1, keepdims=True)).astype(np.int32)
    masks = [(rng.random((count, *hw)) < 0.3).astype(np.uint8) for (count, _), hw in zip(plan, original, strict=True)]
    pixels = dict(
        sam=rng.integers(0, 256, (2, plum.sam.image_size, plum.sam.image_size, 3)).astype(np.uint8),
        clip=rng.integers(0, 256, (2, plum.clip.image_size, plum.clip.image_size, 3)).astype(np.uint8),
    )
    theirs = dict(
        pixels,
        offset=np.cumsum([0] + [len(image) for image in rows]),
        mask_positions=[np.flatnonzero(row["bio"] == 1).tolist() for row in flat],
        gt_masks=masks,
        resize=resized,
        original_size=original,
        **{name: np.stack([row[name] for row in flat]) for name in ("input_ids", "labels", "attention_masks", "bio")},
    )
    return theirs, _ours(plan, rows, masks, resized, original, pixels)


def _row(rng, plum, spans, length):
    """One conversation: <s>, word, <im_start>, image, <im_end>, question, answer with spans of 1 or 2 tokens, </s>, padding."""
    vocab = plum.llama.vocab_size
    valid = length - int(rng.integers(0, 4))
    ids = rng.integers(3, vocab - 2, length)
    ids[0], ids[2], ids[IMAGE_AT], ids[4], ids[valid - 1], ids[valid:] = 1, vocab - 2, -200, vocab - 1, 2, 0
    bio, t = np.zeros(length, np.int64), 7
    for _ in range(spans):
        width = int(rng.integers(1, 3))
        bio[t : t + width] = [1, 2][:width]
        t += width + int(rng.integers(0, 2))
    supervised = (np.arange(length) >= 6) & (np.arange(length) < valid)
    return dict(input_ids=ids, labels=np.where(supervised, ids, -100), attention_masks=ids != 0, bio=bio)


def _ours(plan, rows, masks, resized, original, pixels):
    """The same content as a Batch: conversations in slots, spans with the mask that they own."""
    count, length, spans, most = (SHAPE[name] for name in ("conversations", "length", "spans", "masks"))
    zeros = lambda *shape, dtype=np.int32: np.zeros((2, count, *shape), dtype)  # noqa: E731
    out = dict(
        tokens=zeros(length), token_valid=zeros(length, dtype=bool), loss_weight=zeros(length, dtype=np.float32),
        image_position=zeros() - 1, bio=zeros(length, dtype=np.int8), span_of_token=zeros(length, dtype=np.int8),
        span_valid=zeros(spans, dtype=bool), span_mask_index=zeros(spans, dtype=np.int8),
    )  # fmt: skip
    canvas = np.zeros((2, most, *SHAPE["canvas"]), np.uint8)
    for i, image in enumerate(rows):
        have = plan[i][0]
        canvas[i, :have, : original[i, 0], : original[i, 1]] = masks[i]
        for c, row in enumerate(image):
            found = int((row["bio"] == 1).sum())
            out["tokens"][i, c] = np.maximum(row["input_ids"], 0)
            out["token_valid"][i, c], out["loss_weight"][i, c] = row["attention_masks"], row["labels"] != -100
            out["image_position"][i, c], out["bio"][i, c] = IMAGE_AT, row["bio"]
            out["span_of_token"][i, c] = np.cumsum(row["bio"] == 1) * (row["bio"] > 0)
            out["span_valid"][i, c, :found] = True
            out["span_mask_index"][i, c, :found] = c if len(image) == have else np.arange(found)
    return Batch(
        sam_pixels=pixels["sam"],
        clip_pixels=pixels["clip"],
        resized_hw=resized,
        original_hw=original.astype(np.int32),
        **out,
        masks=canvas,
        mask_valid=np.arange(most) < np.array([have for have, _ in plan])[:, None],
        sample_id=np.arange(2),
    )


def torch_batch(theirs):
    """NumPy dictionary of `random_batches` -> what `torch_losses.train_forward` takes."""
    import torch

    from tests.reference import torch_plum, torch_sam

    images = [torch_sam.sam_input(pixels, hw) for pixels, hw in zip(theirs["sam"], theirs["resize"], strict=True)]
    return dict(
        theirs,
        images=torch.stack(images),
        images_clip=torch_plum.clip_input(theirs["clip"]),
        input_ids=torch.from_numpy(theirs["input_ids"]),
        labels=torch.from_numpy(theirs["labels"]),
        attention_masks=torch.from_numpy(theirs["attention_masks"]),
        per_token_labels=torch.from_numpy(theirs["bio"]),
        gt_masks=[torch.from_numpy(x) for x in theirs["gt_masks"]],
    )
