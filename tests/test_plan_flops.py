"""FLOPs against counts by hand, loops and kernels included; what a backward pass keeps."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from plum_jax.planning.flops import count_flops, kept_bytes
from plum_jax.sharding import make_mesh


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def flops(function, *args):
    return count_flops(jax.make_jaxpr(function)(*args))


@pytest.mark.parametrize(
    ("function", "shapes", "want"),
    [
        (lambda a, b: a @ b, [(8, 16), (16, 4)], 2 * 8 * 16 * 4),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [(3, 8, 16), (3, 16, 4)], 3 * 2 * 8 * 16 * 4),
        (lambda a, b: jnp.tanh(jax.jit(jnp.matmul)(a, b)).sum(), [(8, 16), (16, 4)], 2 * 8 * 16 * 4),
        (lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=7)[0], [(8, 8)], 7 * 2 * 8**3),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x), [(8, 8)], 2 * 8**3),
        (lambda x: jax.lax.map(lambda r: jax.lax.scan(lambda c, _: (c @ c, None), r, length=3)[0], x), [(5, 4, 4)], 15 * 128),
        (lambda a, b: a + b, [(8, 8), (8, 8)], 0),
    ],
    ids=("product", "batched", "nested", "scan", "cond", "scan in scan", "sum"),
)
def test_counts(function, shapes, want):
    assert flops(function, *(array(*shape) for shape in shapes)) == want


def test_convolutions():
    conv = functools.partial(jax.lax.conv_general_dilated, padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    patches = lambda x, k: conv(x, k, (4, 4))  # noqa: E731
    assert flops(patches, array(2, 16, 16, 3), array(4, 4, 3, 10)) == 2 * (2 * 4 * 4 * 10) * (4 * 4 * 3)
    depthwise = lambda x, k: conv(x, k, (1, 1), feature_group_count=6)  # noqa: E731
    assert flops(depthwise, array(1, 8, 8, 6), array(3, 3, 1, 6)) == 2 * (6 * 6 * 6) * 9


def test_a_gradient_counts_twice_and_remat_once_more():
    def loss(w, x, *, remat):
        layer = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w)[0].sum()

    forward = 6 * 2 * 4 * 8 * 8
    for remat, times in ((False, 3), (True, 4)):
        assert flops(jax.grad(functools.partial(loss, remat=remat)), array(6, 8, 8), array(4, 8)) == times * forward


def test_what_the_backward_pass_keeps():
    def loss(w, x, remat):
        layer = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w)[0].sum()

    def kept(remat):
        return kept_bytes(jax.make_jaxpr(jax.grad(functools.partial(loss, remat=remat)))(array(6, 8, 8), array(4, 8)))

    layer = 6 * 4 * 8 * 4  # bytes of the input of every layer
    assert kept(True) == layer
    assert layer < kept(False) <= 3 * layer

    def micro(w, xs):  # one micro-batch after the other: what one keeps is free again for the next
        return jax.lax.scan(lambda total, x: (total + jax.grad(loss)(w, x, True), None), jnp.zeros((6, 8, 8)), xs)[0]

    assert kept_bytes(jax.make_jaxpr(micro)(array(6, 8, 8), array(5, 4, 8))) == layer


def test_shares_of_devices_and_of_blocks_count_as_often_as_there_are():
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    split = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert flops(split, array(16, 4), array(4, 4)) == 2 * 16 * 4 * 4

    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    def blocks(a, b):
        rows, whole = pl.BlockSpec((8, 16), lambda i: (i, 0)), pl.BlockSpec((16, 8), lambda i: (0, 0))
        out = pl.BlockSpec((8, 8), lambda i: (i, 0))
        return pl.pallas_call(kernel, grid=(4,), in_specs=[rows, whole], out_specs=out, out_shape=array(32, 8), interpret=True)(
            a, b
        )

    assert flops(blocks, array(32, 16), array(16, 8)) == 2 * 32 * 16 * 8
