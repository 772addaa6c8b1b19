"""Prediction over folders: files, formats, unreadable images, continuing a stopped run."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from plum_jax import cli, predict
from plum_jax.errors import UserError
from plum_jax.inference import Model
from tests import eval_fixtures

PROMPT = "What visible parts does the dog in the image have?"


@pytest.fixture(scope="module")
def model():
    return Model(eval_fixtures.loaded())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five images in two folders, one of them broken, one large, one turned by its EXIF tag, and a text file."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (folder / "b").mkdir()
    for name, hw in {"1.png": (20, 31), "b/2.png": (40, 16), "b/3.png": (600, 801)}.items():
        Image.fromarray(rng.integers(0, 255, (*hw, 3), np.uint8)).save(folder / name)
    turned = Image.fromarray(rng.integers(0, 255, (10, 24, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(model, paths, out, **options):
    return predict.predict(model, paths, PROMPT, out, batch_size=2, log=None, **options)


@pytest.fixture(scope="module")
def done(model, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, *run(model, predict.find_images([photos]), out)


def test_find_images(photos):
    found = predict.find_images([photos, photos / "1.png", str(photos / "b" / "*.png")])
    assert [p.relative_to(photos).as_posix() for p in found] == ["1.png", "b/2.png", "b/3.png", "broken.jpg", "turned.png"]
    assert predict.file_names(found) == ["1.png", "b/2.png", "b/3.png", "broken.jpg", "turned.png"]
    assert predict.file_names(found[:1]) == ["1.png"]
    with pytest.raises(UserError, match=r"\*\.gif"):
        predict.find_images([str(photos / "*.gif")])


def test_everything_is_written(done, photos):
    out, records, errors = done
    written = json.loads((out / "predictions.json").read_text())
    assert written["predictions"] == records and written["settings"]["prompt"] == PROMPT
    assert [(r["height"], r["width"]) for r in records] == [(20, 31), (40, 16), (600, 801), (24, 10)]  # the last one is upright
    document = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["1.png", "b/2.png", "b/3.png", "turned.png"]
    assert document["annotations"]
    by_id = {image["id"]: image for image in document["images"]}
    for annotation in document["annotations"]:
        image = by_id[annotation["image_id"]]
        assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
        assert {"score", "phrase", "char_span", "status", "bbox", "area", "category_id"} <= set(annotation)
    for name in ("1.png", "b/2.png", "turned.png"):
        assert Image.open(out / "overlays" / f"{name}.png").width >= 100
    rows = list(csv.reader((out / "errors.csv").open()))
    assert rows[0] == ["file_name", "error"] and rows[1][0] == "broken.jpg" and len(rows) == 2
    assert errors[0][0] == "broken.jpg"


def test_a_stopped_run_continues_to_the_same_files(done, model, photos, tmp_path, monkeypatch):
    whole, paths, calls = done[0], predict.find_images([photos]), []
    answer = model.answer

    def stop_at_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*args, **kwargs)

    monkeypatch.setattr(model, "answer", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(model, paths, tmp_path)
    assert not (tmp_path / "predictions.json").exists()
    with open(tmp_path / predict.PARTIAL, "a") as file:
        file.write('{"file_name": "b/3.p')  # what a kill leaves
    run(model, paths, tmp_path)
    assert len(calls) == 4  # one batch, the interrupted one, and the two that were left
    for name in ("predictions.json", "coco.json", "errors.csv", predict.PARTIAL, "overlays/b/2.png.png"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_other_settings_need_another_folder(done, model, photos):
    with pytest.raises(UserError, match=r"records\.jsonl.*another prompt"):
        predict.predict(model, predict.find_images([photos]), "Else?", done[0], batch_size=2, log=None)


def test_formats_and_min_score(model, photos, tmp_path):
    records, _ = run(model, [photos / "1.png"], tmp_path, formats=("coco",))
    assert not (tmp_path / "overlays").exists() and len(records) == 1
    with pytest.raises(UserError, match="'labelstudio'"):
        predict.parse_formats("coco,labelstudio")


@pytest.mark.parametrize("args", [["none.png"], ["--checkpoint", "no/run"]])
def test_bad_input_has_status_2(args, photos, tmp_path, capsys):
    paths = [] if args[0] == "none.png" else [str(photos / "1.png")]
    status = cli.run(predict.main, [*paths, *args, "--prompt", "What?", "--out", str(tmp_path / "o")])
    assert status == 2 and not (tmp_path / "o" / "predictions.json").exists()
    assert capsys.readouterr().err.count("\n") == 1
