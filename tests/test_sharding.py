import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from model_fixtures import PARTS, micro, random_batch, small_config, small_model

from plum_jax.errors import UserError
from plum_jax.models.llama import Llama
from plum_jax.objective import make_loss
from plum_jax.sharding import batch_sharding, make_mesh, path_name, replicated, tree_sharding
from plum_jax.train_step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
TX = optax.sgd(0.1)  # Adam turns the sign of a rounding error into a whole step


def mesh_of(sizes):
    return make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))


def specs(tree, mesh):
    found = jax.tree_util.tree_leaves_with_path(tree_sharding(tree, mesh))
    return {path_name(path): sharding.spec for path, sharding in found}


@pytest.fixture(scope="module")
def task():
    """-> (loss_fn, count), batches of eight images, one of them without a span."""
    config = small_config()
    return make_loss(small_model()[1], config, PARTS), micro(random_batch(config, images=8, conversations=1))


def two_steps(task, mesh):
    """-> (metric sums of the second step, parameters after it) on `mesh`, or on one device."""
    (loss_fn, count), batches = task
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
    return jax.device_get((sums, state.params))


@pytest.fixture(scope="module")
def single(task):
    return two_steps(task, None)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_any_mesh_computes_the_same(task, single, sizes):
    with jax.set_mesh(mesh_of(sizes)):
        got = two_steps(task, mesh_of(sizes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, single)


def test_initialising_sharded_gives_the_same_numbers():
    config = small_model()[0].llama
    init = lambda: {"llama": nnx.to_pure_dict(nnx.state(Llama(config, nnx.Rngs(0))))}  # noqa: E731
    mesh = mesh_of((2, 2, 2))
    sharded = jax.jit(init, out_shardings=tree_sharding(jax.eval_shape(init), mesh))()
    embed = sharded["llama"]["embed"]
    assert embed.sharding.spec == P("tensor", "fsdp")
    assert embed.addressable_shards[0].data.shape == (embed.shape[0] // 2, embed.shape[1] // 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sharded, jax.jit(init)())


def test_rules_reach_the_decoder_and_nothing_else():
    got = specs(small_model()[2], mesh_of((2, 2, 2)))
    assert got["llama/layers/q_proj/kernel"] == got["llama/layers/up_proj/kernel"] == P(None, "fsdp", "tensor")
    assert got["llama/layers/o_proj/kernel"] == got["llama/layers/down_proj/kernel"] == P(None, "tensor", "fsdp")
    assert got["llama/lm_head/kernel"] == P("fsdp", "tensor")
    assert got["llama/layers/q_proj/lora_b"] == P(None, None, "tensor")
    assert {path for path, spec in got.items() if any(spec)} == {
        "llama/embed", "llama/lm_head/kernel", "llama/layers/q_proj/lora_b", "llama/layers/v_proj/lora_b",
        *(f"llama/layers/{n}_proj/kernel" for n in ("q", "k", "v", "o", "gate", "up", "down")),
    }  # fmt: skip


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
