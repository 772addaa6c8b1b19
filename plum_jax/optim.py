"""Learning-rate schedules and optimizer."""

import jax
import jax.numpy as jnp
import optax

from plum_jax.errors import UserError
from plum_jax.sharding import path_name
from plum_jax.switches import switch

EPOCH, ACCUMULATE = 500, 10  # loop steps of an epoch of the reference, and its accumulation setting (M 7.4)


def make_schedule(config, steps):
    """config.optim, number of updates -> optax schedule, as config.optim.schedule says.

    "clean" is one step of the schedule per update (M D13): linear warm-up to `lr`, then cosine or linear to final_lr * lr.
    The others are `reference_schedule` of a stage.
    """
    kind = switch(config, "optim.schedule")
    if kind != "clean":
        return reference_schedule(config, steps, kind.removeprefix("reference_"))
    warmup = min(config.warmup_steps, max(steps // 2, 1))
    if config.decay == "cosine":
        decay = optax.cosine_decay_schedule(config.lr, max(steps - warmup, 1), alpha=config.final_lr)
    elif config.decay == "linear":
        decay = optax.linear_schedule(config.lr, config.lr * config.final_lr, max(steps - warmup, 1))
    else:
        raise UserError(f"config.optim.decay: {config.decay!r} is not known; use 'cosine' or 'linear'")
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(config.lr / warmup, config.lr, warmup), decay], [warmup])


def reference_schedule(config, steps, stage):
    """The learning rates that the reference's runs had: its scheduler is stepped twice, and not at every update (M 7.5).

    DeepSpeed steps it after each update, the loop at each of its steps but the first of an epoch. In "0shot" ten loop steps
    make an update, in "ft" one does. The rate is that of the scheduler's index at update k, linear over `warmup_steps`
    indices, then linear to 0 at the number of loop steps; before its first call the optimizer has the full rate. So in
    pre-training the last 112 of 1250 updates have rate 0, in fine-tuning the second and the last 249 of 500.
    """
    loop_steps = steps * (ACCUMULATE if stage == "0shot" else 1)

    def rate(update):
        last = update * ACCUMULATE + ACCUMULATE - 1 if stage == "0shot" else update  # loop step that makes the update
        epochs_begun = jnp.where(last > 0, (last - 1) // EPOCH + 1, 0)
        index = update + last - epochs_begun - 1  # calls by DeepSpeed and by the loop so far; it starts at -1
        warm = index / max(config.warmup_steps, 1)
        left = (loop_steps - index) / max(loop_steps - config.warmup_steps, 1)
        decayed = jnp.where(index < config.warmup_steps, warm, jnp.maximum(left, 0.0))
        return config.lr * jnp.where(index < 0, 1.0, decayed)

    return rate


def make_optimizer(config, steps):
    """config.optim, number of updates -> (optax transformation, schedule).

    "adamw" is the paper's (M 7.3). "muon" orthogonalises the updates of matrices and leaves embeddings, heads, norms and
    biases to Adam; it reaches the same loss in fewer images when a small model is trained from nothing. The gradient is
    clipped to a norm of `clip_norm`, or not at all where that is 0, as in the reference, whose setting of 1.0 has no effect
    in bf16 (M D12).
    """
    schedule = make_schedule(config, steps)
    if config.name == "adamw":
        tx = optax.adamw(schedule, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=_decayed)
    elif config.name == "muon":
        tx = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            weight_decay_mask=_decayed,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=_muon_matrices,
            consistent_rms=config.get("muon_rms", None),
        )
    else:
        raise UserError(f"config.optim.name: {config.name!r} is not known; use 'adamw' or 'muon'")
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, tx), schedule


def _decayed(params):
    """Weight decay for matrices, not for norms, biases and tables."""
    return jax.tree_util.tree_map_with_path(lambda path, x: path_name(path).endswith("kernel"), params)


def _muon_matrices(params):
    """Which leaves Muon takes: kernels, with a layer axis in front when they are stacked; not the vocabulary's."""
    numbers = optax.contrib.MuonDimensionNumbers

    def one(path, x):
        name = path_name(path)
        if not name.endswith("kernel") or "lm_head" in name or x.ndim > 3:
            return None
        return numbers(reduction_axis=(x.ndim - 2,), output_axis=(x.ndim - 1,))

    return jax.tree_util.tree_map_with_path(one, params)
