"""The study: its settings and page, and one run of it that is killed and goes on."""

import json

import pytest

from plum_jax.config_io import load_config
from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig, build
from plum_jax.params import count
from tools import study, study_table

SCORES = dict.fromkeys(study_table.METRICS, 0.5) | {"n_instances": 12}


def run(variant, seed, **scores):
    return {"variant": variant, "seed": seed, "parameters": 1000, "train_seconds": 1.0, "test": {**SCORES, **scores}}


def example(steps=300):
    settings = {
        "steps": steps, "images": 100, "data": "rendered", "steps_of_config": 600, "seeds": [0, 1, 2],
        "variants": ["base", "kl_0", "kl_1"],
    }  # fmt: skip
    runs = [run("base", seed) for seed in range(3)]
    runs += [run("kl_0", seed, part_accuracy=0.6 + 0.01 * seed, gmiou_macro=0.45 + 0.05 * seed) for seed in range(3)]
    return {"settings": settings, "versions": {"jax": "0"}, "device": "cpu", "runs": runs}


def test_the_page_says_what_was_found_and_what_not():
    page = study_table.page(example())
    assert "6 of 9 runs, 300 steps each (of the 600 of configs/tiny.py: **not trained to the end**" in page
    assert "the first 100 images" in page and "| KL 0 | 1,000 | 0.500 ± 0.050 |" in page
    assert (
        "right list of parts: +0.110 on average (+0.100, +0.110, +0.120); the 95 % interval of the mean, ± 0.025, leaves"
        in page
    )
    assert (
        "masks, end to end: +0.000 on average (-0.050, +0.000, +0.050); the 95 % interval of the mean, ± 0.124, holds zero"
        in page
    )
    assert "given spans: +0.000 on average (+0.000, +0.000, +0.000); the same." in page
    assert "What this does not show" in page and "**KL 1.0**" not in page
    assert "not trained" not in study_table.page(example(steps=600))


def test_numbers_that_are_missing_are_left_out():
    found = example()
    found["runs"] = [run("base", 0, false_mask_rate=None), run("kl_0", 0)]
    assert study_table.values(found, "base", "false_mask_rate") == {}
    assert study_table.difference(found, "kl_0", "false_mask_rate") is None
    assert study_table.difference(found, "kl_0", "span_f1").endswith("one seed shows nothing.")


def test_variants_differ_in_one_thing():
    config, sizes = {}, {}
    for variant in study.VARIANTS:
        config[variant] = study.config_of(variant, 1, 300, "data")
        sizes[variant] = count(build(PlumConfig.from_dict(config[variant].model))[1])
        assert config[variant].seed == 1 and config[variant].train.steps == 300 and config[variant].data.folder == "data"
    assert [config[v].loss.reference for v in study.VARIANTS] == [0.1, 0.1, 0.1, 0.0, 1.0]
    assert sizes["base"] == sizes["kl_0"] == sizes["kl_1"] > sizes["no_feedback"] and sizes["seg_token"] < sizes["base"]
    assert not config["no_feedback"].model.feedback and config["seg_token"].model.feedback
    assert config["seg_token"].model.grounding == "seg_token"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "give 1 step or more"),
        (["--variants", "base,other"], "'other': is not known"),
        (["--seeds", "a"], "are not numbers"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        study.main(["--out", str(tmp_path), *arguments])


@pytest.fixture
def tiny(monkeypatch):
    """Replaces training and evaluation; `made` lists the runs, `stop` is the number of runs before an interruption."""

    class Runs:
        made, stop = [], None

        def __call__(self, config, work, images):
            if len(self.made) == self.stop:
                self.stop = None
                raise KeyboardInterrupt
            self.made = [*self.made, work.name]
            return {"parameters": 1000, "train_seconds": 1.0, "test": SCORES}

    fake = Runs()
    monkeypatch.setattr(study, "run_one", fake)
    return fake


def test_a_study_that_is_killed_goes_on_where_it_was(tiny, tmp_path, capsys):
    arguments = [
        "--out",
        str(tmp_path / "out"),
        "--data",
        "folder",
        "--steps",
        "5",
        "--seeds",
        "0,1",
        "--variants",
        "base,kl_0",
    ]
    tiny.stop = 3
    with pytest.raises(KeyboardInterrupt):
        study.main(arguments)
    assert "3 of 4 runs" in (tmp_path / "out" / "study.md").read_text()
    assert study.main([*arguments, "--table", str(tmp_path / "table")]) == 0
    assert tiny.made == ["base-0", "kl_0-0", "base-1", "kl_0-1"]
    written = json.loads((tmp_path / "table" / "study.json").read_text())
    assert [(r["variant"], r["seed"]) for r in written["runs"]] == [("base", 0), ("kl_0", 0), ("base", 1), ("kl_0", 1)]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "done"
    assert "| base: feedback" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a study with steps 5, not 6; give another --out"):
        study.main([*arguments, "--steps", "6"])


@pytest.mark.slow
def test_one_variant_for_two_steps(tmp_path, monkeypatch):
    """The real training and evaluation, of the smallest model."""
    sizes = {
        "llama": "width=24 depth=1 mlp=32",
        "clip": "image_size=24 width=24 depth=1 mlp=32",
        "sam": "image_size=48 width=24 depth=2 mlp=32 window=2 global_blocks=(1,) out_width=16",
        "decoder": "depth=1 mlp=32 mask_channels=8",
    }
    small = [f"model.{part}.{item}" for part, items in sizes.items() for item in items.split()]
    small += ["data.global_batch=8", "data.grounded=(1,1)", "train.log_every=1"]
    original = load_config
    monkeypatch.setattr("plum_jax.config_io.load_config", lambda spec, overrides=(): original(spec, [*small, *overrides]))
    arguments = ["--variants", "seg_token", "--seeds", "0", "--splits", "train=8,val=2,test=3", "--images", "2", "--steps", "2"]
    study.main(["--out", str(tmp_path), *arguments])
    (found,) = json.loads((tmp_path / "study.json").read_text())["runs"]
    assert found["test"]["n_instances"] == 2 and 0 <= found["test"]["part_accuracy"] <= 1 and found["train_seconds"] > 0
    assert found["test"].keys() == {*study_table.METRICS, "n_instances"}
