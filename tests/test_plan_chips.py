"""Names of slices, and the devices that a plan is made for."""

import importlib.util
import platform
import sys

import jax
import pytest

from plum_jax.errors import UserError
from plum_jax.planning import chips

SLICES = {  # as Google Cloud names and shapes them
    "v5e-16": ("v5e:4x4", 16), "v5e-64": ("v5e:8x8", 64), "v5e-256": ("v5e:16x16", 256), "v5e-8": ("v5e:2x4", 8),
    "v6e-64": ("v6e:8x8", 64), "v5p-64": ("v5p:2x4x4", 32), "v5p-128": ("v5p:4x4x4", 64), "v4-128": ("v4:4x4x4", 64),
    "v4-32": ("v4:2x2x4", 16), "v5e:4x8": ("v5e:4x8", 32), "v5p:4x4x8": ("v5p:4x4x8", 128), "v6e-1": ("v6e:1x1", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SLICES)
def test_slices_by_name_and_shape(name):
    generation, topology, count = chips.parse_topology(name)
    assert (topology, count) == SLICES[name]
    assert generation in chips.TPUS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v9-16", "give local, or one of v4, v5e, v5p, v6e"),
        ("v5e", "is not known"),
        ("v5e:16", "is not known"),
        ("h100-8", "is not known"),
        ("v5e-12", "is no slice of v5e; give its shape, such as v5e:4x4"),
        ("v4-127", "is no slice of v4"),
        ("v5e-0", "is no slice"),
        ("v5e:4x4x4", "have 2 dimensions, such as v5e:4x4"),
        ("v4:4x4", "have 3 dimensions, such as v4:4x4x4"),
        ("v5e:0x4", "such as v5e:4x4"),
    ],
)
def test_what_is_no_slice_is_named(name, words):
    with pytest.raises(UserError, match="--topology") as raised:
        chips.parse_topology(name)
    assert words in str(raised.value)


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="libtpu is made for this platform only")
def test_a_slice_that_is_not_there_has_its_devices():
    chips.without_accelerator()
    for name, count in (("v5e:2x2", 4), ("v4-16", 8)):
        target = chips.open_target(name)
        assert len(target.devices) == count and {device.platform for device in target.devices} == {"tpu"}
        assert target.memory == target.chip.hbm and target.kind == target.chip.kind
    with pytest.raises(UserError, match="v5e:3x3: libtpu refuses it .*give another shape"):
        chips.open_target("v5e:3x3")


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else find(name, *rest))
    with pytest.raises(UserError, match=r"libtpu, which is missing; pip install 'plum_jax\[plan\]'"):
        chips.open_target("v5e:2x2")


def test_this_machine():
    target = chips.open_target("local")
    assert target.devices == jax.devices() and target.chip is None
    assert 0 < target.memory * len(target.devices) < 1 << 50
