import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_fixtures import PARTS, micro, random_batch, random_params, small_config, small_model

from configs.common import faithful
from plum_jax.models.plum import PlumConfig, build
from plum_jax.objective import make_loss
from plum_jax.optim import make_optimizer
from plum_jax.params import merge, partition
from plum_jax.train_step import LEAVES, SKIPPED, init_state, make_train_step, sum_over

pytestmark = pytest.mark.usefixtures("quick_compilation")
TRAINABLE = r"^(?!clip|sam_encoder|llama/layers)"  # so that the frozen part is not empty


def step_of(micro_batches=1):
    """-> (jitted step, optimizer)."""
    config = small_config()
    config.data.micro_batches = micro_batches
    tx, _ = make_optimizer(config.optim, 60)
    return make_train_step(*make_loss(small_model()[1], config, PARTS), tx), tx


@pytest.fixture(scope="module")
def training():
    """-> (jitted step, new_state() -> (state, frozen), batch of four images)."""
    step, tx = step_of()

    def new_state():
        trainable, frozen = partition(jax.tree.map(jnp.array, small_model()[2]), TRAINABLE)
        return init_state(trainable, tx), frozen

    batch = random_batch(small_config(), images=4, conversations=1, length=16)
    assert batch.span_valid[0].all()  # three masks: the weights of the feedback have a gradient from the third on
    return step, new_state, batch


KEY = jax.random.key(0)


def mean(sums, name):
    return float(sums[name][0] / sums[name][1])


def test_overfits_one_batch_without_touching_frozen_weights(training):
    step, new_state, batch = training
    state, frozen = new_state()
    before = jax.tree.map(np.array, frozen)
    history = []
    for _ in range(60):
        state, sums = step(state, frozen, micro(batch), KEY)
        history.append(sums)
    assert int(state.step) == 60
    for name, most in (("language", 0.5), ("tag", 0.3), ("shape", 0.8), ("bce", 0.8)):
        assert mean(history[-1], name) < most * mean(history[0], name), name
    assert mean(history[-1], "tag_accuracy") > 0.9
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    assert not set(state.params) & {"clip", "sam_encoder"}
    assert set(merge(state.params, frozen)) == set(small_model()[2])


def test_the_state_is_donated_and_nothing_recompiles(training):
    step, new_state, batch = training
    state, frozen = new_state()
    step.clear_cache()
    first, _ = step(state, frozen, micro(batch), KEY)
    assert jax.tree.leaves(state.params)[0].is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves(frozen))
    second, _ = step(first, frozen, micro(batch), KEY)
    assert step._cache_size() == 1
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    assert types(second) == types(new_state()[0])


def test_micro_batches_change_nothing(training):
    step, new_state, batch = training
    results = []
    for parts, run in ((1, step), (4, step_of(4)[0])):
        state, frozen = new_state()
        state, sums = run(state, frozen, micro(batch, parts), KEY)
        results.append((state.opt_state, sums))  # Adam's moments are the gradient and its square
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def test_gradients_reach_every_part_that_learns(training):
    """Adam's first moment after a step is zero only where M 4.5 and 5.2 say that no gradient arrives."""
    step, new_state, batch = training
    state, frozen = new_state()
    state, _ = step(state, frozen, micro(batch), KEY)
    moments = next(s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    dead = {jax.tree_util.keystr(path, simple=True, separator="/") for path, m in jax.tree_util.tree_leaves_with_path(moments)
            if not np.any(m)}  # fmt: skip
    unused = {f"prompt_encoder/{name}" for name in ("gaussian_matrix", "point_embeddings", "not_a_point_embed")}
    unused |= {"feedback/film3/kernel", "feedback/film3/bias"}  # of a convolution that the reference does not modulate
    cancels = {"feedback/k_proj/bias"}  # the same for all masks of a location, hence nothing in its softmax
    assert {path for path in dead if not path.startswith("mask_decoder/iou_head")} == unused | cancels
    assert any(path.startswith("mask_decoder/iou_head") for path in dead)


def test_sum_over_is_the_sum():
    items = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.arange(4)}
    got = jax.jit(lambda items: sum_over(lambda item: (item["a"] * item["b"], item["b"]), items))(items)
    np.testing.assert_allclose(got[0], (items["a"] * items["b"][:, None]).sum(0))
    assert got[1] == 6
    one = jax.tree.map(lambda x: x[:1], items)
    np.testing.assert_array_equal(sum_over(lambda item: item["a"], one), items["a"][0])


@pytest.mark.parametrize("dtype, want", [("float32", 263.0), ("bfloat16", 256.0)])
def test_gradients_can_be_summed_in_bfloat16(dtype, want):
    """Seven micro-batches of gradient 1 after one of 256, whose neighbours in bfloat16 are 2 apart, are lost (M D14)."""
    loss_fn = lambda params, frozen, batch, totals, key: ((params["w"] * batch).sum(), {"loss": (batch.sum(), 1.0)})  # noqa: E731
    tx = optax.sgd(1.0)
    step = make_train_step(loss_fn, lambda batches: {}, tx, accumulate_dtype=dtype)
    state, sums = step(init_state({"w": jnp.zeros(1)}, tx), {}, jnp.array([[256.0]] + [[1.0]] * 7), KEY)
    assert state.params["w"].dtype == jnp.float32
    np.testing.assert_array_equal(state.params["w"], [-want])
    assert sums["loss"][0] == 263  # metrics are summed in float32 always


def poisoned(params, frozen, batch, totals, key):
    """Batch: {"x": float[rows], "gradient": bool[rows]}; where `gradient` is set the loss is finite and its gradient is not."""
    bad = batch["gradient"].any()
    loss = (params["a"] * batch["x"]).sum() + jnp.sqrt(jnp.where(bad, 0 * params["b"], 1.0)).sum() + params["b"].sum()
    return loss, {"loss": (loss, 1.0)}


@pytest.mark.parametrize("x, gradient, wrong", [(np.nan, False, [True, False]), (1.0, True, [False, True])])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step(x, gradient, wrong):
    """A loss that is not a number, and a finite loss whose gradient is not: in one of two micro-batches each."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    step = make_train_step(poisoned, lambda batches: {}, tx)
    fine = {"x": np.ones((2, 3), np.float32), "gradient": np.zeros((2, 3), bool)}
    bad = jax.tree.map(np.copy, fine)
    bad["x"][1, 2], bad["gradient"][1, 0] = x, gradient
    state, sums = step(init_state({"a": jnp.ones(3), "b": jnp.ones(2)}, tx), {}, fine, KEY)
    assert sums[SKIPPED][0] == 0 and not sums[LEAVES][0].any()
    before = jax.device_get(state)
    state, sums = step(state, {}, bad, KEY)
    assert sums[SKIPPED][0] == 1 and sums[LEAVES][0].tolist() == wrong
    assert np.isfinite(sums["loss"][0]) == gradient
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), (before.params, before.opt_state))
    assert state.step == before.step + 1
    state, sums = step(state, {}, fine, KEY)
    assert sums[SKIPPED][0] == 0 and all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert not np.array_equal(state.params["a"], before.params["a"])


def test_a_norm_that_overflows_is_not_finite_either():
    """Every gradient is a number, their squares are not: Adam would divide by infinity for ever after."""
    loss_fn = lambda params, frozen, batch, totals, key: ((params["a"] * batch).sum(), {"loss": (0.0 * batch.sum(), 1.0)})  # noqa: E731
    step = make_train_step(loss_fn, lambda batches: {}, optax.adam(0.1))
    state, sums = step(init_state({"a": jnp.ones(3)}, optax.adam(0.1)), {}, jnp.full((1, 3), 1e30), KEY)
    assert sums[SKIPPED][0] == 1 and state.params["a"].tolist() == [1, 1, 1]


@pytest.mark.slow
def test_a_step_with_every_switch_of_the_reference():
    """Fine-tuning as it ran: bf16, ten micro-batches; the first update has the full rate, the second none (M 7.5)."""
    config = small_config(feedback=False)  # the loop is a third of the compilation, and no switch of training touches it
    config.loss.reference = 0.1
    config.optim.warmup_steps = 100
    config.eval, config.vqa, config.train = {}, {}, {}
    faithful(config, "ft")
    graphdef, shapes = build(PlumConfig.from_dict(config.model))
    tx, _ = make_optimizer(config.optim, 500)
    loss_fn, count = make_loss(graphdef, config, PARTS)
    step = make_train_step(loss_fn, count, tx, accumulate_dtype=config.optim.accumulate_dtype)
    batch = random_batch(config, images=config.data.micro_batches, conversations=1)
    state = init_state(jax.tree.map(jnp.array, random_params(shapes, adapters=True)), tx)
    params = [jax.device_get(state.params)]
    for _ in range(2):
        state, sums = step(state, {}, micro(batch, config.data.micro_batches), KEY)
        params.append(jax.device_get(state.params))
        assert np.isfinite(mean(sums, "loss")) and mean(sums, "reference") > 0
    embeds = [p["llama"]["embed"] for p in params]
    moved = np.abs(embeds[1] - embeds[0])
    np.testing.assert_allclose(moved[moved > 0].max(), config.optim.lr, rtol=1e-2)  # Adam's first update is lr times the sign
    np.testing.assert_array_equal(embeds[2], embeds[1])
