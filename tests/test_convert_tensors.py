"""Reading checkpoint files and folders: values, laziness, every fault by its name, and that no file can run anything."""

import json
import os
import pickle
import shutil
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from plum_jax.convert import files, pickles, tensors
from plum_jax.errors import UserError
from tests.convert_fixtures import as_torch

torch = pytest.importorskip("torch")

ARRAYS = {
    "b": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(5, dtype=np.float16),
    "half": np.linspace(-3, 3, 7).astype(ml_dtypes.bfloat16),
    "ids": np.arange(4, dtype=np.int64).reshape(2, 1, 2),
    "flag": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((2, 0), np.float32),
    "not_finite": np.array([np.nan, np.inf, -np.inf], np.float32),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    tensors.close()


def write(path, arrays, **options):
    if path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        torch.save({name: as_torch(array) for name, array in arrays.items()}, path, **options)
    return path


def write_index(folder, name, **weight_map):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def check(found, want):
    assert found.keys() == want.keys()
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (want[name].shape, want[name].dtype.name)
        array = tensor.read()
        assert array.dtype == want[name].dtype and array.shape == want[name].shape
        np.testing.assert_array_equal(array, want[name])


def refuses(match, read, *args):
    with pytest.raises(UserError, match=match) as caught:
        read(*args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pth", "x.pt"])
def test_a_file_gives_every_dtype_back(tmp_path, name):
    check(tensors.read_file(write(tmp_path / name, ARRAYS)), ARRAYS)


def test_the_old_format_of_pytorch_and_a_zip_that_was_compressed_again(tmp_path):
    check(tensors.read_file(write(tmp_path / "x.bin", ARRAYS, _use_new_zipfile_serialization=False)), ARRAYS)
    stored = write(tmp_path / "stored.bin", ARRAYS)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(tmp_path / "packed.bin", "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    check(tensors.read_file(tmp_path / "packed.bin"), ARRAYS)


def test_views_parameters_and_wrappers(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    entries = {"t": base.T, "row": base[1], "same": base, "p": torch.nn.Parameter(base + 1), "wide": base[:1].expand(3, 4)}
    want = {name: x.detach().numpy() for name, x in entries.items()}
    for i, content in enumerate([entries, {"state_dict": entries, "epoch": 3}, {"model": entries, "optimizer": {"lr": 0.1}}]):
        torch.save(content, tmp_path / f"{i}.pth")
        check(tensors.read_file(tmp_path / f"{i}.pth"), want)


def test_arrays_outlive_their_file(tmp_path):
    for name in ("x.safetensors", "x.bin"):
        tensor = tensors.read_file(write(tmp_path / name, ARRAYS))["b"]
        array = tensor.read()
        tensors.close()
        (tmp_path / name).write_bytes(bytes(os.path.getsize(tmp_path / name)))
        np.testing.assert_array_equal(array, ARRAYS["b"])
        array[:] = 0  # and can be changed


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_values_are_read_by_read_and_not_before(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"a": np.ones(4, np.float32)})
    found = tensors.read_file(path)
    write(path, {"a": np.full(4, 7, np.float32)})
    np.testing.assert_array_equal(found["a"].read(), 7)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_one_shard_is_open_and_each_is_opened_once(tmp_path, suffix, monkeypatch):
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}-0000{i}-of-00003{suffix}" for i in (1, 2, 3)]
    for i, name in enumerate(names):
        write(tmp_path / name, {f"{i}a": np.full(2, i, np.float32), f"{i}b": np.zeros(3, np.float32)})
    opened = []
    opener = "_open_safetensors" if suffix == ".safetensors" else "_open_pickle"
    original = getattr(tensors, opener)
    monkeypatch.setattr(tensors, opener, lambda path: opened.append(path.name) or original(path))
    found = tensors.read_folder(tmp_path)
    assert opened == names
    tensors.close()
    opened.clear()
    for name, tensor in found.items():
        assert tensor.read()[0] == (int(name[0]) if name.endswith("a") else 0)
        assert [key[0] for key in files._held] == [tensor.file]
    assert opened == names
    tensors.close()
    assert not files._held


def test_folders_with_and_without_an_index(tmp_path):
    one, two = dict(list(ARRAYS.items())[:3]), dict(list(ARRAYS.items())[3:])
    for suffix, stem in ((".safetensors", "model"), (".bin", "pytorch_model")):
        folder = tmp_path / suffix
        folder.mkdir()
        names = [f"{stem}-00001-of-00002{suffix}", f"{stem}-00002-of-00002{suffix}"]
        write(folder / names[0], one)
        write(folder / names[1], two)
        write(
            folder / f"training_args{suffix}" if suffix == ".bin" else folder / "adapter_model.safetensors", {"x": ARRAYS["b"]}
        )
        check(tensors.read_folder(folder), ARRAYS)
        index = f"{stem}{suffix}.index.json"
        write_index(folder, index, **dict.fromkeys(one, names[0]), **dict.fromkeys(two, names[1]))
        write(folder / f"{stem}-old{suffix}", {"b": ARRAYS["a"]})  # what the index does not name is not read
        check(tensors.read_folder(folder), ARRAYS)


def test_safetensors_come_first_and_adapters_last(tmp_path):
    write(tmp_path / "adapter_model.bin", {"a": ARRAYS["a"]})
    check(tensors.read_folder(tmp_path), {"a": ARRAYS["a"]})
    write(tmp_path / "adapter_model.safetensors", {"a": ARRAYS["half"]})
    check(tensors.read_folder(tmp_path), {"a": ARRAYS["half"]})
    write(tmp_path / "pytorch_model.bin", {"a": ARRAYS["b"]})
    check(tensors.read_folder(tmp_path), {"a": ARRAYS["b"]})
    write(tmp_path / "plum.safetensors", {"a": ARRAYS["ids"]})
    check(tensors.read_folder(tmp_path), {"a": ARRAYS["ids"]})


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("form", ["zip", "old", "bare", "protocol 4", "bare, protocol 4"])
@pytest.mark.parametrize("function", [os.system, eval])
def test_nothing_in_a_pickle_runs(tmp_path, form, function):
    proof = tmp_path / "proof"
    argument = f"touch {proof}" if function is os.system else f"open({str(proof)!r}, 'w')"
    content, path = {"a": torch.ones(2), "b": Call(function, argument)}, tmp_path / "pytorch_model.bin"
    if form.startswith("bare"):
        path.write_bytes(pickle.dumps(Call(function, argument), protocol=4 if "4" in form else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "old", pickle_protocol=4 if "4" in form else 2)
    named = f"its pickle calls {'posix.system' if function is os.system else '(builtins.)?eval'}, which weights do not need"
    match = "instructions that weights do not need .Unsupported operand" if "4" in form else named
    refuses(match, tensors.read_file, path)
    refuses(match, tensors.read_folder, tmp_path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Call(function, argument)))  # the proof proves something
    assert proof.exists()


def test_every_foreign_name_is_counted(tmp_path):
    torch.save({"a": torch.ones(2), "n": np.float64(1), "c": Call(os.getcwd)}, tmp_path / "x.pth")
    refuses(
        r"x.pth: its pickle calls .* and 2 more, .*; nothing was run; if you trust it", tensors.read_file, tmp_path / "x.pth"
    )


def test_stand_ins_are_for_the_named_library_alone(tmp_path, monkeypatch):
    fake = type("Scaler", (), {"__module__": "elsewhere.scale", "__qualname__": "Scaler"})
    module = type(sys)("elsewhere.scale")
    module.Scaler = fake
    monkeypatch.setitem(sys.modules, "elsewhere", type(sys)("elsewhere"))
    monkeypatch.setitem(sys.modules, "elsewhere.scale", module)
    torch.save({"s": fake()}, tmp_path / "x.pt")
    assert type(pickles.load(tmp_path / "x.pt", ("elsewhere.",))["s"]) is pickles.StandIn
    refuses("calls elsewhere.scale.Scaler", pickles.load, tmp_path / "x.pt")
    refuses("calls elsewhere.scale.Scaler", pickles.load, tmp_path / "x.pt", ("else.",))


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "old.bin"])
@pytest.mark.parametrize("keep", [0, 6, 40, 0.5, 0.9, -1])
def test_cut_files(tmp_path, name, keep):
    path = write(tmp_path / name, ARRAYS, _use_new_zipfile_serialization=name != "old.bin")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refuses(
        rf"{name}: .*(cut off or damaged|is empty, 0 bytes|is neither|instructions|calls torch).*; ", tensors.read_file, path
    )


def test_files_that_are_something_else(tmp_path):
    for name in ("x.safetensors", "x.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
        refuses("is a Git LFS pointer .*; run `git lfs pull`", tensors.read_file, tmp_path / name)
        (tmp_path / name).write_text("<!DOCTYPE html><html>")
        refuses(f"{name}: is neither safetensors nor PyTorch, it begins with b'<!DOCTYPE", tensors.read_file, tmp_path / name)
    shutil.copy(write(tmp_path / "y.bin", ARRAYS), tmp_path / "y.safetensors")
    refuses(
        "y.safetensors: is a PyTorch file by its content; rename it to y.bin", tensors.read_file, tmp_path / "y.safetensors"
    )
    shutil.copy(write(tmp_path / "z.safetensors", ARRAYS), tmp_path / "z.bin")
    refuses("z.bin: is a safetensors file by its content; rename it to z.safetensors", tensors.read_file, tmp_path / "z.bin")
    shutil.copy(tmp_path / "y.bin", tmp_path / "y.onnx")
    refuses("extension '.onnx' is not of weights", tensors.read_file, tmp_path / "y.onnx")
    refuses("no such file", tensors.read_file, tmp_path / "nowhere.bin")
    (tmp_path / "folder.bin").mkdir()
    refuses("is a folder", tensors.read_file, tmp_path / "folder.bin")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.ones(2)], "x.pt: holds a list; save a dictionary"),
        ({"a": torch.ones(2), "step": 3}, "x.pt: step is of type int, not a tensor"),
        ({"a": {"b": torch.ones(2)}}, "x.pt: a is of type dict, not a tensor"),
        ({3: torch.ones(2)}, "x.pt: 3 is not the name of a tensor"),
        ({}, "x.pt: holds no tensor"),
        ({"module": {}, "param_shapes": []}, "x.pt: is one file of a DeepSpeed checkpoint; give the folder"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "x.pt: a is of type float8_e4m3fn; save it as a dense tensor"),
        ({"a": torch.eye(3).to_sparse()}, "x.pt: a is not dense .*; save it as a dense tensor"),
        ({"a": torch.ones(2, device="meta")}, "x.pt: a is not dense .*meta"),
    ],
    ids=lambda x: str(x)[:24],
)
def test_pickles_that_are_not_a_dictionary_of_tensors(tmp_path, content, match):
    torch.save(content, tmp_path / "x.pt")
    refuses(match, tensors.read_file, tmp_path / "x.pt")


def test_a_dtype_of_safetensors_that_no_weights_have(tmp_path):
    save_file({"a": np.ones(2, np.uint32)}, tmp_path / "x.safetensors")
    refuses("x.safetensors: a is of type U32, not one of F64", tensors.read_file, tmp_path / "x.safetensors")


@pytest.fixture(params=[".safetensors", ".bin"])
def sharded(tmp_path, request):
    """A folder of two shards with an index -> (folder, index, the two shards)."""
    stem = "model" if request.param == ".safetensors" else "pytorch_model"
    shards = [f"{stem}-0000{i}-of-00002{request.param}" for i in (1, 2)]
    write(tmp_path / shards[0], {"a": ARRAYS["a"]})
    write(tmp_path / shards[1], {"b": ARRAYS["b"], "c": ARRAYS["ids"]})
    index = f"{stem}{request.param}.index.json"
    write_index(tmp_path, index, a=shards[0], b=shards[1], c=shards[1])
    return tmp_path, index, *shards


def test_faults_of_an_index(sharded):
    folder, index, one, two = sharded
    check(tensors.read_folder(folder), {"a": ARRAYS["a"], "b": ARRAYS["b"], "c": ARRAYS["ids"]})
    for weight_map, match in (
        (dict(a=one, b=two, c=two, d=two), f"{index}: says that d is in {two}, where it is not"),
        (dict(a=one, b=one, c=two), f"{index}: says that b is in {one}, where it is not"),
        (dict(a=one, b=two), f"{two}: holds c, which {index} does not list"),
        (dict(a="../" + one), f"{index}: names '../{one}', which is not a file of this folder"),
        (dict(a=str(folder / one)), "which is not a file of this folder"),
        (dict(a=".."), "which is not a file of this folder"),
        (dict(a="gone" + one), f"gone{one}: is missing, {index} names it"),
        (dict(a=3), f"{index}: has no weight_map"),
        ({}, f"{index}: has no weight_map"),
    ):
        write_index(folder, index, **weight_map)
        refuses(match, tensors.read_folder, folder)
    for text in ("", "[]", "{}", '{"weight_map": ["a"]}', "[" * 100_000):
        (folder / index).write_text(text)
        refuses(f"{index}: has no weight_map", tensors.read_folder, folder)


def test_one_name_in_two_shards(sharded):
    folder, index, one, two = sharded
    write(folder / one, {"a": ARRAYS["a"], "c": ARRAYS["ids"]})
    refuses(f"{two}: holds c, and so does {one}", tensors.read_folder, folder)
    (folder / index).unlink()
    refuses(f"{two}: holds c, and so does {one}", tensors.read_folder, folder)


def test_folders_that_are_not_complete_or_not_clear(sharded):
    folder, index, one, two = sharded
    single = index.removesuffix(".index.json")
    write(folder / single, {"a": ARRAYS["a"]})
    refuses(f"holds {single}, which {index} does not name", tensors.read_folder, folder)
    (folder / single).unlink()
    shutil.copy(folder / index, folder / f"pytorch_model.other{index[index.index('.') :]}")
    refuses("remove all but one", tensors.read_folder, folder)
    for path in folder.glob("*.json"):
        path.unlink()
    (folder / one).unlink()
    refuses(f"{one}: is missing, {two} is there", tensors.read_folder, folder)
    (folder / two).unlink()
    refuses("holds no .*safetensors, pytorch_model.*bin or adapter_model", tensors.read_folder, folder)
    refuses("no such folder", tensors.read_folder, folder / "nowhere")


def test_a_shard_that_goes_away(sharded):
    folder, _, one, _ = sharded
    found = tensors.read_folder(folder)
    (folder / one).unlink()
    refuses(f"{one}: cannot be opened", found["a"].read)


def test_safetensors_need_no_torch_and_pickles_say_how_to_get_it(tmp_path, monkeypatch):
    write(tmp_path / "model.safetensors", ARRAYS)
    path = write(tmp_path / "x.bin", ARRAYS)
    monkeypatch.setitem(sys.modules, "torch", None)
    check(tensors.read_folder(tmp_path), ARRAYS)
    refuses(
        r"x.bin: is a PyTorch file, and PyTorch is not installed; pip install 'plum_jax\[convert\]'", tensors.read_file, path
    )
