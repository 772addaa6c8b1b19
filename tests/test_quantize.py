"""Weight-only int8: how far weights and logits move, what stays untouched, and that every way of running the model reads it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P
from model_fixtures import PARTS, micro, random_batch, small_config, small_model

from plum_jax import generate
from plum_jax.errors import UserError
from plum_jax.loading import LoadedModel
from plum_jax.models.layers import Linear, to_int8
from plum_jax.models.plum import PlumConfig, bind, build
from plum_jax.objective import make_loss
from plum_jax.params import cast, merge, partition
from plum_jax.quantize import count_bytes, quantize, quantize_model
from plum_jax.settings import check_gradients
from plum_jax.sharding import make_mesh, path_name, tree_sharding
from plum_jax.train_step import init_state, make_train_step
from plum_jax.training_plan import plan_training

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG, GRAPHDEF, FLOAT = small_model(adapters=True)
INT8_CONFIG = PlumConfig.from_dict(small_config(llama={**small_config().model.llama, "int8": True}).model)
INT8_GRAPHDEF, ABSTRACT = build(INT8_CONFIG)
INT8 = jax.device_get(quantize(FLOAT))
PATCHES = CONFIG.clip.grid**2
KERNELS = {f"llama/layers/{n}_proj/kernel" for n in ("q", "k", "v", "o", "gate", "up", "down")} | {"llama/lm_head/kernel"}


def flat(params):
    return flatten_dict(params, sep="/")


def inputs(rows, length):
    """Random image tokens float32[rows, P, D] and tokens int32[rows, length]."""
    rng = np.random.default_rng(rows)
    images = rng.normal(size=(rows, PATCHES, CONFIG.llama.width)).astype(np.float32)
    return images, rng.integers(3, CONFIG.llama.vocab_size, (rows, length)).astype(np.int32)


@functools.cache
def dequantised():
    """Float parameters that stand for exactly what the int8 ones do."""
    quantised = flat(INT8)
    out = {}
    for path, x in flat(FLOAT).items():
        scale = quantised.get(f"{path}_scale")
        axis = -1 if path == "llama/embed" else -2
        out[path] = x if scale is None else quantised[path].astype(np.float32) * np.expand_dims(scale, axis)
    return unflatten_dict(out, sep="/")


def test_weights_are_off_by_at_most_half_a_step():
    for path in KERNELS | {"llama/embed"}:
        got, want, scale = flat(dequantised())[path], flat(FLOAT)[path], flat(INT8)[f"{path}_scale"]
        step = np.expand_dims(scale, -1 if path == "llama/embed" else -2)
        assert flat(INT8)[path].dtype == np.int8 and scale.dtype == np.float32
        assert (np.abs(got - want) <= 0.5001 * step).all(), path
        assert np.abs(flat(INT8)[path]).max() == 127 and not np.array_equal(got, want)


def test_a_channel_of_zeros_stays_zeros():
    values, scale = to_int8(jnp.zeros((4, 3)).at[:, 1].set(2.0), -2)
    np.testing.assert_array_equal(values, [[0, 127, 0]] * 4)
    np.testing.assert_allclose(scale, [1, 2 / 127, 1])


def test_everything_but_the_language_model_is_the_same_array():
    before, after = flat(FLOAT), flat(INT8)
    assert after.keys() - before.keys() == {f"{path}_scale" for path in KERNELS | {"llama/embed"}}
    same = before.keys() - KERNELS - {"llama/embed"}
    assert {path.split("/")[0] for path in same} == set(FLOAT)
    assert any("lora_a" in path for path in same) and any("mask_decoder" in path for path in same)
    for path in same:
        assert after[path] is before[path] or np.array_equal(after[path], before[path])
        assert after[path].dtype == before[path].dtype


def test_the_switch_gives_the_shapes_of_quantized_parameters():
    shapes = lambda tree: {path: (x.shape, x.dtype) for path, x in flat(tree).items()}  # noqa: E731
    assert shapes(ABSTRACT) == shapes(INT8)
    assert shapes(build(CONFIG)[1]) == shapes(FLOAT) and not CONFIG.llama.int8
    half = count_bytes(INT8)["language model"] / count_bytes(FLOAT)["language model"]
    assert 0.25 < half < 0.5  # adapters, norms and scales weigh more at this size than at 7B


def test_initialising_with_the_switch_is_initialising_and_quantizing():
    small, plain = (Linear(12, 5, lora=(2, 4.0), int8=int8, rngs=nnx.Rngs(0)) for int8 in (True, False))
    values, scale = to_int8(plain.kernel[...], -2)
    np.testing.assert_array_equal(small.kernel[...], values)
    np.testing.assert_array_equal(small.kernel_scale[...], scale)
    small.lora_b = plain.lora_b = nnx.Param(jnp.ones((2, 5)))
    x = jax.random.normal(jax.random.key(0), (3, 12))
    plain.kernel[...] = values * scale
    np.testing.assert_allclose(small(x), plain(x), atol=1e-6)
    assert small(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@jax.jit
def logits_of(params, images, tokens):
    """Next-token logits of rows with an image, whatever the parameters are."""
    model = bind(INT8_GRAPHDEF if "embed_scale" in params["llama"] else GRAPHDEF, params)
    embeds, _ = model.embed(tokens, jnp.full(len(tokens), 1), images)
    return model.logits(model.hidden(embeds, jnp.full(len(tokens), embeds.shape[1])))[..., : CONFIG.llama.vocab_size]


def test_logits_change_little():
    """In deviations of the logits. Six draws gave: mean up to 0.016, of a hundred the largest up to 0.11, KL up to 5.2e-4;
    the bounds are about twice that. Sixteen channels average less rounding away than the thousands of a real model.
    """
    images, tokens = inputs(4, 20)
    want, got, exact = (np.asarray(logits_of(p, images, tokens)) for p in (FLOAT, INT8, dequantised()))
    np.testing.assert_allclose(got, exact, atol=1e-4)
    change = np.abs(got - want) / want.std()
    kl = optax.losses.kl_divergence(jax.nn.log_softmax(got), jax.nn.softmax(want))
    measured = change.mean(), np.quantile(change, 0.99), kl.mean()
    assert 0 < measured[0] < 0.03 and measured[1] < 0.2 and measured[2] < 1e-3, measured


def test_generation_and_scores_are_those_of_the_dequantized_model():
    images, tokens = inputs(2, 6)
    start = np.array([1, 7, 0], np.int32)
    part = np.ones((2, 2, 3), bool)
    questions = generate.Questions(
        np.array([0, 1]), tokens, np.array([6, 4]), np.zeros((2, 6), bool),
        inputs(4, 3)[1].reshape(2, 2, 3), np.array([[3, 2], [1, 3]]), part,
    )  # fmt: skip
    found = []
    for graphdef, params in ((INT8_GRAPHDEF, INT8), (GRAPHDEF, dequantised())):
        said = generate.generate(
            graphdef, params, images, tokens, np.array([6, 4]), np.array([2, -1]), max_new_tokens=5, end_token=2
        )
        prefix = generate.run_prefix(graphdef, params, images, start)
        found.append((*said, generate.score_choices(graphdef, params, prefix, questions).answer_sum))
    (tokens_a, count_a, read_a, scores_a), (tokens_b, count_b, read_b, scores_b) = found
    np.testing.assert_array_equal(tokens_a, tokens_b)
    np.testing.assert_array_equal(count_a, count_b)
    np.testing.assert_allclose(read_a.features[:, 0], read_b.features[:, 0], atol=1e-4)
    np.testing.assert_allclose(scores_a, scores_b, rtol=1e-4)


def test_scales_follow_their_kernels_over_the_mesh():
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    specs = {path_name(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(tree_sharding(ABSTRACT, mesh))}
    for path in KERNELS:
        *_, out = specs[path]
        assert specs[f"{path}_scale"] == P(*[None] * (len(specs[path]) - 2), out), path
    assert specs["llama/lm_head/kernel_scale"] == specs["llama/embed_scale"] == P("tensor")
    assert specs["llama/layers/down_proj/kernel_scale"] == P(None, "fsdp")


def test_casting_keeps_the_scales():
    low = flat(cast(INT8, jnp.bfloat16))
    assert low["llama/layers/up_proj/kernel"].dtype == np.int8
    assert low["llama/layers/up_proj/kernel_scale"].dtype == low["llama/embed_scale"].dtype == np.float32
    assert low["llama/layers/input_norm/scale"].dtype == low["clip/norm/scale"].dtype == jnp.bfloat16


def test_int8_weights_cannot_be_trained():
    config = small_config()
    with pytest.raises(UserError, match=r"config.trainable: '\.\*' matches llama/\S+, which is int8 and has no gradient"):
        check_gradients(config, partition(ABSTRACT, config.trainable)[0])
    check_gradients(config, partition(ABSTRACT, "lora_|feedback")[0])
    check_gradients(config, partition(build(CONFIG)[1], ".*")[0])
    config.model.llama.int8 = True
    with pytest.raises(UserError, match="is int8 and has no gradient"):
        plan_training(config, None, [[5]])  # what a run does before it writes anything


def test_adapters_get_the_gradients_of_the_dequantized_model():
    images, tokens = inputs(2, 8)
    grads = []
    for params in (INT8, dequantised()):
        trainable, frozen = partition(params, "lora_")
        loss = lambda part, rest=frozen: jax.nn.logsumexp(logits_of(merge(part, rest), images, tokens)).mean()  # noqa: E731
        grads.append(flat(jax.grad(loss)(trainable)))
    for path, grad in grads[0].items():
        assert np.abs(grad).max() > 1e-6, path
        np.testing.assert_allclose(grad, grads[1][path], atol=1e-4 * np.abs(grad).max())


def test_a_training_step_moves_adapters_on_an_int8_base():
    config, tx = small_config(), optax.sgd(1.0)
    trainable, frozen = jax.tree.map(jnp.asarray, partition(INT8, "lora_"))
    loss_fn, totals = make_loss(INT8_GRAPHDEF, config, PARTS)
    step, batches = make_train_step(loss_fn, totals, tx), micro(random_batch(config, images=2, conversations=1))
    state, _ = step(init_state(trainable, tx), frozen, batches, jax.random.key(0))
    for path, x in flat(state.params).items():
        assert np.isfinite(x).all() and np.abs(x - flat(FLOAT)[path]).max() > 1e-6, path


def test_quantizing_a_loaded_model_switches_its_config():
    loaded = LoadedModel(small_config(), FLOAT, None, "run", "", 0)
    small = quantize_model(loaded)
    assert small.config.model.llama.int8 and not loaded.config.model.llama.get("int8", False)
    assert PlumConfig.from_dict(small.config.model) == INT8_CONFIG
    with pytest.raises(UserError, match="run: its language model is int8 already"):
        quantize_model(small)
