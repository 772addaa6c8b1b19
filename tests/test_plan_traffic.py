"""The HLO of real programs for eight CPU devices: known collectives, loops, bytes; and texts that only a TPU writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from plum_jax.planning import hlo
from plum_jax.planning.traffic import read_traffic, whole_parameters
from plum_jax.sharding import make_mesh

LAYERS, WIDTH = 6, 32


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1, "fsdp": 8, "tensor": 1})


def compiled(function, mesh, *args, out=None):
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, out_shardings=out).lower(*args)
    return lowered.compile().as_text()


def placed(mesh, spec, *shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))


def layers(mesh, x, w, whole=False):
    if whole:
        w = jax.lax.with_sharding_constraint(w, P())

    def layer(x, w):
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), P("fsdp")), None

    return jax.lax.scan(layer, x, w)[0]


def test_a_sum_over_devices(mesh):
    total = lambda x: x.sum(0)  # noqa: E731
    found = read_traffic(compiled(total, mesh, placed(mesh, P("fsdp"), 64, 128), out=NamedSharding(mesh, P())))
    assert found.collectives.keys() == {"all-reduce"}
    counts = found.collectives["all-reduce"]
    assert counts["count"] == 1 and counts["bytes"] == 128 * 4
    assert counts["moved"] == pytest.approx(2 * 128 * 4 * 7 / 8)


def test_layers_are_gathered_one_by_one(mesh):
    args = placed(mesh, P("fsdp"), 16, WIDTH), placed(mesh, P(None, "fsdp"), LAYERS, WIDTH, WIDTH)
    found = read_traffic(compiled(lambda x, w: layers(mesh, x, w), mesh, *args))
    gathers = found.collectives["all-gather"]
    assert gathers["count"] == LAYERS  # one a turn of the loop
    assert gathers["bytes"] == LAYERS * WIDTH * WIDTH * 4
    assert gathers["moved"] == pytest.approx(gathers["bytes"] * 7 / 8)
    assert whole_parameters(found.gathered, {"layers/kernel": {(LAYERS, WIDTH, WIDTH)}}) == []


def test_all_layers_gathered_at_once_are_reported(mesh):
    args = placed(mesh, P("fsdp"), 16, WIDTH), placed(mesh, P(None, "fsdp"), LAYERS, WIDTH, WIDTH)
    found = read_traffic(compiled(lambda x, w: layers(mesh, x, w, whole=True), mesh, *args))
    [fault] = whole_parameters(found.gathered, {"layers/kernel": {(LAYERS, WIDTH, WIDTH)}})
    assert fault["parameter"] == "layers/kernel" and fault["times"] == 1
    assert np.prod(fault["shape"]) == LAYERS * WIDTH * WIDTH


def test_a_whole_parameter_may_still_be_split_over_tensor():
    parameters = {"q_proj/kernel": {(6, 32, 64), (6, 32, 16)}}
    for dims in ((6, 32, 16), (32, 6, 64), (1, 2, 3, 4, 8, 16)):  # in any order, with axes that were taken apart
        fault = {"parameter": "q_proj/kernel", "shape": list(dims), "times": 2}
        assert whole_parameters([(dims, 2)], parameters) == [fault]
    others = ((32, 16), 12), ((6, 32, 2), 1), ((96, 32), 1), ((6, 8, 64), 1)  # the last has 6 heads: as large, of one layer
    assert whole_parameters(others, parameters) == []


def test_memory_of_a_loop_counts_the_slice_of_every_turn(mesh):
    x, w = jnp.zeros((8, 256)), jnp.zeros((16, 256, 256))
    text = jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]).lower(x, w).compile().as_text()
    moved = read_traffic(text).memory_bytes
    assert (
        w.nbytes <= moved < 4 * w.nbytes
    )  # read, written as a slice, read again; whole arrays in every turn would be sixteen times that


TPU_TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

%cond (state: (u32[], f32[8])) -> pred[] {
  %state = (u32[]{:T(128)}, f32[8]{0}) parameter(0)
  %at = u32[]{:T(128)} get-tuple-element(%state), index=0
  %limit = u32[]{:T(128)} constant(5)
  ROOT %more = pred[]{:T(512)} compare(%at, %limit), direction=LT
}

%body (state.1: (u32[], f32[8])) -> (u32[], f32[8]) {
  %state.1 = (u32[]{:T(128)}, f32[8]{0}) parameter(0)
  %at.1 = u32[]{:T(128)} get-tuple-element(%state.1), index=0
  %x = f32[8]{0:T(256)} get-tuple-element(%state.1), index=1
  %sent = (f32[8]{0:T(256)}, f32[8]{0:T(256)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1
  %got = f32[8]{0:T(256)S(1)} collective-permute-done(%sent)
  %all = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %gathered = f32[32]{0} all-gather-done(%all)
  ROOT %next = (u32[]{:T(128)}, f32[8]{0}) tuple(%at.1, %x)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(256)} parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %start = (u32[]{:T(128)}, f32[8]{0}) tuple(%zero, %p)
  %loop = (u32[]{:T(128)}, f32[8]{0}) while(%start), condition=%cond, body=%body
  ROOT %out = f32[8]{0:T(256)} get-tuple-element(%loop), index=1
}
"""


def test_loops_of_unsigned_counters_and_asynchronous_collectives():
    module = hlo.parse(TPU_TEXT)
    assert module.entry == "main" and hlo.runs(module) == {"main": 1, "body": 5}
    found = read_traffic(TPU_TEXT)
    assert found.collectives["collective-permute"] == {"count": 5, "bytes": 5 * 32, "moved": 5 * 32}
    assert found.collectives["all-gather"] == {"count": 5, "bytes": 5 * 128, "moved": 5 * 96}
    assert found.gathered == [((32,), 5)]


def test_arrays_of_a_shape():
    arrays = hlo.arrays_of("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[4]{0}, s32[], f8e4m3fn[16]{0})")
    assert [(x.dims, x.bytes, x.on_chip) for x in arrays] == [
        ((2, 3), 12, True), ((4,), 4, False), ((), 4, False), ((16,), 16, False),
    ]  # fmt: skip


SPREAD = """HloModule jit_step, is_scheduled=true, num_partitions=8

%start_it (a: bf16[2,64]) -> (bf16[2,64], bf16[8,64], u32[]) {
  %a = bf16[2,64]{1,0:T(8,128)S(1)} parameter(0)
  %gather.1 = bf16[8,64]{1,0} all-gather(%a), channel_id=3, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
  ROOT %call.1 = (bf16[2,64]{1,0:S(1)}, bf16[8,64]{1,0}, u32[]{:S(2)}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside_it (b: bf16[2,64], c: bf16[8,64], d: f32[16]) -> (f32[16], bf16[2,64], bf16[8,64]) {
  %b = bf16[2,64]{1,0:S(1)} parameter(0)
  %c = bf16[8,64]{1,0} parameter(1)
  %d = f32[16]{0} parameter(2)
  %gather.2 = bf16[8,64]{1,0} all-gather(%b), channel_id=3, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
  %call.2 = (bf16[2,64]{1,0:S(1)}, bf16[8,64]{1,0}) custom-call(%b, %c, %gather.2), custom_call_target="AsyncCollectiveDone"
  %b.1 = bf16[2,64]{1,0:S(1)} get-tuple-element(%call.2), index=0
  %c.1 = bf16[8,64]{1,0} get-tuple-element(%call.2), index=1
  %twice = f32[16]{0} add(%d, %d)
  ROOT %all = (f32[16]{0}, bf16[2,64]{1,0:S(1)}, bf16[8,64]{1,0}) tuple(%twice, %b.1, %c.1)
}

ENTRY %main (p: bf16[2,64], q: f32[16]) -> f32[16] {
  %p = bf16[2,64]{1,0:T(8,128)S(1)} parameter(0)
  %q = f32[16]{0} parameter(1)
  %started = (bf16[2,64]{1,0:S(1)}, bf16[8,64]{1,0}, u32[]{:S(2)}) fusion(%p), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%start_it
  %own = bf16[2,64]{1,0:S(1)} get-tuple-element(%started), index=0
  %buffer = bf16[8,64]{1,0} get-tuple-element(%started), index=1
  %both = (f32[16]{0}, bf16[2,64]{1,0:S(1)}, bf16[8,64]{1,0}) fusion(%own, %buffer, %q), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%beside_it
  ROOT %out = f32[16]{0} get-tuple-element(%both), index=0
}
"""  # noqa: E501


def test_a_collective_that_is_spread_over_fusions_counts_once():
    found = read_traffic(SPREAD)
    assert found.collectives == {"all-gather": {"count": 1, "bytes": 1024, "moved": 768}}  # three of four shares come in
    assert found.gathered == [((8, 64), 1)]
    assert found.memory_bytes == 1024 + 2 * 64  # the gathered array once, and the sum beside it


def test_an_update_in_place_counts_the_part_that_is_written():
    def step(cache, new, at):
        return jax.lax.dynamic_update_slice(cache, new + jax.lax.dynamic_slice(cache, (at, 0), (1, 256)), (at, 0))

    args = jax.ShapeDtypeStruct((4096, 256), jnp.float32), jax.ShapeDtypeStruct((1, 256), jnp.float32), 3
    text = jax.jit(step, donate_argnums=0).lower(*args).compile().as_text()
    assert read_traffic(text).memory_bytes < 16 * 1024  # of four million
