"""Batches for one host: shuffle, draw, assemble `Batch`, prefetch. The step number is the whole state."""

import functools
import sys

import grain
import numpy as np

from data_pipelines.account import Account
from data_pipelines.mixture import Mixture
from data_pipelines.partonomy.source import PartonomySource
from data_pipelines.sources import grounded_pair
from plum_jax.batch import Batch
from plum_jax.errors import UserError

ENDLESS = 1 << 40  # rows


def open_data(config, tokenizer):
    """What config.data names: a `Mixture` of its sources, or the one PARTONOMY folder or build."""
    data = config.data
    if data.get("sources"):
        return Mixture(config, tokenizer)
    return PartonomySource(data.folder, data.train_split, config, tokenizer)


def batches(config, tokenizer, *, start=0, host=0, hosts=1, source=None):
    """Endless iterator of this host's `Batch` from step `start` on, a `Counted`.

    The global batch of a step is a function of (config.seed, step) alone: the hosts hold its consecutive blocks, and
    workers, threads and restarts change nothing. Of every m consecutive images the first n have a SAM view and masks
    (config.data.grounded). `source` is that of `open_data` unless given (to share its cache, or to read its accounts).
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
    local = rows.batch(size, drop_remainder=True, batch_fn=collate_counted)[host::hosts][start:]
    # Elements are whole batches: a few ahead are enough, and the rest of the machine is busy with the step.
    dataset = local.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if data.workers:
        _parse_no_flags()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
    return Counted(iter(dataset))


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


def collate(rows):
    """Rows -> Batch; the arrays of grounded images come from those rows alone."""
    fields = {}
    for name in Batch._fields:
        values = [row[name] for row in rows if row[name] is not None]
        if name != "masks":
            fields[name] = np.stack(values) if values else None
    fields["masks"] = stack_masks([row for row in rows if row["masks"] is not None])
    return Batch(**fields)


def stack_masks(rows):
    """np.stack of the masks of some rows, None for no rows. Most of a canvas is empty: only what is not is copied."""
    if not rows:
        return None
    stacked = np.zeros((len(rows), *rows[0]["masks"].shape), np.uint8)
    for out, row in zip(stacked, rows, strict=True):
        height, width = row["original_hw"]
        for slot in np.flatnonzero(row["mask_valid"]):
            out[slot, :height, :width] = row["masks"][slot, :height, :width]
    return stacked


def collate_counted(rows):
    """[(row, Account)] -> (Batch, Account). The account travels with its batch, so that those of worker processes arrive."""
    total = Account()
    for _, account in rows:
        total.add(account)
    return collate([row for row, _ in rows]), total


class Counted:
    """Iterator of `Batch` that adds up what its batches went through: `account` covers those that were taken, on this host.

    Raises UserError when no record of the first batch can be read: then it is not the record that is wrong.
    """

    def __init__(self, pairs):
        self._pairs, self.account = pairs, Account()

    def __iter__(self):
        return self

    def __next__(self):
        batch, account = next(self._pairs)
        first = not self.account.counts
        self.account.add(account)
        if first and account.total("skipped:") == account.total("draws"):
            raise UserError(f"no record of the first batch can be read: {next(iter(account.messages.values()))[0]}")
        return batch
