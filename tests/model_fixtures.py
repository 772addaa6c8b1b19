"""A configuration that compiles in seconds, and random batches for it: what the tests of the model and of training share."""

import functools

import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from plum_jax.batch import Batch
from plum_jax.models.plum import PlumConfig, build

PARTS = np.array([[5, -1], [6, 7], [8, -1], [9, 10]], np.int32)  # token ids of the background word and of three parts


def small_config(**model):
    """The fields of configs/tiny.py at the smallest sizes with distinct axes; `model` overrides entries of config.model."""
    config = ml_collections.ConfigDict()
    config.model = dict(
        dtype="float32",
        llama=dict(
            vocab_size=60, width=16, depth=2, heads=2, mlp=24, rope_theta=10000.0, epsilon=1e-5, lora_rank=2, lora_alpha=4.0,
            lora_dropout=0.0, vocab_multiple=16,
        ),
        clip=dict(image_size=12, patch=4, width=8, depth=1, heads=2, mlp=16, epsilon=1e-5),
        sam=dict(
            image_size=32, patch=8, width=8, depth=2, heads=2, mlp=16, window=3, global_blocks=(1,), epsilon=1e-6, out_width=16
        ),
        decoder=dict(depth=2, heads=2, mlp=16, attention_downsample=2, mask_channels=8, pe_dtype="float32"),
        tagger=dict(heads=2, mlp=24, epsilon=1e-5, dropout=0.0),
        feedback=True,
        feedback_heads=2,
        remat="none",
    )  # fmt: skip
    config.trainable = ".*"
    config.loss = dict(
        language=1.0, tag=0.5, tag_class_weights=(0.1, 1.0, 1.0), tag_positions="text", reference=0.0,
        shape="dice", shape_weight=1.0, dice_scale=1000.0, tversky_alpha=0.7, tversky_beta=0.3, tversky_gamma=0.75,
        bce=2.0, patch=0.5,
    )  # fmt: skip
    config.optim = dict(
        name="adamw", lr=1e-2, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.0, warmup_steps=2, decay="cosine",
        final_lr=0.1, clip_norm=1.0,
    )  # fmt: skip
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.data = dict(grounded=(1, 1), micro_batches=1)
    config.model.update(model)
    return config


@functools.cache
def small_model(*, adapters=False):
    """-> (PlumConfig, graph definition, parameters) of `small_config()`."""
    config = PlumConfig.from_dict(small_config().model)
    graphdef, shapes = build(config)
    return config, graphdef, random_params(shapes, adapters=adapters)


def random_params(shapes, seed=0, *, adapters=False):
    """Nested dictionary of shapes -> float32 NumPy arrays without a neutral value, which would hide a forgotten parameter.

    Norm gains and biases are off 1 and 0; adapters stay zero, as they start, unless `adapters`. NumPy, because compiling
    the model's own initialisation takes longer than most tests.
    """
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        noise = rng.standard_normal(shape).astype(np.float32)
        if path.endswith("kernel") or "lora_" in path:
            return noise / shape[-2] ** 0.5 * (adapters or "lora_b" not in path)
        return 1 + 0.1 * noise if path.endswith("scale") else 0.3 * noise

    flat = flatten_dict(shapes, sep="/")
    return unflatten_dict({path: draw(path, flat[path].shape) for path in sorted(flat)}, sep="/")


def random_batch(config, seed=0, *, images=2, conversations=2, length=12, spans=3, masks=3, canvas=(20, 24), text_only=()):
    """A consistent Batch of random content: non-square images, rows of different lengths, answers with 0 to `spans` spans.

    Row `(0, 0)` has the largest number of spans and `(images - 1, 0)` none. `text_only`: (image, conversation) rows without
    a placeholder.
    """
    rng = np.random.default_rng(seed)
    size, clip = config.model.sam.image_size, config.model.clip
    grounded = images * config.data.grounded[0] // config.data.grounded[1]
    rows = [[_row(rng, config, i, c, images, length, spans, masks, (i, c) not in text_only) for c in range(conversations)]
            for i in range(images)]  # fmt: skip
    stacked = {k: np.stack([np.stack([row[k] for row in image]) for image in rows]) for k in rows[0][0]}
    original = np.stack(
        [rng.integers(canvas[0] // 2, canvas[0] + 1, grounded), rng.integers(canvas[1] // 2, canvas[1] + 1, grounded)], 1
    )
    resized = np.rint(original * size / original.max(1, keepdims=True))
    return Batch(
        sam_pixels=rng.integers(0, 256, (grounded, size, size, 3)).astype(np.uint8),
        clip_pixels=rng.integers(0, 256, (images, clip.image_size, clip.image_size, 3)).astype(np.uint8),
        resized_hw=resized.astype(np.int32),
        original_hw=original.astype(np.int32),
        **stacked,
        masks=_rectangles(rng, (grounded, masks), canvas),
        mask_valid=np.ones((grounded, masks), bool),
        sample_id=np.arange(images),
        patch_part=rng.integers(-1, len(PARTS), (images, (clip.image_size // clip.patch) ** 2)).astype(np.int16),
    )


def _rectangles(rng, leading, canvas):
    """uint8[*leading, Hc, Wc]: a filled rectangle in the upper left half, which every image has."""
    corner, side = (rng.integers(low, high, (2, *leading, 1)) for low, high in ((0, 4), (3, 8)))
    rows, columns = ((np.arange(n) >= corner[i]) & (np.arange(n) < corner[i] + side[i]) for i, n in enumerate(canvas))
    return (rows[..., :, None] & columns[..., None, :]).astype(np.uint8)


def _row(rng, config, image, conversation, images, length, spans, masks, has_image):
    """One conversation: prompt with the placeholder at 2, answer from 5 with spans of 1 or 2 tokens, then padding."""
    valid = length if (image, conversation) == (0, 0) else int(rng.integers(length - 3, length + 1))
    tokens = np.zeros(length, np.int32)
    tokens[:valid] = rng.integers(1, config.model.llama.vocab_size, valid)
    bio, owner = np.zeros((2, length), np.int8)
    wanted = spans if (image, conversation) == (0, 0) else int(rng.integers(0, spans + 1))
    n, m = config.data.grounded
    wanted = wanted if image % m < n and (image, conversation) != (images - 1, 0) else 0
    start, made = 5, 0
    while made < wanted and start + 2 <= valid:
        width = int(rng.integers(1, 3))
        bio[start], bio[start + 1 : start + width] = 1, 2
        owner[start : start + width] = made + 1
        start, made = start + width + int(rng.integers(0, 2)), made + 1
    return dict(
        tokens=tokens,
        token_valid=np.arange(length) < valid,
        loss_weight=((np.arange(length) >= 5) & (np.arange(length) < valid)).astype(np.float32),
        image_position=np.int32(2 if has_image else -1),
        bio=bio,
        span_of_token=owner,
        span_valid=np.arange(spans) < made,
        span_mask_index=np.where(np.arange(spans) < made, rng.permutation(masks)[:spans], 0).astype(np.int8),
    )


def micro(batch, parts=1):
    """Batch [B, ...] -> [parts, B / parts, ...], the form that the training step takes."""
    return Batch(*(None if x is None else x.reshape(parts, -1, *x.shape[1:]) for x in batch))
