"""What a training is made of before its first step: shapes, shardings and the jitted step of a config, and its state."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from plum_jax import checkpoint
from plum_jax.base import PARTS
from plum_jax.errors import UserError
from plum_jax.initial import check_loaded, load_initial, open_base_of, random_parts
from plum_jax.models import plum
from plum_jax.objective import make_loss
from plum_jax.optim import make_optimizer
from plum_jax.params import count, partition
from plum_jax.processes import say
from plum_jax.settings import check_gradients
from plum_jax.sharding import tree_sharding
from plum_jax.switches import switch
from plum_jax.train_step import TrainState, init_state, make_train_step


class TrainingPlan(NamedTuple):
    """What the config decides alone: no array is allocated yet."""

    abstract: dict  # shapes of all parameters
    shapes: object  # TrainState of shapes
    sharding: object  # TrainState of shardings
    init: object  # trainable parameters -> TrainState
    step_fn: object  # (state, frozen, batches, key) -> (state, metric sums)
    rates: object  # float[steps], learning rate of every update
    parameters: int
    trainable: int


def plan_training(config, mesh, part_words):
    """Config, mesh, token ids of the words of the patch loss -> TrainingPlan.

    Raises:
      UserError: the config trains nothing, or what it trains has no gradient.
    """
    graphdef, abstract = plum.build(plum.PlumConfig.from_dict(config.model))
    trainable, _ = partition(abstract, config.trainable)
    if not trainable:
        raise UserError(f"config.trainable: {config.trainable!r} matches no parameter; use a regular expression on their paths")
    check_gradients(config, trainable)
    tx, schedule = make_optimizer(config.optim, config.train.steps)
    init = functools.partial(init_state, tx=tx)
    shapes = jax.eval_shape(init, trainable)
    sharding = tree_sharding(shapes, mesh)
    length = max(map(len, part_words))
    part_tokens = np.array([ids + [-1] * (length - len(ids)) for ids in part_words], np.int32)
    loss_fn, totals = make_loss(graphdef, config, part_tokens)
    accumulate_dtype = switch(config.optim, "optim.accumulate_dtype")
    step_fn = make_train_step(loss_fn, totals, tx, sharding, accumulate_dtype=accumulate_dtype)
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(config.train.steps)))
    return TrainingPlan(abstract, shapes, sharding, init, step_fn, rates, count(abstract), count(trainable))


def open_state(plan, config, mesh, checkpointer):
    """-> (TrainState on the mesh, frozen parameters, step): the newest checkpoint's, or step 0 from the seed."""
    restored, start = checkpoint.restore(checkpointer, plan.shapes, plan.sharding, config)
    shardings = tree_sharding(plan.abstract, mesh)
    _, frozen = partition(plan.abstract, config.trainable)
    if restored is not None:
        frozen = load_initial(config, shardings, paths=flatten_dict(frozen, sep="/")) if frozen else frozen
        return TrainState(**restored), frozen, start
    params = load_initial(config, shardings)
    base = open_base_of(config)
    if base is not None:
        check_loaded(base, params)
        for part in random_parts(config):
            say(f"  {PARTS[part]} starts random")
    trainable, frozen = partition(params, config.trainable)
    return jax.jit(plan.init, out_shardings=plan.sharding)(trainable), frozen, 0
