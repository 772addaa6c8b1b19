"""Digests do not depend on devices and notice every change; a seal notices changes of itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plum_jax import seal
from plum_jax.sharding import make_mesh, tree_sharding


def some_arrays():
    rng = np.random.default_rng(0)
    return {
        "llama": {"embed": rng.normal(size=(16, 8)).astype(np.float32), "lm_head": {"kernel": jnp.ones((8, 16), jnp.bfloat16)}},
        "count": np.int32(7), "mask": np.array([True, False, True]), "small": np.arange(5, dtype=np.int8),
    }  # fmt: skip


def test_the_same_on_every_mesh():
    tree = some_arrays()
    want = seal.digests(jax.device_put(tree, jax.devices()[0]))
    assert set(want) == {"llama/embed", "llama/lm_head/kernel", "count", "mask", "small"}
    for sizes in (dict(data=8, fsdp=1, tensor=1), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=8, tensor=1)):
        mesh = make_mesh(sizes)
        assert seal.digests(jax.device_put(tree, tree_sharding(tree, mesh))) == want


def test_every_bit_and_every_place_counts():
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    found = {int(seal.digest(jnp.asarray(x)))}
    for place in range(x.size):
        for bit in (0, 13, 31):
            changed = x.reshape(-1).view(np.uint32).copy()
            changed[place] ^= np.uint32(1 << bit)
            found.add(int(seal.digest(jnp.asarray(changed.view(np.float32).reshape(x.shape)))))
    found |= {int(seal.digest(jnp.asarray(other))) for other in (x[::-1].copy(), x[:, ::-1].copy(), np.roll(x, 1))}
    assert len(found) == 1 + 3 * x.size + 3


def test_a_seal_checks_itself_the_config_and_the_arrays():
    tree = jax.device_put(some_arrays())
    text = seal.seal(tree, "the config", {"rows": [[3, {"loss": [0.1, 1.0]}, 0.5]]})
    sealed = seal.read_seal(text)
    assert sealed["window"]["rows"][0][1]["loss"] == [0.1, 1.0]
    seal.check_config(sealed, "the config")
    seal.check_arrays(sealed, tree)
    seal.check_arrays(sealed, {"llama": tree["llama"]})  # a part of them
    with pytest.raises(seal.DamageError, match="its config"):
        seal.check_config(sealed, "The config")
    with pytest.raises(seal.DamageError, match="^count, mask, small and others is not|^count is not"):
        seal.check_arrays(sealed, {**tree, "count": jnp.int32(8)})
    with pytest.raises(seal.DamageError, match="other is not"):
        seal.check_arrays(sealed, {"other": jnp.ones(2)})
    for at in range(0, len(text), 37):
        with pytest.raises(seal.DamageError, match="its seal"):
            seal.read_seal(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
