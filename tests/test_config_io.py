"""Loading, typed overrides, JSON round trip, differences."""

import argparse
import re
from pathlib import Path

import pytest

from plum_jax.config_io import add_config_flag, config_from_json, config_json, differences, flatten, load_config, parse_args
from plum_jax.errors import UserError


@pytest.mark.parametrize("spec", ["configs/tiny.py", "tiny.py", "tiny", "configs/tiny.py:"])
def test_shipped_config_by_any_of_its_names(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(spec).name == "tiny"


def test_own_file_with_an_argument(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import ml_collections\ndef get_config(arg=''):\n    return ml_collections.ConfigDict({'size': arg})\n")
    assert load_config(f"{file}:13b").size == "13b"


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("train.steps=7", "train.steps", 7),
        ("data.grounded=(1, 2)", "data.grounded", (1, 2)),
        ("data.grounded=[1,2]", "data.grounded", (1, 2)),
        ("loss.tag_class_weights=(1,2,3)", "loss.tag_class_weights", (1.0, 2.0, 3.0)),
        ("model.sam.global_blocks=(1,)", "model.sam.global_blocks", (1,)),
        ("data.folder=a=b", "data.folder", "a=b"),
        ("data.folder=12", "data.folder", "12"),
        ("data.cache=false", "data.cache", False),
        ("model.feedback=1", "model.feedback", True),
    ],
)
def test_overrides_have_the_type_of_the_config(override, key, value):
    got = flatten(load_config("tiny", [override]))[key]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "override, message",
    [
        ("optim.lrr=1", "did you mean --config.optim.lr?"),
        ("model.lama.width=1", "did you mean --config.model.llama.width?"),
        ("optim=1", "it holds optim."),
        ("train.steps=1.5", "'1.5' is not of type int"),
        ("train.steps=many", "'many' is not of type int"),
        ("optim.lr=fast", "'fast' is not of type float"),
        ("data.cache=2", "'2' is not a bool"),
        ("data.grounded=3", "'3' is not of type tuple"),
        ("data.canvas=(1,'a')", "is not of the form of"),
        ("data.canvas=(1,2,3)", "is not of the form of"),
        ("data.canvas=(1.0,2)", "is not of the form of"),
        ("train.steps", "has no value"),
    ],
)
def test_wrong_overrides_name_key_and_fix(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_config("tiny", [override])


def test_missing_file_lists_what_ships():
    with pytest.raises(UserError, match="configs/tiny.py"):
        load_config("configs/tinny.py")


def test_file_without_get_config(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="get_config"):
        load_config(str(tmp_path / "a.py"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\ndef get_config(:\n", "line 2: SyntaxError: "),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'; correct"),
        ("def get_config(arg):\n    return arg.x\n", "line 2: AttributeError"),
        ("def get_config(arg):\n    raise ValueError('no')\n", "line 2: ValueError: no; correct"),
        ("def get_config(arg):\n    return 3\n", "returns a ConfigDict"),
        ("def get_config():\n    return 3\n", "TypeError"),
    ],
)
def test_a_file_that_does_not_run_is_named_with_the_line(tmp_path, text, message):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_config(str(tmp_path / "a.py"))
    assert str(caught.value).startswith(str(tmp_path / "a.py"))


def test_json_round_trip_is_the_identity():
    config = load_config("tiny", ["optim.lr=0.1"])
    again = config_from_json(config_json(config))
    assert again == config
    assert again.data.grounded == config.data.grounded and type(again.data.grounded) is tuple


def test_differences_leave_out_what_a_resumed_run_may_change():
    a, b = load_config("tiny"), load_config("tiny", ["train.steps=3", "mesh.fsdp=2", "data.micro_batches=2"])
    assert differences(a, b) == []
    b = load_config("tiny", ["optim.lr=1.0", "model.llama.width=8"])
    assert differences(a, b) == ["model.llama.width", "optim.lr"]
    del b.seed
    assert "seed" in differences(a, b)


def test_a_run_from_before_keys_were_added_has_their_first_meaning():
    """The config of a real run of the first version: whoever adds a key adds it to ADDED too, or old runs cannot go on."""
    text = Path(__file__).with_name("config_of_a_first_run.json").read_text(encoding="utf-8")
    old, new = config_from_json(text), load_config("tiny")
    assert len(flatten(old)) < len(flatten(new)) - 30
    assert differences(old, new) == [] == differences(new, old)
    changed = load_config("tiny", ["data.span_source=string_search", "model.projector=mlp", "optim.lr=1"])
    assert differences(old, changed) == ["data.span_source", "model.projector", "optim.lr"]
    assert differences(old, load_config("tiny", ["train.steps=9", "model.remat=full", "eval.every=20"])) == []


def test_both_spellings_of_an_override_and_unknown_flags():
    parser = argparse.ArgumentParser()
    add_config_flag(parser)
    parser.add_argument("--out")
    args, overrides = parse_args(parser, ["--config.a.b=1", "--out", "x", "--config.c", "-2", "--config", "tiny"])
    assert (args.config, args.out, overrides) == ("tiny", "x", ["a.b=1", "c=-2"])
    with pytest.raises(SystemExit):
        parse_args(parser, ["--outt", "x"])
