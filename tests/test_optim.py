import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from plum_jax.errors import UserError
from plum_jax.optim import make_optimizer, make_schedule


def config(**changes):
    values = dict(
        name="adamw", lr=1e-2, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, warmup_steps=10, decay="cosine",
        final_lr=0.02, clip_norm=1.0,
    )  # fmt: skip
    return ml_collections.ConfigDict({**values, **changes})


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_schedule_rises_then_falls(decay):
    schedule = make_schedule(config(decay=decay), 110)
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(111)))
    np.testing.assert_allclose(rates[0], 1e-3, rtol=1e-5)  # never an update at rate 0
    np.testing.assert_allclose(rates[10], 1e-2, rtol=1e-5)
    np.testing.assert_allclose(rates[110], 2e-4, rtol=1e-4)
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    middle = 0.5 * (1e-2 + 2e-4)
    np.testing.assert_allclose(rates[60], middle, rtol=1e-4)


def test_schedule_without_warmup_and_of_very_few_steps():
    schedule = make_schedule(config(warmup_steps=0), 50)
    np.testing.assert_allclose(schedule(0), 1e-2, rtol=1e-6)
    for steps in (1, 2, 3):
        rates = jax.vmap(make_schedule(config(), steps))(jnp.arange(steps))
        assert (rates > 0).all()
        assert (rates < 1.001e-2).all()


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match="decay"):
        make_optimizer(config(decay="step"), 10)
    with pytest.raises(UserError, match="config.optim.schedule: 'cyclic' is not known"):
        make_optimizer(config(schedule="cyclic"), 10)
    with pytest.raises(UserError, match="config.optim.name"):
        make_optimizer(config(name="sgd"), 10)


PARAMS = {
    "llama": {
        "embed": jnp.ones((6, 4)),
        "lm_head": {"kernel": jnp.ones((4, 6))},
        "layers": {"q_proj": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}, "norm": {"scale": jnp.ones((2, 4))}},
    },
    "prompt_encoder": {"gaussian_matrix": jnp.ones((2, 4))},
    "conv": {"kernel": jnp.ones((2, 2, 3, 4))},
}


def get(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def first_update(tx, grads):
    """-> (updates, optimizer state) of one jitted step from PARAMS."""
    return jax.jit(lambda g: tx.update(g, tx.init(PARAMS), PARAMS))(grads)


def test_weight_decay_is_for_kernels():
    tx, _ = make_optimizer(config(warmup_steps=0), 10)
    updates, _ = first_update(tx, jax.tree.map(jnp.zeros_like, PARAMS))
    flat = {jax.tree_util.keystr(k): float(jnp.abs(v).max()) for k, v in jax.tree_util.tree_leaves_with_path(updates)}
    assert {k for k, v in flat.items() if v > 0} == {k for k in flat if "kernel" in k}
    np.testing.assert_allclose([v for v in flat.values() if v > 0], 1e-3, rtol=1e-4)  # lr * weight_decay


def test_adamw_is_optax_after_clipping():
    tx, schedule = make_optimizer(config(warmup_steps=0, weight_decay=0.0), 10)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32) * 10, PARAMS)
    norm = optax.tree.norm(grads)
    want_tx = optax.adam(schedule, 0.9, 0.95, 1e-8)
    state, want_state = tx.init(PARAMS), want_tx.init(PARAMS)
    update, want_update = jax.jit(tx.update), jax.jit(want_tx.update)
    for _ in range(3):
        updates, state = update(grads, state, PARAMS)
        want, want_state = want_update(jax.tree.map(lambda g: g / norm, grads), want_state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, want)


def test_muon_takes_the_matrices_of_every_layer_apart():
    """The update of a stacked kernel is, layer by layer, that of the single matrix: singular values near one."""
    tx, _ = make_optimizer(config(name="muon", warmup_steps=0, weight_decay=0.0), 10)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), PARAMS)
    updates, state = first_update(tx, grads)
    kernel = np.asarray(updates["llama"]["layers"]["q_proj"]["kernel"]) / 1e-2
    for layer in kernel:
        values = np.linalg.svd(layer, compute_uv=False)
        assert (values > 0.5).all() and (values < 1.5).all()
    for name in (("llama", "lm_head", "kernel"), ("conv", "kernel"), ("llama", "embed")):  # Adam's first update is the sign
        update, grad = np.asarray(get(updates, name)), np.asarray(get(grads, name))
        np.testing.assert_allclose(update, -np.sign(grad) * np.abs(update).max(), rtol=1e-3)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))


def rates(schedule, updates):
    config_ = config(schedule=schedule, lr=3e-4, warmup_steps=100)
    return np.asarray(jax.jit(jax.vmap(make_schedule(config_, updates)))(jnp.arange(updates)))


def stepped(updates, accumulate):
    """The reference's training loop with its two callers of the scheduler, written out (M 7.5): rate of every update."""
    total = updates * accumulate
    index, rate, rates = -1, 3e-4, []

    def step_scheduler():
        nonlocal index, rate
        index += 1
        rate = 3e-4 * (index / 100 if index < 100 else max(0, (total - index) / (total - 100)))

    for loop_step in range(total):
        if loop_step % accumulate == accumulate - 1:
            rates.append(rate)
            step_scheduler()  # by DeepSpeed, after the update
        if loop_step % 500:
            step_scheduler()  # by the loop
    return np.array(rates), index


def test_reference_schedule_of_pretraining():
    """25 epochs: the figures of M 7.5, and the loop that they come from."""
    got = rates("reference_0shot", 1250)
    want, last_index = stepped(1250, 10)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-10)
    assert last_index == 13_724
    np.testing.assert_allclose(got[0], 2.1e-5, rtol=1e-5)
    np.testing.assert_allclose(np.diff(got[:9]), 3e-4 * 0.11, rtol=1e-3)
    np.testing.assert_allclose(got[9], 3e-4 * (12_500 - 106) / 12_400, rtol=1e-5)  # the tenth is the first past the warm-up
    assert (got > 0).sum() == 1138 and (got[:1138] > 0).all()


def test_reference_schedule_of_fine_tuning():
    got = rates("reference_ft", 500)
    np.testing.assert_allclose(got, stepped(500, 1)[0], rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(got[:3], [3e-4, 0, 3e-4 * 0.02], rtol=1e-5)
    assert got.argmax() == 0 and got[2:].argmax() == 51 - 2
    assert (got > 0).sum() == 250 and not got[251:].any()
    two_epochs = rates("reference_ft", 1000)
    np.testing.assert_allclose(two_epochs, stepped(1000, 1)[0], rtol=1e-4, atol=1e-10)
    assert (two_epochs > 0).sum() == 501


def test_clean_schedule_wastes_no_update():
    assert (rates("clean", 1250) > 0).all() and (rates("clean", 500) > 0).all()


def test_without_a_norm_nothing_is_clipped():
    """The first update of SGD-like moments: Adam's first moment after one step is a tenth of what it was given."""
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 100.0), PARAMS)
    moments = {}
    for norm in (0.0, 1.0):
        _, state = first_update(make_optimizer(config(clip_norm=norm, warmup_steps=0), 10)[0], grads)
        adam = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
        moments[norm] = float(optax.tree.norm(adam.mu))
    np.testing.assert_allclose(moments[0.0], 0.1 * float(optax.tree.norm(grads)), rtol=1e-5)
    np.testing.assert_allclose(moments[1.0], 0.1, rtol=1e-5)
