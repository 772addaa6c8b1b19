"""The PyTorch transcription of the reference (tests/reference) as what benchmarks compare with: masks, and a training step.

It follows the loops of the reference: an image and a span at a time, earlier masks encoded again for each span. It runs on a
CPU in float32, from a checkout, with the weights of ours.
"""

import re

import numpy as np
from flax.traverse_util import flatten_dict

from plum_jax.convert.keys import rules
from tools.torch_peers import NoPeer

IMAGE_AT = 3  # of the placeholder in a row of `random_batch`


def check(torch):
    """NoPeer where the transcription cannot run. torch: torch_peers.Torch."""
    if torch.device != "cpu" or torch.dtype != torch.torch.float32:
        raise NoPeer("the transcription of the reference runs on a CPU in float32 only")
    try:
        import tests.reference.torch_plum  # noqa: F401
    except ImportError as error:
        raise NoPeer(f"the transcription of the reference is in tests/reference of a checkout ({error})") from error


def tensors(torch, config, params):
    """Nested dictionary of parameters, of all of Plum or of some parts -> {PyTorch name: float32 tensor}."""
    from tests.reference.published_names import tensors_of

    flat = {path: np.asarray(x, np.float32) for path, x in flatten_dict(params, sep="/").items()}
    return {name: torch.torch.from_numpy(x) for name, x in tensors_of(config, flat, tuple(params)).items()}


def masks(config, params, images, embeds, torch):
    """-> function that decodes all spans of all rows with feedback -> [rows, spans, 4g, 4g], as `feedback.decode_spans` does.

    Args:
      params: of prompt_encoder, mask_decoder and feedback. images: [R, g, g, W]. embeds: [R, N, W]. torch: torch_peers.Torch.
    """
    check(torch)
    from tests.reference.published_names import numbers
    from tests.reference.torch_plum import decode_spans

    lib, w = torch.torch, tensors(torch, config, params)
    images, embeds = (lib.from_numpy(np.array(x)) for x in (images, embeds))
    images = images.permute(0, 3, 1, 2)

    def run():
        with lib.inference_mode():
            rows = (
                decode_spans(w, numbers(config), image[None], list(row))[0] for image, row in zip(images, embeds, strict=True)
            )
            return lib.stack([lib.stack(row) for row in rows])

    return run


def train_step(config, plum, params, batch, torch):
    """-> function that makes one update with AdamW and returns the loss before it.

    Args:
      config: the whole config, with the losses and the optimizer that the transcription has (bench_train.comparable).
      plum: PlumConfig. params: all parameters. batch: Batch of one conversation for each image, every row with an image.
    """
    check(torch)
    from tests.reference import torch_losses
    from tests.reference.published_names import numbers
    from tests.reference.torch_plum import without_adapters

    lib, c = torch.torch, config
    w = tensors(torch, plum, params)
    trained = {
        name for rule in rules(plum) if re.search(c.trainable, rule.path) and "gaussian" not in rule.path
        for _, name in rule.items()
    }  # fmt: skip
    for name in trained:
        w[name].requires_grad_(True)
    optimizer = lib.optim.AdamW(
        [w[name] for name in sorted(trained)], lr=c.optim.lr, betas=(c.optim.beta1, c.optim.beta2), eps=c.optim.epsilon,
        weight_decay=c.optim.weight_decay,
    )  # fmt: skip
    switches = torch_losses.Switches(
        shape=c.loss.shape, class_weights=tuple(c.loss.tag_class_weights), feedback=plum.feedback, tag_weight=c.loss.tag,
        reference_weight=c.loss.reference, shape_weight=c.loss.shape_weight, bce_weight=c.loss.bce, alpha=c.loss.tversky_alpha,
        dice_scale=c.loss.dice_scale, beta=c.loss.tversky_beta, gamma=c.loss.tversky_gamma,
        bidirectional=plum.tagger.bidirectional,
    )  # fmt: skip
    inputs = layout(batch, plum, config.data.grounded, torch)

    def run():
        optimizer.zero_grad(set_to_none=True)
        teacher = without_adapters(w) if c.loss.reference else None
        loss = torch_losses.train_forward(w, numbers(plum), inputs, switches, teacher)["loss"]
        loss.backward()
        if c.optim.clip_norm:
            lib.nn.utils.clip_grad_norm_([w[name] for name in trained], c.optim.clip_norm)
        optimizer.step()
        return loss.item()

    return run


def layout(batch, plum, grounded, torch):
    """Batch with C = 1 -> what `torch_losses.train_forward` takes."""
    from tests.reference import torch_plum, torch_sam

    lib, (n, m) = torch.torch, grounded
    images = len(batch.tokens)
    slot = {i: i // m * n + i % m for i in range(images) if i % m < n}  # image -> its place among those with masks
    blank = lib.zeros(3, *batch.sam_pixels.shape[1:3])
    ids = np.where(np.arange(batch.tokens.shape[-1]) == batch.image_position, -200, batch.tokens[:, 0]).astype(np.int64)
    bio = batch.bio[:, 0].astype(np.int64)
    resize, original = (np.ones((images, 2), np.int64) for _ in range(2))
    masks = [lib.zeros(0, 1, 1, dtype=lib.uint8)] * images
    for i, at in slot.items():
        resize[i], original[i] = batch.resized_hw[at], batch.original_hw[at]
        masks[i] = lib.from_numpy(batch.masks[at, :, : original[i, 0], : original[i, 1]].copy())
    return dict(
        images=lib.stack([
            torch_sam.sam_input(batch.sam_pixels[slot[i]], resize[i]) if i in slot else blank for i in range(images)
        ]),
        images_clip=torch_plum.clip_input(batch.clip_pixels), input_ids=lib.from_numpy(ids),
        labels=lib.from_numpy(np.where(batch.loss_weight[:, 0] > 0, batch.tokens[:, 0], torch_plum.IGNORE).astype(np.int64)),
        attention_masks=lib.from_numpy(batch.token_valid[:, 0]), per_token_labels=lib.from_numpy(bio),
        offset=np.arange(images + 1), mask_positions=[np.flatnonzero(row == 1).tolist() for row in bio], gt_masks=masks,
        resize=resize, original_size=original,
    )  # fmt: skip
