import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from model_fixtures import PARTS, micro, random_batch, small_config, small_model
from tpu_fixtures import compiled_text, tpu_mesh

from plum_jax.errors import UserError
from plum_jax.losses import language_loss
from plum_jax.models.llama import Llama
from plum_jax.models.plum import PlumConfig, bind
from plum_jax.objective import make_loss
from plum_jax.planning.traffic import read_traffic
from plum_jax.sharding import batch_sharding, compiler_options, make_mesh, path_name, replicated, split_rows, tree_sharding
from plum_jax.train_step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]
# Adam would turn the sign of a rounding error into a whole step. The trace keeps the gradient in the state, to be compared.
TX = optax.chain(optax.trace(0.0), optax.scale(-0.1))


def mesh_of(sizes):
    return make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))


def specs(tree, mesh):
    found = jax.tree_util.tree_leaves_with_path(tree_sharding(tree, mesh))
    return {path_name(path): sharding.spec for path, sharding in found}


@functools.cache
def task(micro_batches=1):
    """-> loss_fn, count, batches of eight images, one of them without a span."""
    config = small_config()
    config.data.micro_batches = micro_batches
    batches = micro(random_batch(config, images=8, conversations=1), micro_batches)
    return *make_loss(small_model()[1], config, PARTS), batches


def two_steps(mesh=None, micro_batches=1):
    """-> (metric sums of the second step, parameters after it, its gradients) on `mesh`, or on one device."""
    loss_fn, count, batches = task(micro_batches)
    params = jax.tree.map(jnp.array, small_model()[2])
    state, frozen, sharding = init_state(params, TX), {}, None
    if mesh is not None:
        sharding = tree_sharding(state, mesh)
        state = jax.device_put(state, sharding)
        batches = jax.device_put(batches, batch_sharding(mesh))
    step = make_train_step(loss_fn, count, TX, sharding)
    for _ in range(2):
        state, sums = step(state, frozen, batches, jax.random.key(0))
    assert sharding is None or jax.tree.map(lambda x: x.sharding, state) == sharding
    assert step._cache_size() == 1, "the second step was compiled again"
    return jax.device_get((sums, state.params, state.opt_state[0].trace))


@pytest.fixture(scope="module")
def single():
    return two_steps()


@pytest.mark.parametrize("sizes, micro_batches", [*((sizes, 1) for sizes in MESHES), ((2, 1, 4), 4)], ids=str)
def test_any_mesh_and_number_of_micro_batches_computes_the_same(single, sizes, micro_batches):
    with jax.set_mesh(mesh_of(sizes)):
        got = two_steps(mesh_of(sizes), micro_batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, single)


def test_the_language_loss_gathers_no_logits():
    vocabulary, rows = 64, 4
    kernel = jax.ShapeDtypeStruct((16, vocabulary), jnp.float32)
    hidden, tokens = jax.ShapeDtypeStruct((rows, 12, 16), jnp.float32), jax.ShapeDtypeStruct((rows, 12), jnp.int32)
    mesh = mesh_of((2, 1, 4))

    def loss(kernel, hidden, tokens):
        logits = split_rows(hidden @ kernel, last="tensor")
        return language_loss(logits, tokens, jnp.ones(tokens.shape))[0]

    where = tree_sharding({"llama": {"lm_head": {"kernel": kernel}}}, mesh)["llama"]["lm_head"]["kernel"]
    by_row = NamedSharding(mesh, P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss, (0, 1)), in_shardings=(where, by_row, by_row)).lower(kernel, hidden, tokens).compile()
    text = program.as_text()
    assert f"{vocabulary // 4}]" in text  # a device's share of the logits
    assert not re.findall(rf"f32\[[\d,]*\b{vocabulary}\]", text)  # all of them are nowhere


@pytest.mark.parametrize("empty", [True, False])
def test_keys_and_values_are_written_where_their_rows_lie(empty):
    """Prompts into an empty cache, or one token of every row behind its own: no device gets another's rows or positions."""
    rows, size, new, mesh = 40, 19, 7 if empty else 1, mesh_of((1, 8, 1))
    config = dataclasses.replace(PlumConfig.from_dict(small_config().model).llama, depth=5)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
    params, head = nnx.to_pure_dict(state), config.width // config.heads
    by_row = NamedSharding(mesh, P(None, ("data", "fsdp")))
    cache = jax.ShapeDtypeStruct((config.depth, rows, config.heads, size, head), jnp.float32, sharding=by_row)
    embeds, start = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
        for shape, dtype in (((rows, new, config.width), jnp.float32), ((rows,), jnp.int32))
    )

    def extend(params, embeds, keys, values, start):
        return bind(graphdef, params).extend(embeds, (keys, values, start), jnp.full_like(start, new), empty=empty)

    where = tree_sharding({"llama": params}, mesh)["llama"]
    with jax.set_mesh(mesh):
        jitted = jax.jit(extend, in_shardings=(where, None, None, None, None))
        text = jitted.lower(params, embeds, cache, cache, start).compile().as_text()
    gathered = read_traffic(text).gathered
    assert any(set(dims) >= {config.width, config.mlp} for dims, _ in gathered)  # kernels are, one layer at a time
    assert not [dims for dims, _ in gathered if rows in dims]


def test_initialising_sharded_gives_the_same_numbers():
    config = small_model()[0].llama
    init = lambda: {"llama": nnx.to_pure_dict(nnx.state(Llama(config, nnx.Rngs(0))))}  # noqa: E731
    mesh = mesh_of((2, 2, 2))
    sharded = jax.jit(init, out_shardings=tree_sharding(jax.eval_shape(init), mesh))()
    embed = sharded["llama"]["embed"]
    assert embed.sharding.spec == P("tensor", "fsdp")
    assert embed.addressable_shards[0].data.shape == (embed.shape[0] // 2, embed.shape[1] // 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sharded, jax.jit(init)())


def test_rules_split_every_tower_and_leave_what_every_span_reads_whole():
    got = specs(small_model()[2], mesh_of((2, 2, 2)))
    assert got["llama/embed"] == P("tensor", "fsdp")
    assert got["llama/lm_head/kernel"] == got["projector/kernel"] == got["span_projector/hidden/kernel"] == P("fsdp", "tensor")
    assert got["llama/layers/q_proj/lora_b"] == P(None, None, "tensor")
    layers = ("llama/layers", "clip/layers", "sam_encoder/global_blocks/attention", "sam_encoder/window_blocks/attention")
    for layer in layers:
        out = "o_proj" if layer.startswith("llama") else "out_proj"
        assert got[f"{layer}/q_proj/kernel"] == P(None, "fsdp", "tensor")
        assert got[f"{layer}/{out}/kernel"] == P(None, "tensor", "fsdp")
    assert got["span_tagger/encoder/linear1/kernel"] == P("fsdp", "tensor")
    assert got["span_tagger/encoder/linear2/kernel"] == P("tensor", "fsdp")
    parts = ("mask_decoder/", "prompt_encoder/", "feedback/")
    assert not [path for path, spec in got.items() if path.startswith(parts) and any(spec)]
    whole = [path for path, spec in got.items() if path.endswith("/kernel") and not path.startswith(parts) and not any(spec)]
    assert sorted(whole) == [  # convolutions, and products that are 3 or 256 wide
        "clip/patch_embed/kernel", "sam_encoder/neck1/kernel", "sam_encoder/patch_embed/kernel", "span_projector/out/kernel",
        "span_tagger/out/kernel",
    ]  # fmt: skip


def test_optimizer_state_follows_its_parameters():
    params = small_model()[2]
    got = specs(jax.eval_shape(optax.adam(1e-3).init, params), mesh_of((1, 4, 2)))
    assert got["0/mu/llama/embed"] == got["0/nu/llama/embed"] == P("tensor", "fsdp")
    assert got["0/count"] == P()


def test_an_axis_that_does_not_divide_stays_whole():
    tree = {"llama": {"lm_head": {"kernel": jax.ShapeDtypeStruct((12, 30), jnp.float32)}}}
    assert specs(tree, mesh_of((1, 8, 1))) == {"llama/lm_head/kernel": P(None, "tensor")}
    assert specs(tree, mesh_of((1, 4, 2))) == {"llama/lm_head/kernel": P("fsdp", "tensor")}


def test_mesh_sizes():
    assert dict(make_mesh({"data": -1, "fsdp": 2, "tensor": 2}).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert replicated(mesh_of((8, 1, 1))).spec == P()
    with pytest.raises(UserError, match="8 devices"):
        make_mesh({"data": 3, "fsdp": 1, "tensor": 1})
    with pytest.raises(UserError, match="8 devices"):
        make_mesh({"data": -1, "fsdp": 3, "tensor": 1})


def test_a_split_kernel_is_gathered_on_a_tpu_and_not_multiplied_piece_by_piece():
    """Compiled for a topology. Without the option the compiler sends the pieces round in a ring of permutes."""
    mesh = tpu_mesh(1, 8, 1)
    split = NamedSharding(mesh, P("fsdp"))
    rows, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for shape in ((16384, 8192), (8192, 65536)))
    found = []
    for options in (None, compiler_options(mesh)):
        program = jax.jit(jnp.matmul, out_shardings=split, compiler_options=options).lower(rows, kernel)
        found.append(" collective-permute-start(" in compiled_text(program))
    assert found == [True, False]
    assert compiler_options(make_mesh({"data": -1, "fsdp": 1, "tensor": 1})) is None
