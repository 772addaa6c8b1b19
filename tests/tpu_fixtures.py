"""Compiling for TPUs that are not there: libtpu's compiler runs on any machine."""

import warnings

from plum_jax.planning.chips import open_target
from plum_jax.sharding import AXES, make_mesh


def tpu_mesh(*sizes, topology="v5e:2x4"):
    """A mesh data, fsdp, tensor over the chips of a topology."""
    return make_mesh(dict(zip(AXES, sizes, strict=True)), open_target(topology).devices)


def compiled_text(lowered):
    """The program as compiled. Caches keep those for TPU but cannot give them back without one, and say so: not here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        return lowered.compile().as_text()


def kernels_in(text):
    """How many Pallas kernels a compiled program calls."""
    return text.count('custom_call_target="tpu_custom_call"')
