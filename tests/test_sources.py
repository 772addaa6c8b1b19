import re

import pytest
from source_fixtures import FakeSource, mixture_config

from data_pipelines.kinds import FAMILIES, KINDS, WITHOUT_MASKS, Kind
from data_pipelines.sources import entries, grounded_pair, open_source
from plum_jax.config_io import config_from_json, config_json, load_config
from plum_jax.errors import UserError
from plum_jax.settings import check_settings


def data(*listed, **values):
    return mixture_config(sources=tuple(listed), **values).data


def test_a_family_stands_for_its_data_sets_in_equal_parts():
    found = entries(data({"name": "refer", "weight": 6.0}, {"name": "vqa", "weight": 2, "root": "llava", "split": "val"}))
    assert [entry.name for entry in found] == ["refclef", "refcoco", "refcoco+", "refcocog", "vqa"]
    assert [entry.weight for entry in found] == [1.5] * 4 + [2.0]
    assert {entry.root for entry in found[:4]} == {"data"} and found[4].root == "data/llava" and found[4].split == "val"
    found = entries(data({"name": "semantic", "weight": 1, "datasets": ("ade20k", "partimagenet")}))
    assert [(entry.name, entry.weight) for entry in found] == [("ade20k", 0.5), ("partimagenet", 0.5)]
    (found,) = entries(data({"name": "explanatory", "weight": 1, "root": ("a", "/b")}))
    assert found.root == ["data/a", "/b"]


def test_every_family_is_known():
    assert all(KINDS[name].family == family for family, names in FAMILIES.items() for name in names)
    assert {kind.family for kind in KINDS.values()} == set(FAMILIES) and set(WITHOUT_MASKS) <= set(FAMILIES)
    assert all(kind.place.startswith("data_pipelines.") and kind.place.count(":") == 1 for kind in KINDS.values())


@pytest.mark.parametrize(
    "source, message",
    [
        ("refer", "config.data.sources[0]: 'refer' is not a source"),
        ({"weight": 1}, "is not a source; write {'name'"),
        ({"name": "granD", "weight": 1}, "config.data.sources[0].name: 'granD' is not known; use semantic, refer"),
        ({"name": "refer"}, "config.data.sources[0].weight: None is not a positive number"),
        ({"name": "refer", "weight": 0}, "weight: 0 is not a positive number"),
        ({"name": "refer", "weight": True}, "weight: True is not a positive number"),
        ({"name": "refer", "weight": float("nan")}, "weight: nan is not a positive number"),
        ({"name": "refer", "weight": 1, "wieght": 2}, "key 'wieght' is not known; use name, weight"),
        ({"name": "refer", "weight": 1, "datasets": ("ade20k",)}, "'ade20k' is no data set of refer; use refclef, refcoco"),
        ({"name": "refer", "weight": 1, "datasets": ()}, "'nothing' is no data set of refer"),
        ({"name": "vqa", "weight": 1, "options": 5}, "config.data.sources[0].options: 5 is not a dictionary"),
    ],
)
def test_wrong_sources_are_one_sentence(source, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(mixture_config(sources=(source,)))


@pytest.mark.parametrize(
    "changes, message",
    [
        (["data.root="], "config.data.root: is empty; pass --config.data.root=DIR"),
        (["data.folder=x"], "config.data.folder: 'x' is given together with config.data.sources"),
        (["loss.patch=1.0"], "config.loss.patch: 1.0 needs one list of parts"),
        (["data.sources=()", "data.grounded=()"], "config.data.folder: is empty"),
        (["data.sources=()", "data.grounded=()", "data.folder=x"], "config.data.grounded: () is wrong"),
        (["data.grounded=(1,2,3)"], "config.data.grounded: (1, 2, 3) is wrong"),
    ],
)
def test_settings_of_a_mixture(changes, message):
    check_settings(load_config("plum", ["data.root=data"]))
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(load_config("plum", ["data.root=data", *changes]))


def test_sources_can_be_overridden_and_written():
    source = {"name": "vqa", "weight": 1.5, "options": {"images": ("a",)}}
    config = load_config("tiny", [f"data.sources=({source!r},)", "data.root=data", "loss.patch=0"])
    assert config.data.sources == (source,)
    assert config_from_json(config_json(config)).data.sources == (source,)
    with pytest.raises(UserError, match="is not of the form of"):
        load_config("tiny", ["data.sources=('vqa',)"])


@pytest.mark.parametrize(
    "weights, wanted",
    [
        (dict(semantic=9.0, refer=5.0, vqa=5.0, reason=1.0), (3, 4)),
        (dict(semantic=9, refer=3, vqa=3, reason=1), (13, 16)),
        (dict(semantic=0.5, vqa=0.25, explanatory=0.25), (3, 4)),
        (dict(semantic=1.0, refer=2.0), (1, 1)),
        (dict(vqa=1.0), (1, 1)),
    ],
)
def test_grounded_follows_the_weights(weights, wanted):
    listed = [{"name": name, "weight": weight} for name, weight in weights.items()]
    assert grounded_pair(data(*listed)) == wanted
    assert grounded_pair(data(*listed, grounded=(1, 8))) == (1, 8)


def test_opening(monkeypatch, tmp_path):
    monkeypatch.setitem(KINDS, "ade20k", Kind("semantic", "source_fixtures:FakeSource", (("dataset", "ade20k"),)))
    (entry,) = entries(data({"name": "ade20k", "weight": 1, "root": str(tmp_path), "options": {"broken": (2,)}}))
    source = open_source(entry, 3)
    assert type(source).__name__ == FakeSource.__name__ and (source.per_image, source.broken) == (3, (2,))
    (entry,) = entries(data({"name": "ade20k", "weight": 1, "root": str(tmp_path), "options": {"foo": 1}}))
    with pytest.raises(UserError, match="ade20k: .*unexpected keyword argument 'foo'; correct its options"):
        open_source(entry, 3)
