import numpy as np
import pytest
import torch
from fixtures_partonomy import question, write_entries
from PIL import Image

from configs.tiny import get_config
from data_pipelines.explanatory import Explanatory
from data_pipelines.mask_sizes import fit_mask
from data_pipelines.masks import encode_rle
from data_pipelines.partonomy.source import PartonomySource
from data_pipelines.rows import RowBuilder
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.errors import UserError

RNG = np.random.default_rng(0)


def blob(hw):
    """A mask with smooth borders: random noise would only test rounding."""
    rows, columns = np.mgrid[: hw[0], : hw[1]] / max(hw)
    return (np.sin(9 * rows + 1) + np.cos(7 * columns) > 0.3).astype(np.uint8)


def test_same_size_is_the_same_mask_and_another_an_error():
    mask = blob((8, 6))
    assert all(fit_mask(mask, (8, 6), rule) is mask for rule in ("error", "nearest", "linear_area"))
    with pytest.raises(ValueError, match="mask is 8 x 6, image is 6 x 8"):
        fit_mask(mask, (6, 8))


@pytest.mark.parametrize("hw", [(40, 60), (40, 20), (33, 71), (20, 31)])
def test_a_smaller_mask_is_stretched_bilinearly(hw):
    """Where one side of the mask is smaller; torch's bilinear interpolation has the same half-pixel centres."""
    mask = blob((20, 30))
    given = torch.from_numpy(mask[None, None]).double()
    whole = torch.nn.functional.interpolate(given, size=hw, mode="bilinear", align_corners=False)[0, 0].numpy()
    clear = np.abs(whole - 0.5) > 1e-6
    np.testing.assert_array_equal(fit_mask(mask, hw, "linear_area")[clear], (whole > 0.5)[clear])


def test_a_larger_mask_is_averaged_and_a_half_counts():
    mask = np.zeros((4, 6), np.uint8)
    mask[0, :3] = mask[1, 0] = mask[3, 5] = 1
    np.testing.assert_array_equal(fit_mask(mask, (2, 3), "linear_area"), [[1, 0, 0], [0, 0, 0]])  # 3/4, 1/4, 0; 0, 0, 1/4
    mask[2, 4] = 1
    assert fit_mask(mask, (2, 3), "linear_area")[1, 2] == 1  # 2/4
    big = blob((30, 45))
    exact = big.repeat(4, 0).repeat(6, 1).reshape(20, 6, 30, 9).mean((1, 3))  # areas at the common multiple of both sizes
    clear = np.abs(exact - 0.5) > 1e-6
    np.testing.assert_array_equal(fit_mask(big, (20, 30), "linear_area")[clear], (exact > 0.5)[clear])


def test_nearest():
    mask = blob((20, 30))
    np.testing.assert_array_equal(fit_mask(mask, (40, 60), "nearest"), mask.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(fit_mask(mask, (10, 15), "nearest"), mask[1::2, 1::2])


@pytest.fixture
def folder(tmp_path):
    """A question about a 40 x 72 image, with masks of twice the size."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (72, 40)).save(tmp_path / "images/a.png")
    entry = question("images/a.png", (40, 72), parts=("base",))
    entry["segmentations"] = {"base": [encode_rle(blob((80, 144)))]}
    write_entries(tmp_path, [entry])
    return tmp_path


@pytest.mark.parametrize("rule", ["nearest", "linear_area"])
def test_training_resizes_where_the_switch_says_so(folder, rule):
    config = get_config()
    config.data.update(template="llava_v1", max_tokens=120, resize_mismatched_masks=rule)
    tokenizer = load_tokenizer("tiny")
    source = PartonomySource(folder, "train", config, tokenizer)
    row = source.row(source[0], (0,), grounded=True)[0]
    np.testing.assert_array_equal(row["masks"][0, :40, :72], fit_mask(blob((80, 144)), (40, 72), rule))
    mixed, account = RowBuilder(config, tokenizer).build(
        Explanatory(folder), 0, np.random.default_rng(0), grounded=True, sample_id=0
    )
    np.testing.assert_array_equal(mixed["masks"], row["masks"])
    assert not account.total("skipped:")


def test_the_default_is_an_error_of_the_folder_and_a_skipped_record_of_the_mixture(folder):
    config, tokenizer = get_config(), load_tokenizer("tiny")
    config.data.update(template="llava_v1", max_tokens=120)
    source = PartonomySource(folder, "train", config, tokenizer)
    with pytest.raises(UserError, match="mask of 'base' is 80 x 144, image is 40 x 72; run plum data check"):
        source.row(source[0], (0,), grounded=True)
    _, account = RowBuilder(config, tokenizer).build(
        Explanatory(folder), 0, np.random.default_rng(0), grounded=True, sample_id=0
    )
    assert account.total("skipped: mask") == 1
