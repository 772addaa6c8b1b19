"""One update of the trainable parameters: gradients summed over micro-batches, one optimizer step."""

import functools

import flax
import jax
import jax.numpy as jnp
import optax

from plum_jax.precision import rounded
from plum_jax.sharding import compiler_options

SKIPPED, LEAVES = "skipped_steps", "nonfinite_leaves"  # metrics of a step: 1 if it made no update; bool for each parameter


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # int32[]
    params: dict  # the trainable part only, float32
    opt_state: optax.OptState


def init_state(params, tx):
    """Trainable parameters -> state at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def sum_over(fn, items):
    """Sum of fn(item) over the leading axis of `items`, one item in memory at a time."""
    if jax.tree.leaves(items)[0].shape[0] == 1:
        return fn(jax.tree.map(lambda x: x[0], items))
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(fn, jax.tree.map(lambda x: x[0], items)))
    return jax.lax.scan(lambda total, item: (jax.tree.map(jnp.add, total, fn(item)), None), zero, items)[0]


def make_train_step(loss_fn, count, tx, state_sharding=None, *, accumulate_dtype="float32"):
    """The jitted update.

    Args:
      loss_fn: (params, frozen, batch, totals, key) -> (loss, metric sums); the loss divides by `totals`, the weights of
        the whole step, so that micro-batches, hosts and padding cannot change the result.
      count: batches with a leading micro-batch axis -> totals.
      tx: optax transformation.
      state_sharding: pinned so that XLA cannot return the state in a layout that compiles a second time.
      accumulate_dtype: of the sum of gradients over micro-batches; "bfloat16" also rounds each of them, as a bf16 run of
        the reference does (M 7.3, M D14).

    A step whose loss or gradient is not finite leaves parameters and optimizer as they were, and counts as a step: the
    metric SKIPPED is 1 then, and LEAVES says whose gradients were wrong, in the order of the parameters' leaves.

    Returns:
      (state, frozen, batches, key) -> (state, {metric: (sum, weight)}). The state is donated.
    """
    everywhere = None if state_sharding is None else state_sharding.step  # metrics are the same on all devices
    options = None if state_sharding is None else compiler_options(everywhere.mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(state_sharding, everywhere), compiler_options=options)
    def train_step(state, frozen, batches, key):
        totals = count(batches)
        keys = jax.random.split(jax.random.fold_in(key, state.step), jax.tree.leaves(batches)[0].shape[0])

        def gradient(item):
            batch, item_key = item
            grads, sums = jax.grad(loss_fn, has_aux=True)(state.params, frozen, batch, totals, item_key)
            return jax.tree.map(lambda g: rounded(g, accumulate_dtype).astype(accumulate_dtype), grads), sums

        grads, sums = sum_over(gradient, (batches, keys))
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
        norm = optax.tree.norm(grads)
        fine = jnp.isfinite(norm) & jnp.isfinite(sums["loss"][0])
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new, old = (optax.apply_updates(state.params, updates), opt_state), (state.params, state.opt_state)
        params, opt_state = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
        sums["grad_norm"] = (norm, jnp.ones(()))
        sums[SKIPPED] = (1 - fine.astype(jnp.float32), jnp.ones(()))
        sums[LEAVES] = (~jnp.isfinite(squares), jnp.ones(()))
        return TrainState(state.step + 1, params, opt_state), sums

    return train_step
