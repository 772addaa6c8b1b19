import collections

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from model_fixtures import PARTS, micro, random_batch, random_params, small_config

from plum_jax.config_io import load_config
from plum_jax.models.plum import PlumConfig, build
from plum_jax.objective import make_loss
from plum_jax.optim import make_optimizer
from plum_jax.precision import rounded
from plum_jax.train_step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

VALUES = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 10


def test_rounding_is_that_of_bfloat16_also_when_compiled():
    want = VALUES.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.abs(want - VALUES).max() > 0.02
    for run in (rounded, jax.jit(rounded, static_argnums=1)):
        got = run(VALUES, "bfloat16")
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, want)
    assert rounded(VALUES, "float32") is VALUES


def test_cotangents_are_rounded_too():
    _, back = jax.vjp(lambda x: rounded(x, "bfloat16"), VALUES)
    np.testing.assert_array_equal(back(VALUES)[0], VALUES.astype(ml_dtypes.bfloat16).astype(np.float32))


FLOAT32_ONLY = {  # what norms, softmax, rotary angles and losses are made of
    "exp", "log", "log1p", "rsqrt", "sqrt", "div", "pow", "sin", "cos", "reduce_sum", "reduce_max", "cumsum",
}  # fmt: skip


def small(dtype):
    """The smallest config with the types of configs/plum.py -> (config, graph definition, shapes of the parameters)."""
    config = small_config(dtype=dtype, logits_dtype="float32")
    paper = load_config("plum")
    assert (paper.model.dtype, paper.model.logits_dtype) == ("bfloat16", "float32")
    config.loss.reference = 0.1
    return config, *build(PlumConfig.from_dict(config.model))


def types(jaxpr):
    """{primitive: its result types} of a program and of all programs inside it."""
    found = collections.defaultdict(set)
    for equation in jaxpr.eqns:
        found[equation.primitive.name] |= {v.aval.dtype.name for v in equation.outvars if hasattr(v.aval, "dtype")}
        for inner in jaxprs_in_params(equation.params):
            for name, dtypes in types(inner).items():
                found[name] |= dtypes
    return found


def test_a_bfloat16_model_keeps_norms_softmax_and_losses_in_float32():
    config, graphdef, shapes = small("bfloat16")
    loss_fn, count = make_loss(graphdef, config, PARTS)
    batch = random_batch(config, images=2, conversations=1)
    totals = jax.eval_shape(count, micro(batch))
    program = jax.make_jaxpr(lambda params, totals, key: loss_fn(params, {}, batch, totals, key))
    found = types(program(shapes, totals, jax.random.key(0)).jaxpr)
    assert "bfloat16" in found["dot_general"]  # it is a bfloat16 model
    assert found.keys() >= FLOAT32_ONLY - {"sqrt", "cumsum", "pow"}
    wrong = {name: found[name] for name in FLOAT32_ONLY if "bfloat16" in found.get(name, ())}
    assert not wrong


def test_a_few_updates_in_both_types_have_close_losses():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        config, graphdef, shapes = small(dtype)
        tx, _ = make_optimizer(config.optim, 60)
        step = make_train_step(*make_loss(graphdef, config, PARTS), tx)
        state = init_state(jax.tree.map(jnp.array, random_params(shapes, adapters=True)), tx)
        batch = micro(random_batch(config, images=4, conversations=1))
        losses[dtype] = []
        for _ in range(8):
            state, sums = step(state, {}, batch, jax.random.key(0))
            losses[dtype].append(float(sums["loss"][0]))
        assert "bfloat16" not in {x.dtype.name for x in jax.tree.leaves((state.params, state.opt_state, sums))}
    first, second = losses["float32"], losses["bfloat16"]
    assert first != second and first[-1] < 0.8 * first[0]
    np.testing.assert_allclose(second, first, rtol=0.03)
