"""Several data sets in one endless sequence of rows that is a function of the seed alone.

Every place of the sequence knows from its number which data set, which record of it and which random numbers it takes: there is
no state, so hosts, workers and restarts change nothing.
"""

import functools

import numpy as np

from data_pipelines.rows import RowBuilder
from data_pipelines.sources import entries, grounded_pair, open_source
from plum_jax.errors import UserError

ID_BITS = 40  # sample_id = number of the data set << ID_BITS | number of the record
EXACT, LARGEST, LEAST = 1e-6, 10_000, 256  # of a block of draws: deviation of a weight, most draws, fewest draws
ORDER, EPOCH, SAMPLE = range(3)  # what a random generator is for: no two share their numbers


class Mixture:
    """`sources` by their `weights`, as rows.

    Of every m consecutive places the first n, which SAM sees, draw from the sources with masks, the others from those without
    (config.data.grounded = (n, m)); the weights hold within the two kinds. Where only one kind of source exists, or n = m,
    every place draws from all sources; places that SAM does not see then leave the masks out.

    Within a source every record is drawn once, in an order of its own, before any is drawn a second time.
    """

    def __init__(self, config, tokenizer, sources=None, weights=None):
        """`sources` and their `weights` are those of config.data.sources unless given."""
        self.grounded, self.seed = grounded_pair(config.data), int(config.seed)
        if sources is None:
            listed = entries(config.data)
            sources = [open_source(entry, config.data.conversations) for entry in listed]
            weights = [entry.weight for entry in listed]
        self.sources, self.weights = list(sources), [float(w) for w in weights]
        for source in self.sources:
            if len(source) == 0:
                raise UserError(f"{source.dataset}: has no record to train on; leave it out of config.data.sources")
        self.builder = RowBuilder(config, tokenizer)
        n, m = self.grounded
        everything = range(len(self.sources))
        kinds = [[s for s in everything if self.sources[s].grounded == kind] for kind in (True, False)]
        self.apart = n < m and all(kinds)
        self._kinds = kinds if self.apart else [list(everything)]
        self._weights = [tuple(self.weights[s] for s in kind) for kind in self._kinds]

    def draw(self, index):
        """Place in the sequence -> (number of the source, number of the record)."""
        kind, place = self._kind(index)
        member, count = scheduled(self._weights[kind], (self.seed, kind), place)
        number = self._kinds[kind][member]
        epoch, rank = divmod(count, len(self.sources[number]))
        return number, int(_epoch_order(len(self.sources[number]), self.seed, number, epoch)[rank])

    def row(self, index):
        """Place in the sequence -> (Batch fields of its row, Account)."""
        number, record = self.draw(index)
        n, m = self.grounded
        rng = np.random.default_rng((SAMPLE, self.seed, index))
        sample_id = number << ID_BITS | record
        return self.builder.build(self.sources[number], record, rng, grounded=index % m < n, sample_id=sample_id)

    def of(self, sample_id):
        """Batch.sample_id -> (source, number of the record)."""
        return self.sources[int(sample_id) >> ID_BITS], int(sample_id) & ((1 << ID_BITS) - 1)

    def shares(self):
        """float[sources]: the part of all draws that goes to each."""
        n, m = self.grounded
        parts = (n / m, 1 - n / m) if self.apart else (1.0,)
        shares = np.zeros(len(self.sources))
        for kind, part, weights in zip(self._kinds, parts, self._weights, strict=True):
            counts = np.array(block_counts(weights))
            shares[kind] = part * counts / counts.sum()
        return shares

    def describe(self):
        """One dictionary for each source, for run.json."""
        return [
            {
                "dataset": source.dataset,
                "family": source.family,
                "records": len(source),
                "share": round(float(share), 6),
                "skipped": dict(source.skipped),
            }
            for source, share in zip(self.sources, self.shares(), strict=True)
        ]

    def _kind(self, index):
        """-> (which list of sources, number among its places)."""
        if not self.apart:
            return 0, index
        n, m = self.grounded
        cycle, place = divmod(index, m)
        return (0, cycle * n + place) if place < n else (1, cycle * (m - n) + place - n)


@functools.cache
def block_counts(weights):
    """Weights -> how many draws each gets of a block: whole numbers in their proportions.

    The block is the shortest, of at least 256 draws, that is exact to a millionth; of 10,000 draws with the largest
    remainders rounded up where there is none.
    """
    shares = np.array(weights) / sum(weights)
    for size in range(1, LARGEST + 1):
        counts = np.rint(shares * size)
        if np.abs(counts / size - shares).max() < EXACT and counts.min() > 0:
            return tuple((counts.astype(int) * -(-LEAST // size)).tolist())
    counts = np.maximum(1, np.floor(shares * LARGEST)).astype(int)
    missing = LARGEST - counts.sum()
    counts[np.argsort(counts - shares * LARGEST, kind="stable")[: max(0, missing)]] += 1
    return tuple(counts.tolist())


def scheduled(weights, key, place):
    """Draw number `place` -> (whose it is, how many it had before). Every block has each weight's draws, in random order."""
    counts = block_counts(weights)
    block, inside = divmod(place, sum(counts))
    whose, before = _block(counts, key, block)
    member = int(whose[inside])
    return member, block * counts[member] + int(before[inside])


@functools.lru_cache(maxsize=64)
def _block(counts, key, number):
    """-> (int[draws] whose each draw of the block is, int[draws] how many draws of the same came before it)."""
    whose = np.random.default_rng((ORDER, *key, number)).permutation(np.repeat(np.arange(len(counts)), counts))
    before = np.zeros(len(whose), np.int64)
    for member in range(len(counts)):
        mine = whose == member
        before[mine] = np.arange(mine.sum())
    return whose, before


@functools.lru_cache(maxsize=64)
def _epoch_order(size, seed, number, epoch):
    return np.random.default_rng((EPOCH, seed, number, epoch)).permutation(size)
