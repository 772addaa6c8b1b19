import gc
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import blocks as blocks_module
from data_pipelines.blocks import ALIGN, Arrivals, Blocks
from plum_jax.errors import UserError

SHAPES = {
    "pixels": ((3, 5, 7), np.dtype(np.uint8)),
    "weight": ((3, 2), np.dtype(np.float32)),
    "id": ((3,), np.dtype(np.int64)),
    "valid": ((0, 4), np.dtype(bool)),
}


def fill(blocks, seed):
    """-> (what is delivered, copies of its arrays)."""
    block, arrays = blocks.take(SHAPES)
    rng = np.random.default_rng(seed)
    for array in arrays.values():
        array[...] = rng.integers(0, 2**7, array.shape)
    copies = {name: array.copy() for name, array in arrays.items()}
    return blocks.deliver(block, arrays), copies


def assert_equal(arrays, wanted):
    assert arrays.keys() == wanted.keys()
    for name, array in arrays.items():
        assert array.dtype == SHAPES[name][1] and array.ctypes.data % ALIGN == 0
        np.testing.assert_array_equal(array, wanted[name])


def address(arrays):
    return arrays["pixels"].ctypes.data


def test_memory_is_used_again_when_nobody_refers_to_it():
    blocks = Blocks()
    first, wanted = fill(blocks, 0)
    assert_equal(first, wanted)
    place = address(first)
    piece = first["weight"][1:].reshape(-1)[::2]  # a view of a view of a view
    del first
    gc.collect()
    second, _ = fill(blocks, 1)
    assert address(second) != place
    np.testing.assert_array_equal(piece, wanted["weight"][1:].reshape(-1)[::2])
    del piece
    third, wanted = fill(blocks, 2)
    assert address(third) == place
    assert_equal(third, wanted)


def test_every_size_has_its_own_memory():
    blocks = Blocks()
    fill(blocks, 0)
    _, other = blocks.take({"pixels": ((64, 64), np.dtype(np.uint8))})
    assert not other["pixels"].any()  # new memory is zero
    assert len(blocks._blocks) == 2


def test_the_memory_of_a_copy_on_a_device_is_not_used_again():
    """jax may take over aligned arrays of a CPU without copying them: it then refers to them like everyone else."""
    import jax

    blocks = Blocks()
    kept, copies = [], []
    for seed in range(6):
        arrays, wanted = fill(blocks, seed)
        kept.append(jax.device_put({name: arrays[name] for name in ("pixels", "weight")}))
        copies.append(wanted)
        del arrays
    for arrays, wanted in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(arrays["pixels"], wanted["pixels"])
        np.testing.assert_array_equal(arrays["weight"], wanted["weight"])


def _work(pipe, blocks):
    for seed in iter(pipe.recv, None):
        parcel, _ = fill(blocks, seed)
        pipe.send(parcel)
    pipe.send(fill(blocks, 99)[0].name)  # nobody opens this one


@pytest.mark.slow
def test_between_processes():
    """Arrays arrive without a copy, and the worker needs no more memory than is in use at a time."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_work, args=(there, Blocks(shared=True)), daemon=True)
    worker.start()
    arrivals, names = Arrivals(), []

    def receive(seed):
        here.send(seed)
        parcel = here.recv()
        assert len(pickle.dumps(parcel)) < 1000
        names.append(parcel.name)
        arrays = arrivals.open(parcel)
        assert_equal(arrays, fill(Blocks(), seed)[1])
        return arrays

    for seed in range(5):
        receive(seed)
    assert len(set(names)) == 1
    held = receive(5)
    copies = {name: array.copy() for name, array in held.items()}
    receive(6)
    assert len(set(names)) == 2
    here.send(None)
    unopened = here.recv()
    worker.join(30)
    assert worker.exitcode == 0
    assert_equal(held, copies)  # what has arrived outlives the worker
    assert not any((blocks_module.SHARED / name).exists() for name in (*names, unopened))


def test_nothing_is_said_at_the_end_of_a_program():
    """Arrays that are still there at the end, and shared memory that nobody opened: no warning, no traceback."""
    script = """if True:
        import numpy as np
        from data_pipelines.blocks import Arrivals, Blocks
        shared, arrivals = Blocks(shared=True), Arrivals()
        shapes = {"a": ((1000, 1000), np.dtype(np.uint8))}
        def parcel():
            return shared.deliver(*shared.take(shapes))
        held, unopened = arrivals.open(parcel()), parcel()
        private = Blocks().take(shapes)
        print(held["a"].sum())
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("0", "", 0)


@pytest.mark.skipif(not blocks_module.SHARED.is_dir(), reason="only Linux keeps shared memory where its room can be asked for")
def test_too_little_shared_memory(monkeypatch):
    paths = []

    def full(file, offset, size):
        paths.append(os.readlink(f"/proc/self/fd/{file}"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"/dev/shm: has no room for a batch of .* \(No space left .*config.data.workers"):
        Blocks(shared=True).take({"a": ((10**6,), np.dtype(np.uint8))})
    assert len(paths) == 1 and not os.path.exists(paths[0])
