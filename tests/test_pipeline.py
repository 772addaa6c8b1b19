import itertools
import time

import numpy as np
import pytest
from fixtures_partonomy import write_folder

from configs.tiny import get_config
from data_pipelines.partonomy.source import PartonomySource
from data_pipelines.pipeline import batches
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.batch import Batch
from plum_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partonomy")
    write_folder(folder, images=13)
    config = get_config()
    config.data.update(folder=str(folder), global_batch=16, max_tokens=120, grounded=(1, 4))
    return config.lock()


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(one, other):
    for name, left, right in zip(Batch._fields, one, other, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


def test_shapes_and_types(config, tokenizer):
    batch = next(batches(config, tokenizer))
    wanted = {
        "sam_pixels": ((4, 96, 96, 3), np.uint8),
        "clip_pixels": ((16, 96, 96, 3), np.uint8),
        "resized_hw": ((4, 2), np.int32),
        "original_hw": ((4, 2), np.int32),
        "tokens": ((16, 1, 120), np.int32),
        "token_valid": ((16, 1, 120), np.bool_),
        "loss_weight": ((16, 1, 120), np.float32),
        "image_position": ((16, 1), np.int32),
        "bio": ((16, 1, 120), np.int8),
        "span_of_token": ((16, 1, 120), np.int8),
        "span_valid": ((16, 1, 8), np.bool_),
        "span_mask_index": ((16, 1, 8), np.int8),
        "masks": ((4, 8, 128, 128), np.uint8),
        "mask_valid": ((4, 8), np.bool_),
        "sample_id": ((16,), np.int64),
        "patch_part": ((16, 64), np.int16),
    }
    assert {name: (array.shape, array.dtype) for name, array in batch._asdict().items()} == wanted
    grounded = np.arange(16) % 4 == 0
    np.testing.assert_array_equal(batch.span_valid.any((1, 2)), grounded)
    assert (batch.bio > 0).any((1, 2)).all()
    source = PartonomySource(config.data.folder, "train", config, tokenizer)
    for row, sample in enumerate(batch.sample_id[grounded]):
        wanted = source.row(source[int(sample)], (0,), grounded=True)[0]
        np.testing.assert_array_equal(batch.sam_pixels[row], wanted["sam_pixels"])


def test_hosts_hold_blocks_of_the_same_global_batch(config, tokenizer):
    whole = take(batches(config, tokenizer), 4)
    halves = [take(batches(config, tokenizer, host=host, hosts=2), 4) for host in range(2)]
    for step in range(4):
        joined = Batch(*(np.concatenate(pair) for pair in zip(halves[0][step], halves[1][step], strict=True)))
        assert_equal(whole[step], joined)


def test_restart_equals_skipping(config, tokenizer):
    whole = take(batches(config, tokenizer), 6)
    for step, batch in enumerate(take(batches(config, tokenizer, start=3), 3), 3):
        assert_equal(whole[step], batch)
    assert_equal(whole[5], take(batches(config, tokenizer, start=5), 1)[0])


def test_epochs_are_complete_and_different(config, tokenizer):
    samples = np.concatenate([batch.sample_id for batch in take(batches(config, tokenizer), 13)])
    epochs = samples.reshape(-1, 13)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(13), (16, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 16


def test_seed(config, tokenizer):
    other = config.copy_and_resolve_references()
    other.unlock()
    other.seed = 1
    assert not np.array_equal(next(batches(config, tokenizer)).sample_id, next(batches(other, tokenizer)).sample_id)


def test_sizes_must_divide(config, tokenizer):
    for changes, hosts in (({"global_batch": 18}, 1), ({"micro_batches": 8}, 1), ({}, 8), ({"grounded": (5, 4)}, 1)):
        other = config.copy_and_resolve_references()
        other.unlock()
        other.data.update(changes)
        with pytest.raises(UserError, match="config.data.grounded"):
            batches(other, tokenizer, hosts=hosts)


@pytest.mark.slow
def test_worker_processes_change_nothing(config, tokenizer):
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    other = config.copy_and_resolve_references()
    other.unlock()
    other.data.workers = 3
    whole = take(batches(config, tokenizer), 8)
    for one, two in zip(whole, take(batches(other, tokenizer), 8), strict=True):
        assert_equal(one, two)
    for host in range(2):  # resumed, on two hosts: another worker makes each batch
        half = batches(other, tokenizer, start=4, host=host, hosts=2)
        for one, two in zip(whole[4:], take(half, 4), strict=True):
            assert_equal(Batch(*(None if x is None else np.split(x, 2)[host] for x in one)), two)


def test_a_cached_batch_is_cheap(config, tokenizer):
    """40 images within 60 ms of one core, the share of a training step that input may cost; measured: 8 ms."""
    other = config.copy_and_resolve_references()
    other.unlock()
    other.data.global_batch = 40
    iterator = batches(other, tokenizer)
    take(iterator, 5)
    start = time.process_time()
    take(iterator, 20)
    assert (time.process_time() - start) / 20 < 0.06
