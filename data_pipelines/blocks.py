"""Memory of batches that is used again, by one process or between a worker and the process that it works for.

A batch of a large model is hundreds of megabytes. New memory for each would cost more than filling it, as the system provides
and clears it page by page, and most of all where processes share it.
"""

import contextlib
import dataclasses
import mmap
import os
import threading
import weakref
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np

from plum_jax.errors import UserError

ALIGN = 64  # bytes; also the room before the arrays, whose first byte says whether somebody refers to them
SHARED = Path("/dev/shm")  # where Linux keeps shared memory


class Block:
    """One piece of memory for the arrays of one batch at a time.

    `written` is for whoever fills the arrays: what must be cleared before the block is filled again. New blocks are zero.
    """

    def __init__(self, size, memory=None):
        """`memory` is the SharedMemory of this size; memory of this process alone is taken unless given."""
        self.size, self.memory, self.written = size, memory, ()
        self.buffer = mmap.mmap(-1, size) if memory is None else memory.buf

    @property
    def in_use(self):
        return self.buffer[0] != 0

    @in_use.setter
    def in_use(self, value):
        self.buffer[0] = int(value)

    def arrays(self, shapes, *, owned):
        """{name: (shape, dtype)} -> {name: array} in this block; with `owned` it is in use until the last of them is gone."""
        # NumPy lets every view, also of a view, refer to this array: the first one that is no piece of another array.
        whole = np.ndarray(self.size - ALIGN, np.uint8, buffer=self.buffer, offset=ALIGN)
        if owned:
            weakref.finalize(whole, setattr, self, "in_use", False).atexit = False
        arrays, start = {}, 0
        for name, (shape, dtype) in shapes.items():
            size = int(np.prod(shape)) * dtype.itemsize
            arrays[name] = whole[start : start + size].view(dtype).reshape(shape)
            start += _aligned(size)
        return arrays


@dataclasses.dataclass(frozen=True)
class Parcel:
    """Stands for arrays in a block of another process: what is pickled in their place."""

    name: str
    size: int
    shapes: dict


class Blocks:
    """The blocks in which this process makes batches. A copy in another process starts without any."""

    def __init__(self, *, shared=False):
        """With `shared`, blocks are delivered as a `Parcel` for another process to open."""
        self.shared, self._blocks, self._lock = shared, [], threading.Lock()
        weakref.finalize(self, _remove_names, self._blocks)

    def __reduce__(self):
        return _blocks, (self.shared,)

    def take(self, shapes):
        """{name: (shape, dtype)} -> (Block, {name: array}) to be filled; what was in the block before is still there."""
        size = ALIGN + sum(_aligned(int(np.prod(shape)) * dtype.itemsize) for shape, dtype in shapes.values())
        with self._lock:
            block = next((block for block in self._blocks if block.size == size and not block.in_use), None)
            if block is None:
                block = Block(size, _shared_memory(size) if self.shared else None)
                self._blocks.append(block)
            block.in_use = True
        return block, block.arrays(shapes, owned=not self.shared)

    def deliver(self, block, arrays):
        """What goes on: the arrays themselves, or a `Parcel` of them."""
        if not self.shared:
            return arrays
        return Parcel(block.memory.name, block.size, {name: (array.shape, array.dtype) for name, array in arrays.items()})


class Arrivals:
    """Opens parcels. Nothing is copied, and the worker uses a block again when the last of its arrays is gone here."""

    def __init__(self):
        self._blocks = {}

    def open(self, parcel):
        """Parcel -> {name: array}."""
        if parcel.name not in self._blocks:
            memory = shared_memory.SharedMemory(parcel.name)
            memory.unlink()  # both sides have it now; without a name it goes with them, however they end
            self._blocks[parcel.name] = Block(parcel.size, memory)
        return self._blocks[parcel.name].arrays(parcel.shapes, owned=True)


def _blocks(shared):
    return Blocks(shared=shared)


def _aligned(size):
    return -(-size // ALIGN) * ALIGN


def _shared_memory(size):
    """New shared memory, all of it really there. UserError where the system has too little: using it would kill the process."""
    memory = shared_memory.SharedMemory(create=True, size=size)
    path = SHARED / memory.name
    if path.exists():
        file = os.open(path, os.O_RDWR)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            memory.close()
            memory.unlink()
            raise UserError(
                f"{SHARED}: has no room for a batch of {size / 1e9:.1f} GB ({error.strerror}); enlarge it "
                f"(docker run --shm-size=...), lower config.data.workers or set it to 0"
            ) from error
        finally:
            os.close(file)
    return memory


def _remove_names(blocks):
    """At the end of a worker: blocks that nobody has opened would stay for ever."""
    for block in blocks:
        if block.memory is not None:
            with contextlib.suppress(FileNotFoundError):  # opened by the other side, which removed the name
                block.memory.unlink()
