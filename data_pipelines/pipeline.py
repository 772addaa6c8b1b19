"""Batches for one host: shuffle, draw, assemble `Batch`, prefetch. The step number is the whole state."""

import ctypes
import functools
import signal
import sys

import grain
import numpy as np

from data_pipelines.account import Account
from data_pipelines.blocks import Arrivals, Blocks, Parcel
from data_pipelines.mixture import Mixture
from data_pipelines.partonomy.source import PartonomySource
from data_pipelines.processes import end_with_parent
from data_pipelines.sources import grounded_pair
from plum_jax.batch import Batch
from plum_jax.errors import UserError

ENDLESS = 1 << 40  # rows
# Elements are whole batches: a few ahead are enough, and the rest of the machine is busy with the step. A worker process is
# one core: it makes its batches one after the other, and the queues between the processes hold those that are ahead.
HERE = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
IN_A_WORKER = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
# glibc's parameters (mallopt) and their values in a worker: it keeps the memory of pictures for the next ones. Given back to
# the system it would have to be mapped again, page by page: a fifth of what an image costs.
KEEP_MEMORY = {-3: 32 << 20, -1: 256 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def open_data(config, tokenizer):
    """What config.data names: a `Mixture` of its sources, or the one PARTONOMY folder or build."""
    data = config.data
    if data.get("sources"):
        return Mixture(config, tokenizer)
    return PartonomySource(data.folder, data.train_split, config, tokenizer)


def batches(config, tokenizer, *, start=0, host=0, hosts=1, source=None):
    """Endless iterator of this host's `Batch` from step `start` on, a `Stream`.

    The global batch of a step is a function of (config.seed, step) alone: the hosts hold its consecutive blocks, and
    workers, threads and restarts change nothing. Of every m consecutive images the first n have a SAM view and masks
    (config.data.grounded). `source` is that of `open_data` unless given (to share its cache, or to read its accounts).
    The memory of a batch is used for a later one when nobody refers to its arrays any more.
    """
    data = config.data
    source = source or open_data(config, tokenizer)
    size, (n, m) = data.global_batch // hosts, grounded_pair(data)
    if data.global_batch % hosts or size % data.micro_batches or (size // data.micro_batches) % m or not 0 < n <= m:
        raise UserError(
            f"config.data.global_batch {data.global_batch} on {hosts} hosts in {data.micro_batches} micro-batches leaves no "
            f"multiple of config.data.grounded {(n, m)}; change one of them"
        )
    mixed = isinstance(source, Mixture)
    rows = grain.MapDataset.range(ENDLESS).map(source.row) if mixed else _folder_rows(source, config.seed, (n, m))
    make = functools.partial(collate, blocks=Blocks(shared=data.workers > 0))
    local = rows.batch(size, drop_remainder=True, batch_fn=make)[host::hosts][start:]
    if data.workers:
        _parse_no_flags()
        dataset = local.to_iter_dataset(IN_A_WORKER)
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers), _start_worker)
    else:
        dataset = local.to_iter_dataset(HERE)
    return Stream(iter(dataset))


def _folder_rows(source, seed, grounded):
    """The rows of a PARTONOMY folder without end: every image once an epoch."""
    n, m = grounded

    def record(position, _):
        epoch, place = divmod(position, len(source))
        return source[int(_epoch_order(len(source), seed, epoch)[place])]

    def build(index, drawn):
        return source.counted_row(*drawn, grounded=index % m < n)

    records = grain.MapDataset.range(len(source)).seed(seed).repeat().map_with_index(record)
    return records.random_map(source.choose).map_with_index(build)  # the index in the endless sequence says who is grounded


@functools.lru_cache(maxsize=4)
def _epoch_order(size, seed, epoch):
    """Grain's own shuffle walks through cycles of at least 2 ** 16 numbers: 6 ms an element for a folder of four images."""
    return np.random.default_rng((seed, epoch)).permutation(size)


def _parse_no_flags():
    """Grain starts its workers with the flags of absl, which this program does not use."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])


def _start_worker(index, count):
    """In each worker process, before its first batch."""
    end_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):  # sent to all processes of a job: the training process ends its workers
        signal.signal(number, signal.SIG_IGN)
    # Not through the environment of the processes: other threads here may be reading it, which setting it can crash.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in KEEP_MEMORY.items():
            mallopt(parameter, value)


def collate(pairs, blocks):
    """[(row, Account)] -> ({field of Batch: array} as `blocks` delivers them, Account).

    The arrays of grounded images come from those rows alone; a field that no row has is left out. The account travels with
    its batch, so that those of worker processes arrive.
    """
    total = Account()
    for _, account in pairs:
        total.add(account)
    rows = {name: [row for row, _ in pairs if row[name] is not None] for name in Batch._fields}
    shapes = {name: _stacked(having[0][name], len(having)) for name, having in rows.items() if having}
    block, arrays = blocks.take(shapes)
    for name, array in arrays.items():
        if name != "masks":
            np.stack([row[name] for row in rows[name]], out=array)
    if "masks" in arrays:
        for place in block.written:
            arrays["masks"][place] = 0
        block.written = stack_masks(rows["masks"], arrays["masks"])
    return blocks.deliver(block, arrays), total


def _stacked(value, count):
    return (count, *np.shape(value)), np.asarray(value).dtype


def stack_masks(rows, out):
    """np.stack of the masks of some rows into zeros. Most of a canvas is empty: only what is not is copied.

    Returns:
      the places in `out` that were written.
    """
    written = []
    for number, row in enumerate(rows):
        height, width = row["original_hw"]
        for slot in np.flatnonzero(row["mask_valid"]):
            out[number, slot, :height, :width] = row["masks"][slot, :height, :width]
            written.append((number, slot, slice(0, height), slice(0, width)))
    return written


class Stream:
    """Iterator of `Batch` that adds up what its batches went through: `account` covers those that were taken, on this host.

    Raises UserError when no record of the first batch can be read: then it is not the record that is wrong.
    """

    def __init__(self, pairs):
        self._pairs, self._arrivals, self.account = pairs, Arrivals(), Account()
        self._first = True

    def __iter__(self):
        return self

    def __next__(self):
        arrays, account = next(self._pairs)
        if isinstance(arrays, Parcel):
            arrays = self._arrivals.open(arrays)
        first, self._first = self._first, False
        self.account.add(account)
        draws = account.total("draws")
        if first and draws and account.total("skipped:") == draws:
            raise UserError(f"no record of the first batch can be read: {next(iter(account.messages.values()))[0]}")
        return Batch(**{name: arrays.get(name) for name in Batch._fields})
