"""Learning-rate schedule and optimizer. One schedule step per update, warm-up from zero (M D13)."""

import jax
import optax

from plum_jax.errors import UserError
from plum_jax.sharding import path_name


def make_schedule(config, steps):
    """config.optim, number of updates -> optax schedule: linear warm-up to `lr`, then cosine or linear to final_lr * lr."""
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


def make_optimizer(config, steps):
    """config.optim, number of updates -> (optax transformation, schedule).

    "adamw" is the paper's (M 7.3). "muon" orthogonalises the updates of matrices and leaves embeddings, heads, norms and
    biases to Adam; it reaches the same loss in fewer images when a small model is trained from nothing.
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
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx), schedule


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
