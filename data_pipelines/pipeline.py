"""Batches for one host: shuffle, draw questions, assemble `Batch`, prefetch. The step number is the whole state."""

import functools

import grain
import numpy as np

from data_pipelines.partonomy.source import PartonomySource
from plum_jax.batch import Batch
from plum_jax.errors import UserError


def batches(config, tokenizer, *, start=0, host=0, hosts=1, source=None):
    """Endless iterator of this host's `Batch` from step `start` on.

    The global batch of a step is a function of (config.seed, step) alone: the hosts hold its consecutive blocks, and
    workers, threads and restarts change nothing. Of every m consecutive images the first n have a SAM view and masks
    (config.data.grounded). `source` is built from config.data unless given (to share its cache, or to read `dropped`).
    """
    data = config.data
    source = source or PartonomySource(data.folder, data.train_split, config, tokenizer)
    size, (n, m) = data.global_batch // hosts, data.grounded
    if data.global_batch % hosts or size % data.micro_batches or (size // data.micro_batches) % m or not 0 < n <= m:
        raise UserError(
            f"config.data.global_batch {data.global_batch} on {hosts} hosts in {data.micro_batches} micro-batches leaves no "
            f"multiple of config.data.grounded {(n, m)}; change one of them"
        )

    def record(position, _):
        epoch, place = divmod(position, len(source))
        return source[int(_epoch_order(len(source), config.seed, epoch)[place])]

    def build(index, drawn):
        return source.row(*drawn, grounded=index % m < n)

    records = grain.MapDataset.range(len(source)).seed(config.seed).repeat().map_with_index(record)
    rows = records.random_map(source.choose).map_with_index(build)  # the index in the endless sequence says who is grounded
    local = rows.batch(size, drop_remainder=True, batch_fn=collate)[host::hosts][start:]
    # Elements are whole batches: a few ahead are enough, and the rest of the machine is busy with the step.
    dataset = local.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if data.workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
    return iter(dataset)


@functools.lru_cache(maxsize=4)
def _epoch_order(size, seed, epoch):
    """Grain's own shuffle walks through cycles of at least 2 ** 16 numbers: 6 ms an element for a folder of four images."""
    return np.random.default_rng((seed, epoch)).permutation(size)


def collate(rows):
    """Rows of `PartonomySource.row` -> Batch; the arrays of grounded images come from those rows alone."""
    fields = {}
    for name in Batch._fields:
        values = [row[name] for row in rows if row[name] is not None]
        fields[name] = np.stack(values) if values else None
    return Batch(**fields)
