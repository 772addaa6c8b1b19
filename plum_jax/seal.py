"""The seal of a checkpoint: digests of its arrays and of its config, and the row of metrics that was under way.

Orbax keeps checksums of its index, not of the arrays: a flipped bit there would pass as a number. A digest is computed where
the array lies, in one reading of it, and does not depend on how it is split over devices.
"""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from plum_jax.sharding import path_name

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # bytes of an element -> what it is read as


class DamageError(Exception):
    """What was read is not what was written."""


def digests(tree):
    """Nested dictionary of arrays -> {path: 8 hexadecimal digits}. The same on every process and every mesh."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    # One after the other: XLA's CPU client stops the process when collectives of several programs wait for the same threads.
    found = [int(_digest_of(x)) for x in leaves]
    return {path_name(path): f"{value:08x}" for path, value in zip(paths, found, strict=True)}


def _digest_of(x):
    """One program for each shape: far fewer than there are parameters."""
    sharding = getattr(x, "sharding", None)
    return _program(NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else None)(x)


@functools.lru_cache(maxsize=8)
def _program(sharding):
    return jax.jit(digest, out_shardings=sharding)


def digest(x):
    """Array -> uint32[]: the sum modulo 2 ** 32, which no order of adding changes, of a hash of every (value, place).

    A single element that differs is always found, since the hash is a permutation; several are missed once in 2 ** 32.
    """
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    bits = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_mix(bits + place * jnp.uint32(0x9E3779B1)), dtype=jnp.uint32)


def _mix(h):
    """The finalizer of MurmurHash3: a permutation of the 32-bit numbers in which every bit depends on every other."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def seal(state, config_text, window):
    """Text that is stored beside the state and the config.

    Args:
      state: nested dictionary of arrays. config_text: as it is stored. window: JSON value, see `StepMetrics.window_json`.
    """
    body = json.dumps({"arrays": digests(state), "config": _sha256(config_text), "window": window}, sort_keys=True)
    return f"{_sha256(body)}\n{body}"


def read_seal(text):
    """The inverse of `seal`, as a dictionary. DamageError when it is not as it was written."""
    sha256, _, body = text.partition("\n")
    if _sha256(body) != sha256:
        raise DamageError("its seal is damaged")
    return json.loads(body)


def check_config(sealed, config_text):
    if _sha256(config_text) != sealed["config"]:
        raise DamageError("its config is not what was saved")


def check_arrays(sealed, state):
    """DamageError unless all arrays of a nested dictionary are those that were sealed; it may hold some of them only."""
    wrong = [path for path, value in digests(state).items() if sealed["arrays"].get(path) != value]
    if wrong:
        raise DamageError(f"{', '.join(wrong[:3])}{' and others' if len(wrong) > 3 else ''} is not what was saved")


def _sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()
