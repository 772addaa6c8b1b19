"""Every kernel of `attention` against the plain formula: the TPU's interpreted and compiled, cuDNN's as far as its lowering."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_fixtures import compiled_text, kernels_in, tpu_mesh

from plum_jax.models import attention, splash
from plum_jax.models.dense_attention import dense_attention


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def plain_attention(q, k, v, allowed, bias=0.0):
    """Float64 loops over batch and heads; allowed bool[B, T, S]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for n in range(q.shape[2]):
            m = n * k.shape[2] // q.shape[2]
            logit = q[b, :, n] @ k[b, :, m].T / q.shape[-1] ** 0.5 + np.broadcast_to(bias, (q.shape[0], q.shape[2], 1, 1))[b, n]
            weight = np.where(allowed[b], np.exp(logit - logit.max(-1, keepdims=True)), 0)
            out[b, :, n] = weight / weight.sum(-1, keepdims=True) @ v[b, :, m]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_lengths(causal):
    q, k, v = array(0, 2, 6, 4, 5), array(1, 2, 6, 2, 5), array(2, 2, 6, 2, 5)
    lengths = jnp.array([6, 3], jnp.int32)
    allowed = np.arange(6)[None, None] < np.asarray(lengths)[:, None, None]
    allowed = allowed & (np.tri(6, dtype=bool) if causal else True)
    got = attention.attention(q, k, v, causal=causal, lengths=lengths)
    np.testing.assert_allclose(got, plain_attention(q, k, v, np.broadcast_to(allowed, (2, 6, 6))), atol=1e-5)


def test_attention_with_bias_and_with_mask():
    q, k, v, bias = array(0, 2, 3, 2, 4), array(1, 2, 7, 2, 4), array(2, 2, 7, 2, 4), array(3, 2, 2, 3, 7)
    everything = np.ones((2, 3, 7), bool)
    want = np.stack([
        plain_attention(q[:, t : t + 1], k, v, everything[:, t : t + 1], bias=0)[:, 0] for t in range(3)
    ], 1)  # fmt: skip
    np.testing.assert_allclose(attention.attention(q, k, v), want, atol=1e-5)
    weight = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) / 2 + bias)
    got = dense_attention(q, k, v, (bias[..., None, :],))
    np.testing.assert_allclose(got, jnp.einsum("bnts,bsnh->btnh", weight, v), atol=1e-5)
    mask = np.random.default_rng(4).random((2, 1, 3, 7)) < 0.5
    mask[..., 0] = True
    np.testing.assert_allclose(attention.attention(q, k, v, mask=mask), plain_attention(q, k, v, mask[:, 0]), atol=1e-5)


def test_attention_of_an_empty_row_is_finite():
    q = array(0, 2, 4, 1, 8)

    def total(q):
        return attention.attention(q, q, q, causal=True, lengths=jnp.array([0, 4], jnp.int32)).sum()

    value, grad = jax.value_and_grad(total)(q)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


CASES = {  # queries, keys, heads, key heads, head size, causal, lengths
    "causal, two blocks": (200, 200, 2, 2, 16, True, None),
    "causal, lengths, shared key heads": (200, 200, 4, 2, 8, True, (1, 77, 200)),
    "keys padded to a block": (130, 140, 2, 2, 80, False, None),
    "lengths, more keys than queries": (128, 256, 2, 1, 64, False, (1, 77, 256)),
}


@pytest.mark.parametrize("case", CASES)
def test_splash_attention_equals_the_formula_forward_and_backward(monkeypatch, case):
    """Padding queries and rows of one valid key included: their values are compared like all others."""
    queries, keys, heads, key_heads, size, causal, lengths = CASES[case]
    monkeypatch.setattr(splash, "LARGEST_BLOCK", 128)
    lengths = None if lengths is None else jnp.array(lengths, jnp.int32)
    b = 1 if lengths is None else 3
    q, out = array(0, b, queries, heads, size), array(3, b, queries, heads, size)
    k, v = array(1, b, keys, key_heads, size), array(2, b, keys, key_heads, size)

    def gradients(function):
        value, pull = jax.vjp(lambda *arrays: function(*arrays, lengths, causal=causal), q, k, v)
        return value, pull(out)

    got, got_gradients = jax.jit(lambda: gradients(functools.partial(splash.splash_attention, interpret=True)))()
    want, want_gradients = jax.jit(lambda: gradients(formula))()
    np.testing.assert_allclose(got, want, atol=2e-6)
    for a, b in zip(got_gradients, want_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


def formula(q, k, v, lengths, *, causal):
    """`attention` as the equations say it, in float32."""
    with jax.default_matmul_precision("highest"):
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) / q.shape[-1] ** 0.5
        seen = jnp.arange(k.shape[1]) <= jnp.arange(q.shape[1])[:, None] if causal else jnp.bool_(True)
        if lengths is not None:
            seen = seen & (jnp.arange(k.shape[1]) < lengths[:, None])[:, None, None]
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), v)


def test_blocks_are_equal_whole_lanes_and_waste_little():
    assert [splash.block_size(n) for n in (1, 128, 129, 512, 513, 577, 1100, 4096)] == [128, 128, 256, 512, 384, 384, 384, 512]


def interpreted(q, k, *, causal=False, scale=None):
    """In place of attention.fused: the TPU's kernel as that of CPU programs."""
    kernel = functools.partial(splash.splash_attention, causal=causal, scale=scale, interpret=True)
    return {"cpu": functools.partial(attention.over_mesh, kernel)}


def layer(x, w, lengths):
    """[B, T, D], [3, D, D] -> [B, T, D] with 2 heads."""
    q, k, v = ((x @ w[i]).reshape(*x.shape[:2], 2, -1) for i in range(3))
    return x + attention.attention(q, k, v, causal=True, lengths=lengths).reshape(x.shape)


def stacked_loss(ws, x, lengths):
    """Sum over a scan of rematerialised layers."""
    body = jax.checkpoint(lambda x, w: (layer(x, w, lengths), None), prevent_cse=False)
    return jnp.sin(jax.lax.scan(body, x, ws)[0]).sum()


def test_a_kernel_goes_through_grad_scan_remat_and_vmap(monkeypatch):
    ws, x, lengths = array(0, 2, 3, 8, 8) / 3, array(1, 2, 3, 130, 8), jnp.array([[130, 3, 0], [1, 77, 130]], jnp.int32)
    step = lambda: jax.jit(jax.vmap(jax.value_and_grad(stacked_loss), (None, 0, 0)))(ws, x, lengths)  # noqa: E731
    want, want_gradient = step()
    jax.clear_caches()
    monkeypatch.setattr(attention, "fused", interpreted)
    assert "pallas_call" in str(jax.make_jaxpr(layer)(x[0], ws[0], lengths[0]))
    got, got_gradient = step()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(got_gradient, want_gradient, atol=2e-6 * np.abs(want_gradient).max())


@pytest.mark.parametrize(
    ("sizes", "rows", "heads", "shape"),
    [((2, 2, 2), 4, 4, (1, 128, 2, 8)), ((2, 2, 2), 2, 3, (1, 128, 3, 8)), ((4, 1, 2), 3, 2, (3, 128, 1, 8))],
)
def test_every_device_has_its_rows_and_heads_where_they_divide(sizes, rows, heads, shape):
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    q, k, v = (array(i, rows, 128, heads, 8) for i in range(3))
    lengths, shapes = jnp.arange(1, rows + 1), []

    def kernel(q, k, v, lengths):
        shapes.append(q.shape)
        return formula(q, k, v, lengths, causal=True)

    want = formula(q, k, v, lengths, causal=True)
    with jax.set_mesh(mesh):
        got = jax.jit(functools.partial(attention.over_mesh, kernel))(q, k, v, lengths)
        np.testing.assert_allclose(got, want, atol=1e-6)
        assert shapes == [shape]
        inside = jax.shard_map(  # one that has split the rows already
            functools.partial(attention.over_mesh, kernel), in_specs=P(), out_specs=P(), check_vma=False
        )
        np.testing.assert_allclose(jax.jit(inside)(q, k, v, lengths), want, atol=1e-6)
        assert shapes[1:] == [q.shape]
    attention.over_mesh(kernel, q, k, v, lengths)
    assert shapes[2:] == [q.shape]


def test_a_program_for_a_tpu_has_its_kernels_and_exchanges_nothing_in_them():
    """Compiled for a topology: forward, and both kernels of the backward pass; a machine without TPU does not run it."""
    mesh = tpu_mesh(2, 2, 2)
    split = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    x = jax.ShapeDtypeStruct((4, 300, 2, 80), jnp.bfloat16, sharding=split)
    lengths = jax.ShapeDtypeStruct((4,), jnp.int32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))

    def gradient(q, k, v, lengths):
        run = functools.partial(attention.attention, causal=True, lengths=lengths)
        return jax.grad(lambda *arrays: run(*arrays).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

    with jax.set_mesh(mesh):
        text = compiled_text(jax.jit(gradient, out_shardings=split).lower(x, x, x, lengths))
    assert kernels_in(text) == 3
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if f" {word}" in text]


@pytest.mark.parametrize(
    ("dtype", "queries", "given"), [("float32", 256, {}), ("bfloat16", 7, {}), ("bfloat16", 256, {"mask": True})]
)
def test_what_the_kernels_do_not_take_is_left_to_the_formula(monkeypatch, dtype, queries, given):
    monkeypatch.setattr(attention, "_tpu_in_reach", lambda: True)
    x, y = (jnp.zeros((2, t, 2, 64), dtype) for t in (queries, 256))
    given = {name: jnp.full((2, 1, queries, 256), value) for name, value in given.items()}
    assert "pallas_call" not in str(jax.make_jaxpr(lambda: attention.attention(x, y, y, **given))())
    x = x.astype(jnp.bfloat16)
    if queries > 128:
        assert "pallas_call" in str(jax.make_jaxpr(lambda: attention.attention(x, x, x))())


@pytest.fixture
def hopper(monkeypatch):
    """This machine as one with a Hopper GPU and cuDNN, as far as lowering goes."""
    from jax._src.cudnn import fused_attention_stablehlo as lowering

    monkeypatch.setattr(attention, "_cuda_capability", lambda: (9, 0))
    monkeypatch.setattr(lowering, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(lowering, "check_compute_capability", lambda capability: True)


def lowered(function, *arrays, platform):
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_program_for_cuda_calls_cudnn_and_one_for_cpu_does_not(hopper, tensor):
    mesh = jax.make_mesh((8 // tensor, 1, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    x, lengths = jnp.zeros((8, 6, 2, 64), jnp.bfloat16), jnp.arange(8, dtype=jnp.int32)

    def gradient(x, lengths):
        run = functools.partial(attention.attention, causal=True, lengths=lengths)
        return jax.grad(lambda x: run(x, x, x).astype(jnp.float32).sum())(x)

    with jax.set_mesh(mesh):
        cuda = lowered(gradient, x, lengths, platform="cuda")
        assert "__cudnn$fmhaSoftmax(" in cuda and "__cudnn$fmhaSoftmaxBackward(" in cuda
        assert "PADDING_CAUSAL" in cuda  # lengths and order, not a bias of T x T
        assert "__cudnn" not in lowered(gradient, x, lengths, platform="cpu")
    assert "__cudnn" not in lowered(gradient, x.astype(jnp.float32), lengths, platform="cuda")
    assert "__cudnn" not in lowered(gradient, jnp.zeros((8, 6, 2, 60), jnp.bfloat16), lengths, platform="cuda")


def test_heads_over_128_are_cudnns_on_hopper_alone(hopper, monkeypatch):
    x = jnp.zeros((1, 6, 2, 208), jnp.bfloat16)
    assert "__cudnn" in lowered(lambda x: attention.attention(x, x, x), x, platform="cuda")
    monkeypatch.setattr(attention, "_cuda_capability", lambda: (8, 0))
    assert "__cudnn" not in lowered(lambda x: attention.attention(x, x, x), x, platform="cuda")
    monkeypatch.setattr(attention, "_cuda_capability", lambda: (7, 5))
    assert not attention.fused(x[..., :64], x[..., :64])


def test_a_batch_that_is_a_symbol_is_exported_without_a_kernel_for_all_platforms(hopper, monkeypatch):
    monkeypatch.setattr(attention, "_tpu_in_reach", lambda: True)
    shape = jax.export.symbolic_shape("b, 128, 2, 64")
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    run = jax.jit(lambda x: attention.attention(x, x, x, causal=True))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(x)
    assert not [name for name in ("tpu_custom_call", "__cudnn") if name in exported.mlir_module()]
    y = array(0, 3, 128, 2, 64).astype(jnp.bfloat16)
    got = exported.call(y).astype(jnp.float32)
    np.testing.assert_array_equal(got, attention.attention(y, y, y, causal=True).astype(jnp.float32))
    np.testing.assert_allclose(got, formula(*[y.astype(jnp.float32)] * 3, None, causal=True), atol=0.02)


def dense_gradients(function, q, k, v, parts, out):
    return jax.jit(jax.grad(lambda *arrays: (function(*arrays) * out).sum(), argnums=(0, 1, 2, 3)))(q, k, v, parts)


@pytest.mark.parametrize("given", [{}, {"causal": True, "lengths": (6, 1, 4)}, {"masked": True}], ids=str)
def test_the_gradient_of_the_formula_is_that_of_automatic_differentiation(given):
    """Of queries, keys, values and both parts of a bias, with everything that hides a key."""
    q, k, v, out = array(0, 3, 6, 2, 5), array(1, 3, 6, 2, 5), array(2, 3, 6, 2, 5), array(3, 3, 6, 2, 5)
    parts = array(4, 3, 2, 6, 2, 1), array(5, 3, 2, 6, 1, 3)
    causal, lengths = given.get("causal", False), given.get("lengths")
    lengths = None if lengths is None else jnp.array(lengths, jnp.int32)
    mask = np.random.default_rng(6).random((3, 1, 6, 6)) < 0.5 if given.get("masked") else None
    if mask is not None:
        mask[..., 0] = True

    def plain(q, k, v, parts):
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) / q.shape[-1] ** 0.5 + sum(parts).reshape(3, 2, 6, 6)
        seen = np.ones((3, 1, 6, 6), bool) if mask is None else mask
        seen = seen & (np.tri(6, dtype=bool) if causal else True)
        if lengths is not None:
            seen = seen & (np.arange(6) < np.asarray(lengths)[:, None, None, None])
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), v)

    got = dense_gradients(lambda q, k, v, parts: dense_attention(q, k, v, parts, mask, lengths, causal), q, k, v, parts, out)
    want = dense_gradients(plain, q, k, v, parts, out)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * max(1, np.abs(b).max()))
