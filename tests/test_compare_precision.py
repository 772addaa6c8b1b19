"""The comparison of float32 and bfloat16: its runs, table and arguments. What the types compute is in test_precision.py."""

import math

import pytest

from plum_jax.config_io import differences, load_config
from plum_jax.errors import UserError
from tools import compare_precision

SCORES = {"gmiou_macro": 0.8, "part_accuracy": 0.85, "false_mask_rate": None, "n_instances": 200}


def result(**test):
    return {"train": {"loss": 1.0, "language": 0.1, "bce": math.nan}, "test": {**SCORES, **test}}


def test_the_runs_differ_in_the_type_and_the_seed_alone(tmp_path):
    plain, low = (compare_precision.config_of(dtype, 0, 300, tmp_path) for dtype in ("float32", "bfloat16"))
    assert differences(plain, low) == ["model.dtype", "name"]
    assert differences(plain, compare_precision.config_of("float32", 1, 300, tmp_path)) == ["seed"]
    assert plain.train.steps == 300 and plain.optim.warmup_steps == 30
    whole = compare_precision.config_of("float32", 0, None, tmp_path)
    assert set(differences(whole, load_config("tiny"))) == {"name"} and whole.train.steps == 600


def test_the_page_holds_pairs_against_their_spread():
    masks = {"float32": (0.80, 0.82, 0.81), "bfloat16": (0.79, 0.81, 0.80)}  # always 0.01 less, whatever the seed changes
    parts = {"float32": (0.85, 0.85, 0.85), "bfloat16": (0.90, 0.80, 0.85)}
    runs = [
        {"type": dtype, "seed": seed, **result(gmiou_macro=masks[dtype][seed], part_accuracy=parts[dtype][seed])}
        for seed in range(3)
        for dtype in compare_precision.TYPES
    ]
    found = compare_precision.rows(runs)
    assert [(row["part"], row["metric"]) for row in found] == [
        ("train", "loss"), ("train", "language"), ("test", "gmiou_macro"), ("test", "part_accuracy")
    ]  # fmt: skip
    assert found[2]["float32"] == [0.80, 0.82, 0.81] and found[2]["bfloat16"] == [0.79, 0.81, 0.80]
    settings = {"steps": 300, "images": 100, "data": "rendered"}
    about = {"settings": settings, "device": "cpu", "versions": {"jax": "0"}}
    page = compare_precision.page({**about, "runs": runs, "rows": found})
    assert "| test: gmiou macro | 0.810 ± 0.010 | 0.800 ± 0.010 | -0.010 ± 0.000 | no |" in page
    assert "| test: part accuracy | 0.850 ± 0.000 | 0.850 ± 0.050 | +0.000 ± 0.124 | yes |" in page
    assert "3 of 4 differences are within noise" in page and "--steps 300 --images 100 --seeds 0,1,2`" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1,1"], "not two or more different numbers"),
        (["--seeds", "1,01"], "not two or more"),
        (["--seeds", "0"], "not two or more"),
        (["--steps", "0"], "1 step or more"),
    ],
)
def test_wrong_arguments(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        compare_precision.main(["--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
