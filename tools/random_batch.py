"""A random Batch of the shapes that a config gives, which the PyTorch transcription can take too: for timing alone."""

import numpy as np

from plum_jax.batch import Batch, grounded_rows
from plum_jax.errors import UserError

IMAGE_AT = 3  # of the placeholder in every row
WORDS = 32  # that the patch loss knows


def random_batch(config, plum, *, most_spans, seed):
    """Every row: <s>, a word, <im_start>, image, <im_end>, a question; from the middle an answer with 1 to `most_spans` spans.

    Spans have two tokens; the first row has the most. Rows fill three quarters of their places or more.

    Args:
      config: the whole config. plum: PlumConfig.

    Raises:
      UserError: config.data has no room for that.
    """
    data, rng = config.data, np.random.default_rng(seed)
    images, count, length = data.global_batch, data.conversations, data.max_tokens
    spans = min(most_spans, data.max_spans, data.max_masks)
    least = max(3 * length // 4, length // 2 + 3 * spans + 2)
    if least > length or length < 16:
        raise UserError(f"config.data.max_tokens: {length} is too few for {spans} spans; give more, or fewer --spans")
    shape, n, t = (images, count), data.max_spans, np.arange(length)
    valid = rng.integers(least, length + 1, (*shape, 1))
    made = rng.integers(1, spans + 1, (*shape, 1))
    made[0, 0] = spans
    at = t - length // 2  # three places for a span: B, I, O
    in_answer = (at >= 0) & (at // 3 < made)
    bio = np.where(in_answer, np.array([1, 2, 0])[at % 3], 0).astype(np.int8)
    tokens = rng.integers(5, plum.llama.vocab_size - 2, (*shape, length))
    tokens[..., 0], tokens[..., IMAGE_AT - 1], tokens[..., IMAGE_AT + 1] = (
        1,
        plum.llama.vocab_size - 2,
        plum.llama.vocab_size - 1,
    )
    tokens = np.where(t == valid - 1, 2, np.where(t < valid, tokens, 0)).astype(np.int32)
    there = grounded_rows(np.ones(images, bool), data.grounded).size
    with_masks = np.arange(images) % data.grounded[1] < data.grounded[0]
    patches = (plum.clip.image_size // plum.clip.patch) ** 2
    return Batch(
        **_pictures(rng, there, images, plum, data),
        tokens=tokens,
        token_valid=t < valid,
        loss_weight=((t >= length // 2) & (t < valid)).astype(np.float32),
        image_position=np.full(shape, IMAGE_AT, np.int32),
        bio=bio,
        span_of_token=np.where(bio > 0, at // 3 + 1, 0).astype(np.int8),
        span_valid=(np.arange(n) < made) & with_masks[:, None, None],
        span_mask_index=np.broadcast_to(np.minimum(np.arange(n), data.max_masks - 1), (*shape, n)).astype(np.int8),
        sample_id=np.arange(images),
        patch_part=rng.integers(-1, WORDS, (images, patches)).astype(np.int16) if config.loss.patch else None,
    )


def _pictures(rng, there, images, plum, data):
    """Fields of a Batch for `there` images with masks of `images`: pixels, sizes, masks that are rectangles."""
    size, canvas, eye = plum.sam.image_size, np.array(data.canvas), plum.clip.image_size
    original = rng.integers(canvas // 2, canvas + 1, (there, 2))
    corner, side = (rng.integers(1, canvas // 4 + 1, (there, data.max_masks, 2)) for _ in range(2))
    rows, columns = (
        (np.arange(canvas[i]) >= corner[..., i, None]) & (np.arange(canvas[i]) < (corner + side)[..., i, None]) for i in (0, 1)
    )
    return dict(
        sam_pixels=rng.integers(0, 256, (there, size, size, 3), np.uint8),
        clip_pixels=rng.integers(0, 256, (images, eye, eye, 3), np.uint8),
        resized_hw=np.rint(original * size / original.max(1, keepdims=True)).astype(np.int32),
        original_hw=original.astype(np.int32),
        masks=(rows[..., :, None] & columns[..., None, :]).astype(np.uint8),
        mask_valid=np.ones((there, data.max_masks), bool),
    )
