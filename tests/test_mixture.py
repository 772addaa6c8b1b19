import collections
import itertools

import numpy as np
import pytest
from source_fixtures import DATASETS, WEIGHTS, FakeSource, Given, mixture_config

from data_pipelines.mixture import Mixture, block_counts, scheduled
from data_pipelines.pipeline import batches
from data_pipelines.record import Sample
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.batch import Batch
from plum_jax.errors import UserError

FOUR = ("ade20k", "refcoco", "vqa", "reason")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def mix(root, tokenizer):
    """mix(**config.data) -> Mixture of the four families of the reference, 9 : 5 : 5 : 1."""

    def make(names=FOUR, weights=WEIGHTS, seed=0, broken=(), **data):
        config = mixture_config(**{"grounded": (3, 4), **data})
        config.seed = seed
        return Mixture(config, tokenizer, [FakeSource(root, dataset=name, broken=broken) for name in names], weights)

    return make


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(one, other):
    for name, left, right in zip(Batch._fields, one, other, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


def test_hosts_restarts_and_seeds(mix, tokenizer):
    """13 steps of 8 rows: every data set begins a second epoch on the way."""
    config = mixture_config(grounded=(1, 2))
    config.seed = 3
    settings = dict(grounded=(1, 2), seed=3)
    whole = take(batches(config, tokenizer, source=mix(**settings)), 13)
    hosts = [batches(config, tokenizer, host=host, hosts=4, source=mix(**settings)) for host in range(4)]
    for batch, parts in zip(whole, zip(*(take(host, 13) for host in hosts), strict=True), strict=True):
        assert_equal(batch, Batch(*(None if part[0] is None else np.concatenate(part) for part in zip(*parts, strict=True))))
    for start in (1, 7, 12):
        for batch, again in zip(whole[start:], batches(config, tokenizer, start=start, source=mix(**settings)), strict=False):
            assert_equal(batch, again)
    other = take(batches(config, tokenizer, source=mix(grounded=(1, 2), seed=4)), 13)
    assert not np.array_equal([b.sample_id for b in whole], [b.sample_id for b in other])


@pytest.mark.slow
def test_worker_processes_change_nothing_and_report(mix, tokenizer):
    config = mixture_config(grounded=(3, 4))
    with_workers = mixture_config(grounded=(3, 4), workers=2)
    one, two = (batches(c, tokenizer, source=mix(broken=(1,))) for c in (config, with_workers))
    for left, right in zip(take(one, 8), take(two, 8), strict=True):
        assert_equal(left, right)
    assert one.account == two.account
    assert one.account.total("draws") == 64 and one.account.total("skipped: record") > 0


@pytest.mark.parametrize("names", [FOUR, ("ade20k", "reason"), ("vqa",)])
def test_no_record_is_lost_or_repeated_within_an_epoch(mix, names):
    mixture = mix(names, [2, 1, 1, 1][: len(names)])
    drawn = collections.defaultdict(list)
    for index in range(400):
        number, record = mixture.draw(index)
        drawn[number].append(record)
    for number, source in enumerate(mixture.sources):
        size, records = len(source), drawn[number]
        epochs = [tuple(records[k : k + size]) for k in range(0, len(records) - size + 1, size)]
        assert len(epochs) > 5 and all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert size < 4 or len(set(epochs)) > 1


@pytest.mark.parametrize("weights, grounded", [(WEIGHTS, (3, 4)), (WEIGHTS, (1, 1)), ((0.3, 1.7, 2.0, 0.123), (1, 2))])
def test_weights_are_reached(mix, weights, grounded):
    mixture = mix(weights=weights, grounded=grounded)
    count = 4000
    numbers = np.array([mixture.draw(index)[0] for index in range(count)])
    drawn = np.bincount(numbers, minlength=4) / count
    if grounded != (1, 2):  # (3, 4) is what 9 : 5 : 1 against 5 says
        np.testing.assert_allclose(drawn, np.array(weights) / sum(weights), atol=0.015)
    else:  # one half for each kind, the weights hold inside
        with_masks = [0, 1, 3]
        wanted = np.array(weights)[with_masks] / sum(np.array(weights)[with_masks]) / 2
        np.testing.assert_allclose(drawn[with_masks], wanted, atol=0.015)
    np.testing.assert_allclose(drawn, mixture.shares(), atol=0.015)
    n, m = grounded
    if n < m:
        np.testing.assert_array_equal(numbers == FOUR.index("vqa"), np.arange(count) % m >= n)
    early = np.bincount(numbers[: count // 10], minlength=4) / (count // 10)
    np.testing.assert_allclose(early, drawn, atol=0.05)  # at every time, not only in the end


def test_a_block_is_exact():
    assert block_counts((9.0, 5.0, 1.0)) == (18 * 9, 18 * 5, 18)
    assert block_counts((1.0,)) == (256,)
    for weights in ((1.0, np.pi, 1e-7), (0.1, 0.2), (1e6, 1.0, 1.0)):
        counts = np.array(block_counts(weights))
        assert counts.min() > 0 and counts.sum() <= 10_002
        np.testing.assert_allclose(counts / counts.sum(), np.array(weights) / sum(weights), atol=2e-4)
    counts = collections.Counter()
    for place in range(600):
        member, before = scheduled((9.0, 5.0, 1.0), (0, 0), place)
        assert before == counts[member]
        counts[member] += 1


def test_composition_of_a_batch(mix, tokenizer):
    """Conversations without masks are where SAM does not look; all data sets are in the batches, with their fields."""
    config = mixture_config(grounded=(3, 4))
    mixture = mix()
    seen = collections.Counter()
    stream = batches(config, tokenizer, source=mixture)
    for batch in take(stream, 20):
        assert batch.sam_pixels.shape[0] == batch.masks.shape[0] == 6 and batch.patch_part is None
        for row, sample_id in enumerate(batch.sample_id):
            source, record = mixture.of(sample_id)
            assert 0 <= record < len(source) and source.grounded == (row % 4 < 3)
            assert batch.span_valid[row].any() == source.grounded
            seen[source.dataset] += 1
    counted = {dataset: counter["draws"] for (_, dataset), counter in stream.account.counts.items()}
    assert counted == dict(seen) and set(seen) == set(FOUR)


def test_conversations_are_seen_by_sam_where_all_places_are(mix, tokenizer):
    batch = next(batches(mixture_config(grounded=(1, 1)), tokenizer, source=mix(grounded=(1, 1))))
    assert batch.sam_pixels.shape[0] == 8 and (~batch.span_valid.any((1, 2))).any()


def test_one_kind_of_source_fills_all_places(mix, tokenizer):
    config = mixture_config(grounded=(1, 4))
    batch = next(batches(config, tokenizer, source=mix(("ade20k", "reason"), (1, 1), grounded=(1, 4))))
    np.testing.assert_array_equal(batch.span_valid.any((1, 2)), np.arange(8) % 4 == 0)
    assert (batch.bio > 0).any((1, 2)).all()


def test_random_numbers_belong_to_the_place(mix):
    """The same record in another epoch is asked something else, whoever drew before it."""
    mixture = mix(("reason",), (1,))
    first = {index: mixture.row(index)[0]["tokens"].tobytes() for index in range(24)}
    again = {index: mix(("reason",), (1,)).row(index)[0]["tokens"].tobytes() for index in reversed(range(24))}
    assert first == again
    asked = collections.defaultdict(set)
    for index in range(24):
        asked[mixture.draw(index)[1]].add(first[index])
    assert all(len(texts) > 1 for texts in asked.values())


def test_bad_records_do_not_move_the_others(mix, tokenizer):
    config = mixture_config(grounded=(3, 4))
    good, bad = (batches(config, tokenizer, source=mix(broken=broken)) for broken in ((), (0, 2)))
    for left, right in zip(take(good, 10), take(bad, 10), strict=True):
        np.testing.assert_array_equal(left.sample_id, right.sample_id)
        gone = ~right.token_valid.any((1, 2))
        np.testing.assert_array_equal(gone, np.isin(left.sample_id & 0xFFFF, (0, 2)))
        np.testing.assert_array_equal(left.tokens[~gone], right.tokens[~gone])
    summary = bad.account.summary()
    assert set(summary["families"]) == {"semantic", "refer", "vqa", "reason"}
    for dataset in FOUR:
        counts = summary["datasets"][dataset]
        assert 0 < counts["skipped: record"] < counts["draws"] and DATASETS[dataset][0] in summary["families"]
        assert 1 <= len(summary["messages"][f"{dataset}, record"]) <= 3
    lines = list(bad.account.lines())
    assert any("semantic" in line and "skipped: record" in line for line in lines)
    assert any("ade20k, bad record: record" in line and "make it again" in line for line in lines)


def test_nothing_readable_is_an_error(tokenizer):
    config = mixture_config(grounded=(1, 1))
    lost = Sample("semantic", "ade20k", "a", "nowhere/a.png", ())
    with pytest.raises(UserError, match="no record of the first batch can be read: a: nowhere/a.png: no such image"):
        next(batches(config, tokenizer, source=Mixture(config, tokenizer, [Given(lost)], [1])))
    with pytest.raises(UserError, match="ade20k: has no record"):
        Mixture(config, tokenizer, [Given()], [1])


def test_describe(mix):
    facts = mix().describe()
    assert [fact["dataset"] for fact in facts] == list(FOUR)
    assert [fact["share"] for fact in facts] == [0.45, 0.25, 0.25, 0.05]
    assert facts[0]["records"] == 7 and facts[0]["family"] == "semantic" and facts[0]["skipped"] == {}
