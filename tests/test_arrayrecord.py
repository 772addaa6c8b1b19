import json
import pickle
import shutil

import numpy as np
import pytest
from build_fixtures import assert_equal_samples
from fixtures_partonomy import write_folder

from data_pipelines.arrayrecord import ArrayRecordSource, find_build, main
from data_pipelines.build import build
from data_pipelines.example import decode_record, encode_record, record_text
from data_pipelines.images import StoredImage, load_image
from plum_jax.errors import UserError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    write_folder(root, images=9)
    return build("explanatory", root, root / "out", shard_records=4, log=lambda line: None)


@pytest.fixture
def built(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


def damage(path, place=0.5, length=1):
    data = bytearray(path.read_bytes())
    start = int(len(data) * place)
    data[start : start + length] = bytes(255 - byte for byte in data[start : start + length])
    path.write_bytes(data)


def shard(built, number):
    return built / f"plum_explanatory-train.array_record-{number:05d}-of-00003"


@pytest.mark.parametrize("image", [b"", b"\x00\xff" * 70_000])
def test_records_are_examples(image):
    record = {"key": "a", "text": "Où? “là”", "mask": {"size": [3, 4], "counts": "04"}, "none": None}
    data = encode_record("clé", image, record_text(record).encode())
    assert decode_record(data) == ("clé", image, record)
    assert record_text(dict(reversed(record.items()))) == record_text(record)
    for bad in (data[:-1], data + b"\x08\x01", b"", encode_record("", b"", b"{}")[:10]):
        with pytest.raises((ValueError, IndexError)):
            decode_record(bad)


def test_records_in_any_order_and_in_another_process(built):
    source = ArrayRecordSource(built, per_image=2)
    keys = [source.stored(index)[0] for index in range(len(source))]
    assert [key.rpartition(":")[2] for key in keys] == [f"images/train_{k}.png" for k in range(9)]
    copy = pickle.loads(pickle.dumps(source))
    for index in (8, 0, 4, 3, 7):
        one, other = (each.sample(index, np.random.default_rng(index)) for each in (source, copy))
        assert one.key == other.key == keys[index] and one == other
    for index in (-1, 9):
        with pytest.raises(IndexError):
            source.sample(index, np.random.default_rng(0))


def test_images_are_read_from_memory(built):
    sample = ArrayRecordSource(built).sample(2, np.random.default_rng(0))
    assert load_image(sample.image).shape == (56, 60, 3)
    assert str(sample.image).endswith("images/train_2.png") and "data" not in repr(sample.image)
    with pytest.raises(UserError, match=r"^x/broken.png: not a readable image"):
        load_image(StoredImage("x/broken.png", sample.image.data[:50]))


@pytest.mark.parametrize("place", [0.0, 0.51, 0.9])
def test_a_corrupt_shard_is_named(built, place, capsys):
    damage(shard(built, 1), place, 3000)
    with pytest.raises(UserError, match="-00001-of-00003: is damaged, its SHA-256 is not that of build.json; repeat"):
        ArrayRecordSource(built, verify=True)
    source = ArrayRecordSource(built)
    source.sample(0, np.random.default_rng(0))  # the others can be read
    assert main([str(built), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {f"{built} train": [f"{shard(built, 1).name} is damaged"]}


def test_reading_from_a_corrupt_shard_names_it(built):
    shard(built, 1).write_bytes(b"\0" * 131072)
    with pytest.raises(UserError, match=r"-00001-of-00003: record 0 is not readable \(.*\); repeat plum data build"):
        ArrayRecordSource(built).sample(4, np.random.default_rng(0))
    shard(built, 1).write_bytes(shard(built, 2).read_bytes())  # whole, but another one
    with pytest.raises(UserError, match=r"-00001-of-00003: record 3 is not readable"):
        ArrayRecordSource(built).sample(7, np.random.default_rng(0))


def test_a_missing_shard_is_named_at_once(built, capsys):
    shard(built, 2).unlink()
    with pytest.raises(UserError, match="-00002-of-00003: is missing; repeat"):
        ArrayRecordSource(built)
    assert main([str(built)]) == 1 and "-00002-of-00003 is missing" in capsys.readouterr().out


def test_verify_says_that_all_is_well(built, capsys):
    assert main([str(built.parent)]) == 0
    assert capsys.readouterr().out == f"{built} train: as written\n"


def test_folders_that_are_no_build(built, tmp_path):
    shutil.copytree(built, tmp_path / "second")
    with pytest.raises(UserError, match=r"holds 2 builds \(.*copy, .*second\); give the folder"):
        ArrayRecordSource(tmp_path)
    assert find_build(built) == built
    with pytest.raises(UserError, match="holds no build; give the folder with the build.json"):
        main([str(tmp_path / "nothing")])
    facts = json.loads((built / "build.json").read_text())
    (built / "build.json").write_text(json.dumps({**facts, "format": 9}))
    with pytest.raises(UserError, match="format 9, this version reads 1"):
        ArrayRecordSource(built)
    (built / "build.json").write_text('{"splits": []')
    with pytest.raises(UserError, match="is no description of a build"):
        ArrayRecordSource(built)


def test_unknown_options_of_the_draw(built):
    with pytest.raises(
        UserError, match="partonomy: per_picture is 3, but the build has per_picture None; only per_image, question_types"
    ):
        ArrayRecordSource(built, per_picture=3)


def test_moved_data_gives_the_same_samples(original, built):
    one, other = ArrayRecordSource(original), ArrayRecordSource(built)
    for index in range(len(one)):
        a, b = (source.sample(index, np.random.default_rng(5)) for source in (one, other))
        assert a.dialogues == b.dialogues and a.image.data == b.image.data


def test_samples_equal_the_folder_for_every_image(original):
    from data_pipelines.explanatory import Explanatory

    raw, stored = Explanatory(original.parents[3]), ArrayRecordSource(original)
    for index in range(len(raw)):
        assert_equal_samples(*(source.sample(index, np.random.default_rng(index)) for source in (stored, raw)))
