"""The training objective: one batch through the model, every loss as (sum, weight), divided by the weights of the step."""

import jax
import jax.numpy as jnp

from plum_jax import losses
from plum_jax.batch import grounded_rows
from plum_jax.errors import UserError
from plum_jax.models.plum import bind, take_positions
from plum_jax.params import merge
from plum_jax.resize import to_original
from plum_jax.spans import pool_spans, slots_of
from plum_jax.switches import switch


def make_loss(graphdef, config, part_tokens=None):
    """Build the two functions that `make_train_step` takes.

    Args:
      graphdef: of Plum.
      config: the whole configuration; `config.loss` holds weights and variants.
      part_tokens: int[1 + parts, L], token ids of the word for background and of every part name, padded with -1; only
        the patch loss reads it.

    Returns:
      loss_fn(params, frozen, batch, totals, key) -> (loss, {name: (sum, weight)}) and count(batches) -> totals.
    """
    weights = {
        "language": config.loss.language,
        "tag": config.loss.tag,
        "reference": config.loss.reference,
        "shape": config.loss.shape_weight,
        "bce": config.loss.bce,
        "patch": config.loss.patch,
    }
    if config.loss.shape not in ("dice", "focal_tversky"):
        raise UserError(f"config.loss.shape: {config.loss.shape!r} is not known; use 'dice' or 'focal_tversky'")
    switch(config.loss, "loss.tag_positions")
    per_micro_batch = switch(config.loss, "loss.average") == "micro_batch"

    def loss_fn(params, frozen, batch, totals, key):
        model = bind(graphdef, merge(params, frozen))
        terms, metrics = forward(model, batch, config, part_tokens, key)
        if per_micro_batch:  # the reference's average (M D58): every micro-batch counts alike, however few its tokens
            own = _counts(batch, config, model.num_image_tokens)
            totals = {name: own[name] * config.data.micro_batches for name in own}
        loss = jnp.zeros((), jnp.float32)
        for name, (total, _) in terms.items():
            loss += weights[name] * total / jnp.where(totals[name] > 0, totals[name], 1)
        return loss, {**terms, **metrics, "loss": (loss, jnp.float32(1 / config.data.micro_batches))}

    def count(batches):
        image_tokens = (config.model.clip.image_size // config.model.clip.patch) ** 2
        per_micro = jax.vmap(lambda batch: _counts(batch, config, image_tokens))(batches)
        return jax.tree.map(jnp.sum, per_micro)

    return loss_fn, count


def forward(model, batch, config, part_tokens, key):
    """Batch -> ({loss name: (sum, weight)}, {metric name: (sum, weight)}). Losses with weight 0 are not computed."""
    loss_config, count = config.loss, batch.tokens.shape[1]
    key_lora, key_tagger = (None, None) if key is None else jax.random.split(key)
    tokens, token_valid, image_position, bio = (
        x.reshape(-1, *x.shape[2:]) for x in (batch.tokens, batch.token_valid, batch.image_position, batch.bio)
    )
    image_tokens = model.image_tokens(batch.clip_pixels)
    embeds, position = model.embed(tokens, image_position, jnp.repeat(image_tokens, count, 0))
    lengths = model.spliced_lengths(token_valid, image_position)
    hidden = model.hidden(embeds, lengths, key=key_lora)
    terms, metrics = {}, {}

    before = take_positions(hidden, jnp.maximum(position - 1, 0))  # the state that predicts each token
    loss_weight = batch.loss_weight.reshape(tokens.shape)
    logits = model.logits(before)
    terms["language"] = losses.language_loss(logits, tokens, loss_weight, model.config.logits_dtype)

    if model.config.seg_token is None:
        valid = jnp.arange(hidden.shape[1]) < lengths[:, None]
        tag_logits = model.tag_logits(hidden, valid, key=key_tagger)
        terms["tag"], metrics["tag_accuracy"] = _tag_terms(model, tag_logits, bio, token_valid, position, loss_config)
    else:
        metrics["seg_accuracy"] = _seg_accuracy(logits, tokens, token_valid, model.config.seg_token)

    slots = jax.vmap(lambda s: slots_of(s, batch.span_valid.shape[-1]))(batch.span_of_token.reshape(tokens.shape))
    slots, words = model.prompt_slots(slots, tokens)
    text_hidden = take_positions(hidden, position)
    if loss_config.reference:
        base = jax.lax.stop_gradient(model.hidden(jax.lax.stop_gradient(embeds), lengths, adapter=False))
        per_row = batch.span_valid.reshape(tokens.shape[0], -1)
        terms["reference"] = losses.reference_loss(text_hidden, take_positions(base, position), words, per_row)
    if loss_config.shape_weight or loss_config.bce:
        mask_terms, metrics["mask_iou"] = _mask_terms(model, batch, text_hidden, slots, config)
        terms.update(mask_terms)
    if loss_config.patch and batch.patch_part is not None:
        terms["patch"] = losses.patch_loss(image_tokens, _word_embeds(model, part_tokens), batch.patch_part)
    return terms, metrics


def _tag_terms(model, tag_logits, bio, token_valid, position, loss_config):
    """-> (tag loss, accuracy over tokens of spans)."""
    if loss_config.tag_positions == "all":  # the reference's: image, prompt and padding positions too, all O (M D57)
        rows = jnp.arange(bio.shape[0])[:, None]
        bio = jnp.zeros(tag_logits.shape[:2], bio.dtype).at[rows, position].max(bio)
        where = jnp.ones(bio.shape, bool)
    else:
        tag_logits, where = take_positions(tag_logits, position), token_valid
    weight = losses.tag_weights(bio, where, loss_config.tag_class_weights)
    in_span = (bio > 0) & where
    right = (tag_logits.argmax(-1) == bio) & in_span
    loss = losses.tag_loss(tag_logits, bio, weight, model.config.logits_dtype)
    return loss, (right.sum().astype(jnp.float32), in_span.sum().astype(jnp.float32))


def _seg_accuracy(logits, tokens, token_valid, seg):
    """-> (how many <seg> tokens are the most likely ones where they stand, how many there are)."""
    there = (tokens == seg) & token_valid
    return (there & (logits.argmax(-1) == seg)).sum().astype(jnp.float32), there.sum().astype(jnp.float32)


def _mask_terms(model, batch, text_hidden, slots, config):
    """-> ({"shape": ..., "bce": ...}, mask IoU), over the grounded images."""
    images, count = batch.sam_pixels.shape[0], batch.tokens.shape[1]

    def grounded(x):  # [B * C, ...] -> [M * C, ...]
        x = x.reshape(-1, count, *x.shape[1:])
        return grounded_rows(x, config.data.grounded).reshape(-1, *x.shape[2:])

    span_valid = grounded_rows(batch.span_valid, config.data.grounded)
    rows = span_valid.reshape(images * count, -1)
    features = jax.vmap(pool_spans)(model.project(grounded(text_hidden)), grounded(slots))
    image_embeddings = model.image_embeddings(batch.sam_pixels, batch.resized_hw)
    low_res, _ = model.decode_masks(jnp.repeat(image_embeddings, count, 0), features, rows)
    low_res = low_res.reshape(images, -1, *low_res.shape[2:])  # [M, C * N, h, w]

    canvas = batch.masks.shape[-2:]
    logits = jax.vmap(lambda x, r, o: to_original(x, r, o, config.model.sam.image_size, canvas))(
        low_res, batch.resized_hw, batch.original_hw
    )
    index = grounded_rows(batch.span_mask_index, config.data.grounded).reshape(images, -1).astype(jnp.int32)
    target = jnp.take_along_axis(batch.masks, index[..., None, None], 1).astype(jnp.float32)
    inside = (jnp.arange(canvas[0])[:, None] < batch.original_hw[:, None, None, 0]) & (
        jnp.arange(canvas[1]) < batch.original_hw[:, None, None, 1]
    )
    inside, valid = inside[:, None], span_valid.reshape(images, -1)
    c = config.loss
    if c.shape == "dice":
        shape = losses.dice_loss(logits, target, inside, scale=c.dice_scale)
    else:
        shape = losses.tversky_loss(
            logits,
            target,
            inside,
            alpha=c.tversky_alpha,
            beta=c.tversky_beta,
            gamma=c.tversky_gamma,
            clamp=switch(c, "loss.tversky_clamp"),
        )
    bce, iou = losses.bce_loss(logits, target, inside), losses.mask_iou(logits, target, inside)

    def total(x):
        return jnp.sum(jnp.where(valid, x, 0.0)), valid.sum().astype(jnp.float32)

    return {"shape": total(shape), "bce": total(bce)}, total(iou)


def _word_embeds(model, part_tokens):
    """int[K, L] padded with -1 -> [K, D]: mean embedding of each word's tokens."""
    valid = part_tokens >= 0
    embeds = model.llama.token_embeddings(jnp.maximum(part_tokens, 0)) * valid[..., None]
    return embeds.sum(1) / jnp.maximum(valid.sum(1, keepdims=True), 1)


def _counts(batch, config, image_tokens):
    """Weights of one micro-batch by loss, from the labels alone."""
    bio = batch.bio.reshape(-1, batch.bio.shape[-1])
    where = batch.token_valid.reshape(bio.shape)
    tag = losses.tag_weights(bio, where, config.loss.tag_class_weights).sum()
    if config.loss.tag_positions == "all":
        rows = (bio > 0).any(-1)
        length = bio.shape[-1] - 1 + image_tokens
        spans = losses.tag_weights(bio, bio > 0, config.loss.tag_class_weights).sum()
        tag = spans + config.loss.tag_class_weights[0] * (rows.sum() * length - (bio > 0).sum())
    spans = grounded_rows(batch.span_valid, config.data.grounded).sum().astype(jnp.float32)
    totals = {
        "language": batch.loss_weight.sum(),
        "tag": tag,
        "shape": spans,
        "bce": spans,
        "reference": batch.span_valid.sum().astype(jnp.float32),
    }
    if batch.patch_part is not None:
        totals["patch"] = losses.patch_weights(batch.patch_part).sum()
    return totals
