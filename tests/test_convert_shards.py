"""The shard writer: names, sizes, what is in memory, what is left after an error, and every dtype back."""

import json

import ml_dtypes
import numpy as np
import pytest

from plum_jax.convert import tensors
from plum_jax.convert.shards import ShardWriter
from plum_jax.errors import UserError

ARRAYS = {
    "a": np.arange(100, dtype=np.float32).reshape(10, 10),
    "b": np.linspace(0, 1, 60).astype(ml_dtypes.bfloat16).reshape(3, 20),
    "scalar": np.array(3.5, np.float16),
    "big": np.arange(300, dtype=np.float32),
    "turned": np.arange(24, dtype=np.float32).reshape(4, 6).T,
    "every second": np.arange(20, dtype=np.float32)[::2],
    "empty": np.zeros((0, 3), np.float32),
    "ids": np.arange(3),
}
STEM = {"safetensors": "model", "bin": "pytorch_model"}
FORMS = pytest.mark.parametrize("form", ["safetensors", "bin"])


@pytest.fixture(autouse=True)
def torch():
    yield pytest.importorskip("torch")
    tensors.close()


def write(folder, arrays, *args, metadata=None, **options):
    with ShardWriter(folder, *args, **options) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        return writer.finish(metadata)


def check(folder):
    found = tensors.read_folder(folder)
    assert found.keys() == ARRAYS.keys()
    for name, want in ARRAYS.items():
        got = found[name].read()
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_array_equal(got, want)


@FORMS
def test_one_file_has_no_index(tmp_path, form):
    out = write(tmp_path / "out", ARRAYS, form=form)
    assert out == tmp_path / "out" / f"{STEM[form]}.{form}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [out.name]
    check(tmp_path / "out")


@FORMS
def test_shards_and_their_index(tmp_path, form):
    out = write(tmp_path, ARRAYS, 600, form=form, metadata={"step": 7})
    names = [f"{STEM[form]}-0000{k}-of-00003.{form}" for k in (1, 2, 3)]
    assert out.name == f"{STEM[form]}.{form}.index.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, out.name])
    index = json.loads(out.read_text())
    assert index["metadata"] == {"step": 7, "total_size": sum(x.nbytes for x in ARRAYS.values())}
    held = {name: [key for key, shard in index["weight_map"].items() if shard == name] for name in names}
    assert list(held.values()) == [["a", "b", "scalar"], ["big"], ["turned", "every second", "empty", "ids"]]
    check(tmp_path)
    out.unlink()
    check(tmp_path)


def test_one_shard_is_in_memory_and_the_files_have_no_name_before_the_end(tmp_path):
    with ShardWriter(tmp_path, 1000) as writer:
        for k in range(10):
            writer.add(f"x{k}", np.full(100, k, np.float32))
            assert sum(x.nbytes for x in writer.arrays.values()) == writer.bytes <= 1000
            assert not list(tmp_path.glob("model*"))
        assert len(list(tmp_path.iterdir())) == 4
        writer.finish()
    assert len(list(tmp_path.glob("model-*-of-00005.safetensors"))) == 5
    assert len(list(tmp_path.iterdir())) == 6


@FORMS
def test_an_error_leaves_nothing_behind(tmp_path, form):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, 100, form=form) as writer:
        for k in range(4):
            writer.add(f"x{k}", np.zeros(20, np.float32))
        assert list(tmp_path.iterdir())
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@FORMS
def test_a_full_disk_is_one_sentence(tmp_path, form, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file" if form == "safetensors" else "torch.save", full)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written .No space left on device.; make room"):
        write(tmp_path, ARRAYS, form=form)
    assert not list(tmp_path.iterdir())


@FORMS
def test_what_is_there_is_not_mixed_with_what_is_new(tmp_path, form):
    write(tmp_path, ARRAYS, 600, form=form)
    with pytest.raises(UserError, match=f"{STEM[form]}-00001-of-00003.{form}: is there already; give an empty --out"):
        ShardWriter(tmp_path, form=form)
    write(tmp_path, ARRAYS, form=form, stem="adapter_model")
    assert (tmp_path / f"adapter_model.{form}").exists()


def test_wrong_use(tmp_path):
    with pytest.raises(UserError, match="--format: 'onnx' is not known; use safetensors or bin"):
        ShardWriter(tmp_path, form="onnx")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file/out: cannot be written .Not a directory.; give another --out"):
        ShardWriter(tmp_path / "file" / "out")
    with ShardWriter(tmp_path) as writer:
        writer.add("a", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="a: was added before"):
            writer.add("a", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="is complex128"):
            writer.add("b", np.zeros(2, complex))
