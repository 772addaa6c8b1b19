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


def test_the_page_holds_both_differences():
    found = compare_precision.rows(
        result(), result(gmiou_macro=0.82, part_accuracy=0.85), result(gmiou_macro=0.79, part_accuracy=0.9)
    )
    assert [(row["part"], row["metric"]) for row in found] == [
        ("train", "loss"), ("train", "language"), ("test", "gmiou_macro"), ("test", "part_accuracy")
    ]  # fmt: skip
    settings = {"steps": 300, "images": 100, "data": "rendered"}
    page = compare_precision.page({"settings": settings, "rows": found, "device": "cpu", "versions": {"jax": "0"}})
    assert "| test: gmiou macro | 0.800 | 0.820 | 0.790 | +0.020 | -0.010 |" in page
    assert "changes 3 of 4 numbers by no more than the seed does" in page and "--steps 300 --images 100" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--seeds", "1,1"], "not two different numbers"), (["--seeds", "0"], "not two"), (["--steps", "0"], "1 step or more")],
)
def test_wrong_arguments(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        compare_precision.main(["--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
