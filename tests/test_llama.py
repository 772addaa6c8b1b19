import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_fixtures import random_params

from plum_jax.models.llama import Llama, LlamaConfig
from plum_jax.models.plum import bind

CONFIG = LlamaConfig(
    vocab_size=50, width=24, depth=3, heads=3, mlp=40, rope_theta=500.0, epsilon=1e-3, lora_rank=2, lora_alpha=6.0,
    lora_dropout=0.0, vocab_multiple=16,
)  # fmt: skip
ROWS, LENGTH = 3, 11
LENGTHS = np.array([11, 4, 7], np.int32)


GRAPHDEF, STATE = nnx.split(nnx.eval_shape(lambda: Llama(CONFIG, nnx.Rngs(0))))
SHAPES = nnx.to_pure_dict(STATE)


@pytest.fixture(scope="module")
def model():
    """-> (graph definition, parameters), adapters zero."""
    return GRAPHDEF, random_params(SHAPES)


@pytest.fixture(scope="module")
def forward(model):
    graphdef = model[0]
    return jax.jit(lambda p, x, n, adapter: bind(graphdef, p)(x, n, adapter=adapter), static_argnums=3)


@pytest.fixture(scope="module")
def extend(model):
    graphdef = model[0]
    return jax.jit(lambda p, x, cache, n: bind(graphdef, p).extend(x, cache, n))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, (ROWS, LENGTH))


def to_torch(params):
    """Our parameters with adapters folded in -> transformers' LlamaForCausalLM, its smallest eager form."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=CONFIG.vocab_size, hidden_size=CONFIG.width, intermediate_size=CONFIG.mlp, num_hidden_layers=CONFIG.depth,
        num_attention_heads=CONFIG.heads, rms_norm_eps=CONFIG.epsilon, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
    )).eval()  # fmt: skip
    layers = params["layers"]
    weights = {
        "model.embed_tokens.weight": params["embed"][: CONFIG.vocab_size],
        "model.norm.weight": params["norm"]["scale"],
        "lm_head.weight": params["lm_head"]["kernel"][:, : CONFIG.vocab_size].T,
    }
    for i in range(CONFIG.depth):
        prefix = f"model.layers.{i}."
        weights[prefix + "input_layernorm.weight"] = layers["input_norm"]["scale"][i]
        weights[prefix + "post_attention_layernorm.weight"] = layers["post_attention_norm"]["scale"][i]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            kernel = layers[name]["kernel"][i]
            if "lora_a" in layers[name]:
                scale = CONFIG.lora_alpha / CONFIG.lora_rank
                kernel = kernel + scale * layers[name]["lora_a"][i] @ layers[name]["lora_b"][i]
            weights[prefix + ("self_attn." if name[0] in "qkvo" else "mlp.") + name + ".weight"] = kernel.T
    hf.load_state_dict({k: torch.tensor(np.array(v)) for k, v in weights.items()})
    return hf


@pytest.mark.parametrize("adapters", [False, True])
def test_parity_with_transformers(model, forward, tokens, adapters):
    torch = pytest.importorskip("torch")
    params = random_params(SHAPES, adapters=True) if adapters else model[1]
    mask = np.arange(LENGTH) < LENGTHS[:, None]
    with torch.no_grad():
        want = to_torch(params)(torch.tensor(tokens), attention_mask=torch.tensor(mask), output_hidden_states=True)
    hidden = forward(params, params["embed"][tokens], LENGTHS, True)
    np.testing.assert_allclose(hidden[mask], want.hidden_states[-1].numpy()[mask], atol=1e-5)
    logits = bind(model[0], params).logits(hidden)
    np.testing.assert_allclose(logits[mask][:, : CONFIG.vocab_size], want.logits.numpy()[mask], atol=1e-5)
    assert logits.shape[-1] == 64
    assert (np.asarray(logits)[..., CONFIG.vocab_size :] < -1e8).all()


def test_adapter_off_is_the_base_model(model, forward, tokens):
    params = random_params(SHAPES, adapters=True)
    base = jax.tree_util.tree_map_with_path(lambda path, x: x * 0 if "lora_b" in str(path) else x, params)
    embeds = params["embed"][tokens]
    np.testing.assert_array_equal(forward(params, embeds, LENGTHS, False), forward(base, embeds, LENGTHS, False))
    np.testing.assert_allclose(forward(params, embeds, LENGTHS, False), forward(base, embeds, LENGTHS, True), atol=1e-6)
    assert not np.allclose(forward(params, embeds, LENGTHS, False), forward(params, embeds, LENGTHS, True), atol=1e-3)


def test_padding_changes_nothing(model, forward, tokens):
    embeds = model[1]["embed"][tokens]
    full = forward(model[1], embeds, LENGTHS, True)
    other = np.where((np.arange(LENGTH) < LENGTHS[:, None])[..., None], embeds, 7.0).astype(np.float32)
    padded = forward(model[1], other, LENGTHS, True)
    for row, n in enumerate(LENGTHS):
        np.testing.assert_allclose(padded[row, :n], full[row, :n], atol=1e-6)
    assert np.isfinite(padded).all()


def test_extend_in_chunks_is_the_full_forward(model, forward, extend, tokens):
    """Prefill of rows of different lengths, then chunks, then one by one; each row continues where its own tokens end."""
    params, embeds = model[1], model[1]["embed"][tokens]
    want = forward(params, embeds, np.full(ROWS, LENGTH, np.int32), True)
    got = np.full(want.shape, np.nan, np.float32)
    cache = bind(*model).empty_cache(ROWS, LENGTH + 4)
    start = np.zeros(ROWS, np.int32)
    for n in ([3, 1, 2], [4, 4, 1], [1, 1, 1], [1, 1, 1], [2, 4, 4], [0, 0, 2]):  # at most 4, the rest is padding
        lengths = np.minimum(np.array(n, np.int32), LENGTH - start)
        index = np.minimum(start[:, None] + np.arange(4), LENGTH - 1)
        hidden, cache = extend(params, np.take_along_axis(embeds, index[..., None], 1), cache, lengths)
        for row in range(ROWS):
            got[row, start[row] : start[row] + lengths[row]] = hidden[row, : lengths[row]]
        start = start + lengths
        np.testing.assert_array_equal(cache[2], start)
    np.testing.assert_array_equal(start, LENGTH)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_one_by_one_is_the_full_forward(model, forward, extend, tokens):
    params, embeds = model[1], model[1]["embed"][tokens]
    want = forward(params, embeds, np.full(ROWS, LENGTH, np.int32), True)
    cache, steps = bind(*model).empty_cache(ROWS, LENGTH), []
    for t in range(LENGTH):
        hidden, cache = extend(params, embeds[:, t : t + 1], cache, np.ones(ROWS, np.int32))
        steps.append(hidden[:, 0])
    np.testing.assert_allclose(np.stack(steps, 1), want, atol=1e-5)


def test_suffixes_on_a_broadcast_prefix(model, forward, extend, tokens):
    """What choice scoring does: one prefix is run once, its cache repeated for every suffix."""
    params, embeds, prefix = model[1], model[1]["embed"][tokens], 5
    whole = np.concatenate([np.repeat(embeds[:1, :prefix], ROWS, 0), embeds[:, prefix:]], 1)
    want = forward(params, whole, LENGTHS.clip(prefix + 1), True)
    hidden, cache = extend(params, embeds[:1, :prefix], bind(*model).empty_cache(1, LENGTH), np.array([prefix], np.int32))
    np.testing.assert_allclose(hidden[0], want[0, :prefix], atol=1e-5)
    cache = (*(np.repeat(x, ROWS, 1) for x in cache[:2]), np.repeat(cache[2], ROWS))
    lengths = LENGTHS.clip(prefix + 1) - prefix
    hidden, cache = extend(params, embeds[:, prefix:], cache, lengths.astype(np.int32))
    np.testing.assert_array_equal(cache[2], prefix + lengths)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(hidden[row, :n], want[row, prefix : prefix + n], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("empty", [False, True], ids=["decode", "prefill"])
def test_a_compiled_step_holds_the_cache_once(dtype, empty):
    """What a program of a donated cache needs besides it is less than half of it, though it is nearly all that there is."""
    config = dataclasses.replace(CONFIG, width=16, depth=16, heads=2, mlp=16, lora_rank=0)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
    cache = jax.eval_shape(lambda: nnx.merge(graphdef, state).empty_cache(ROWS, 1024, dtype))
    embeds, lengths = jax.ShapeDtypeStruct((ROWS, 1, config.width), dtype), jax.ShapeDtypeStruct((ROWS,), jnp.int32)

    @functools.partial(jax.jit, donate_argnums=2)
    def step(state, embeds, cache, lengths):
        return nnx.merge(graphdef, state).extend(embeds, cache, lengths, empty=empty)

    memory = step.lower(state, embeds, cache, lengths).compile().memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in cache)
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2


def test_tokens_of_an_empty_cache_need_not_read_it(model, extend, tokens):
    params, embeds = model[1], model[1]["embed"][tokens]
    cache = bind(*model).empty_cache(ROWS, LENGTH + 4)
    want, (keys, values, length) = extend(params, embeds, cache, LENGTHS)
    hidden, found = bind(*model).extend(embeds, cache, LENGTHS, empty=True)
    np.testing.assert_allclose(hidden, want, atol=1e-5)  # of the padding as well
    for a, b in zip(found, (keys, values, length), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_cache_in_bfloat16_keeps_its_dtype(model, extend, tokens):
    cache = bind(*model).empty_cache(ROWS, LENGTH, jnp.bfloat16)
    embeds = model[1]["embed"][tokens].astype(jnp.bfloat16)
    hidden, cache = extend(model[1], embeds, cache, LENGTHS)
    assert hidden.dtype == cache[0].dtype == cache[1].dtype == jnp.bfloat16


def test_bfloat16_is_close_to_float32(model, forward, tokens):
    embeds = model[1]["embed"][tokens]
    low = forward(model[1], embeds.astype(jnp.bfloat16), LENGTHS, True)
    assert low.dtype == jnp.bfloat16
    high = np.asarray(forward(model[1], embeds, LENGTHS, True))
    assert np.abs(low.astype(jnp.float32) - high).max() < 0.05 * np.abs(high).max()


def test_dropout_needs_a_key_and_depends_on_it(model, tokens):
    config = dataclasses.replace(CONFIG, lora_dropout=0.5)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
    params = random_params(SHAPES, adapters=True)
    run = jax.jit(lambda key: bind(graphdef, params)(params["embed"][tokens], LENGTHS, key=key))
    a, b, none = run(jax.random.key(0)), run(jax.random.key(1)), run(None)
    np.testing.assert_array_equal(a, run(jax.random.key(0)))
    assert not np.allclose(a, b)
    assert not np.allclose(a, none)


def test_logits_keep_or_round_their_digits(model):
    """From bf16 states and weights: the sums as they are, or rounded as in a bf16 run (M D38)."""
    hidden = jax.random.normal(jax.random.key(4), (3, CONFIG.width)).astype(jnp.bfloat16)
    model = nnx.merge(*model)
    kernel = np.asarray(model.lm_head.kernel[...].astype(jnp.bfloat16), np.float64)[:, : CONFIG.vocab_size]
    exact = np.asarray(hidden, np.float64) @ kernel
    with jax.default_matmul_precision("highest"):
        kept, low = (model.logits(hidden, dtype)[:, : CONFIG.vocab_size] for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(kept, exact, atol=1e-5)
    np.testing.assert_array_equal(low, np.asarray(low).astype(jnp.bfloat16).astype(np.float32))
    np.testing.assert_allclose(low, exact, rtol=0.02, atol=0.02)
    assert np.abs(low - exact).max() > 1e-4
