import builtins
import json
import os
import pickle
import struct
import zlib

import pytest
from fixtures_folders import HW, box, coco, write_image, write_json
from test_refer import folder, ref

from data_pipelines.check import main
from plum_jax.errors import UserError


def _coco(root, segmentation=None, names=("a.png",)):
    for number, name in enumerate(("a.png", "b.png")):
        write_image(root / "images" / name, seed=number)
    content = coco(names, [(1, 1, segmentation or [box(2, 2, 20, 20)])], ({"name": "mug:handle"},))
    write_json(root / "parts.json", content)
    return content


def _check(root, capsys):
    status = main([str(root / "parts.json"), "--images", str(root / "images"), "--json"])
    report = json.loads(capsys.readouterr().out)
    return status, " | ".join(e["problem"] for e in report["problems"]), " | ".join(e["problem"] for e in report["warnings"])


def test_a_good_coco_file(tmp_path, capsys):
    _coco(tmp_path)
    assert _check(tmp_path, capsys) == (0, "", "")


@pytest.mark.parametrize(
    ("segmentation", "status", "said"),
    [
        ([[float("nan"), 1, 5, 5, 9, 1]], 1, "polygon is [NaN"),
        ([[float("inf"), 1, 5, 5, 9, 1]], 1, "polygon is [Infinity"),
        ([[1, 1, 5, 5]], 0, "2 points"),
        ([box(2, 2, 90, 20)], 0, "leaves the image"),
        ({"size": list(HW), "counts": [10**30]}, 1, "counts is"),
        ({"size": list(HW), "counts": [7]}, 1, "run lengths cover 7"),
        ({"size": list(HW), "counts": [HW[0] * HW[1]]}, 0, "covers no pixel"),
    ],
)
def test_bad_masks(tmp_path, capsys, segmentation, status, said):
    _coco(tmp_path, segmentation)
    found, errors, warnings = _check(tmp_path, capsys)
    assert found == status
    assert said in (errors if status else warnings)


@pytest.mark.parametrize(
    ("name", "said"), [("../x.png", "below --images"), ("/etc/x.png", "below --images"), ("none.png", "1 image not found")]
)
def test_bad_names(tmp_path, capsys, name, said):
    _coco(tmp_path, names=(name,))
    assert said in _check(tmp_path, capsys)[1]


def test_links_pipes_and_bombs(tmp_path, capsys):
    _coco(tmp_path, names=("link.png", "pipe.png", "bomb.png"))
    write_image(tmp_path / "outside.png")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(tmp_path / "images/pipe.png")
    head = b"IHDR" + struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    idat = b"IDAT"
    (tmp_path / "images/bomb.png").write_bytes(bomb + struct.pack(">I", 0) + idat + struct.pack(">I", zlib.crc32(idat)))
    errors = _check(tmp_path, capsys)[1]
    for said in ("is a link out of", "device or pipe, not a file", "shrink the image"):
        assert said in errors


def test_an_unreadable_image(tmp_path, capsys, monkeypatch):
    """The system says no to the one file, as it does to anybody but root after chmod 000."""
    _coco(tmp_path)
    opened = builtins.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith("images/a.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    assert "Permission denied" in _check(tmp_path, capsys)[1]


@pytest.mark.parametrize(
    ("data", "said"), [(b"[" * 200000, "nested"), (b'{"a": "\xff"}', "UTF-8"), (b'{"a": 1, "a": 2}', "has no list")]
)
def test_bad_json(tmp_path, capsys, data, said):
    _coco(tmp_path)
    (tmp_path / "parts.json").write_bytes(data)
    status, errors, _ = _check(tmp_path, capsys)
    assert status == 1
    assert said in errors


def test_a_root(tmp_path, capsys):
    folder(tmp_path, [ref(1, 1, "dog")], [(1, [box(0, 0, 20, 30)])])
    assert main([str(tmp_path), "--dataset", "refcoco"]) == 0
    assert "complete data set has 16,994" in capsys.readouterr().out
    os.mkfifo(tmp_path / "refer_seg/refcoco/pipe.jpg")
    assert main([str(tmp_path), "--dataset", "refcoco"]) == 1
    assert "pipe.jpg: is a pipe" in capsys.readouterr().out


def test_a_pickle_with_code_runs_nothing(tmp_path, capsys):
    folder(tmp_path, [ref(1, 1, "dog")], [(1, [box(0, 0, 20, 30)])])

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "refer_seg/refcoco/refs(unc).p").write_bytes(pickle.dumps(Code()))
    assert main([str(tmp_path), "--dataset", "refcoco"]) == 1
    assert "nothing was run" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()


def test_wrong_entries_and_copies(tmp_path, capsys):
    content = _coco(tmp_path, names=("a.png", "copy.png", "loop.png"))
    (tmp_path / "images/copy.png").write_bytes((tmp_path / "images/a.png").read_bytes())
    (tmp_path / "images/loop.png").symlink_to("loop.png")
    first = content["annotations"][0]
    content["annotations"] += [first, {**first, "id": 2, "image_id": 9}, {**first, "id": 3, "category_id": [1]}]
    content["annotations"].append({**first, "id": 4, "iscrowd": 1})
    content["images"].append({"id": 7, "height": 4, "width": 4})
    content["categories"] += [{"id": 2, "name": "MUG:handle "}, {"id": 3, "name": "wheel"}, {"id": 4, "name": ["x"]}]
    write_json(tmp_path / "parts.json", content)
    write_json(tmp_path / "parts.yaml", {"mug": ["mug:handle"]})
    status, errors, warnings = _check(tmp_path, capsys)
    assert status == 1
    for said in ("the id occurs twice", "image 9 is not in the file", "category None is not in the file",
                 "file_name is None", "loop.png", "has no name"):  # fmt: skip
        assert said in errors
    for said in ("copy.png is the same file as a.png", "differ in spelling only"):
        assert said in warnings
    command = [str(tmp_path / "parts.json"), "--images", str(tmp_path / "images"), "--hierarchy", str(tmp_path / "parts.yaml")]
    assert main(command) == 1
    assert "1. " in capsys.readouterr().out


def test_a_record_that_does_not_fit_its_image(tmp_path, capsys):
    folder(tmp_path, [ref(1, 1, "dog")], [(1, [box(0, 0, 20, 30)])])
    (image,) = tmp_path.rglob("*.jpg")
    write_image(image, hw=(30, 30))
    assert main([str(tmp_path), "--dataset", "refcoco"]) == 1
    assert f"a mask is {HW[0]} x {HW[1]}, the image 30 x 30" in capsys.readouterr().out
    image.write_bytes(b"no")
    assert main([str(tmp_path), "--dataset", "refcoco"]) == 1
    assert "not a readable image" in capsys.readouterr().out


def test_nothing_to_check(tmp_path):
    write_json(tmp_path / "parts.json", coco((), ()))
    for command in (["none.json", "--images", "."], ["parts.json", "--images", "."], ["none", "--dataset", "refcoco"]):
        with pytest.raises(UserError):
            main([str(tmp_path / command[0]), command[1], command[2].replace(".", str(tmp_path))])
