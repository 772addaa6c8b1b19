"""Prediction over folders: files, formats, unreadable images, continuing a stopped run."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from plum_jax import cli, predict
from plum_jax.errors import UserError
from plum_jax.inference import Model
from plum_jax.loading import LoadedModel
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
    loaded = eval_fixtures.loaded()
    config = loaded.config.copy_and_resolve_references()
    config.eval.update(feedback=False)
    with pytest.raises(UserError, match=r"records\.jsonl.*another eval\.feedback"):
        run(Model(type(loaded)(**{**vars(loaded), "config": config})), predict.find_images([photos]), done[0])


def test_formats_and_min_score(model, photos, tmp_path):
    records, _ = run(model, [photos / "1.png"], tmp_path, formats=("coco",))
    assert not (tmp_path / "overlays").exists() and len(records) == 1
    with pytest.raises(UserError, match="'labelstudio'"):
        predict.parse_formats("coco,labelstudio")


def test_what_cannot_be_written_or_read_is_listed(model, photos, tmp_path):
    """A name that leaves no room for a suffix, one that is not UTF-8, a link to nothing, an overlay whose place is taken."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = ["n" * 248 + ".png", "ok.png", "taken.png"]
    for name in names:
        (folder / name).write_bytes((photos / "1.png").read_bytes())
    (folder / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"x")
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    (out / "overlays" / "taken.png.png" / "x").mkdir(parents=True)
    records, errors = run(model, predict.find_images([folder]), out)
    assert [r["file_name"] for r in records] == names and "error" not in records[-1]
    assert {name for name, _ in errors} == {os.fsdecode(b"bad\xff.jpg"), "gone.jpg", "taken.png"}
    assert {row[0] for row in csv.reader((out / "errors.csv").open())} == {
        "file_name", "bad\\udcff.jpg", "gone.jpg", "taken.png"}  # fmt: skip
    assert sorted(p.name for p in (out / "overlays").iterdir()) == sorted(map(predict.overlay_name, names))


def test_no_readable_image_leaves_only_the_reasons(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of the 1 images.*errors\.csv"):
        run(model, [tmp_path / "a.png"], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["errors.csv"]


@pytest.mark.parametrize(
    "args, said",
    [
        (["--prompt", "What is <image>?"], "--prompt 'What is <image>?': <image> is reserved"),
        (["--prompt", "x</s>"], "</s> is reserved"),
        (["--prompt", " "], "--prompt ' ': is empty"),
        (["--prompt", "\udcff"], "not valid Unicode"),
        (["--prompt", "part " * 999], "tokens, of at most"),
        (["--min-score", "nan"], "--min-score nan"),
        (["--min-score", "7"], "--min-score 7.0"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--format", ""], "--format ''"),
        (["--config.model.llama.depth=3"], "--config.model.llama.depth"),
        (["--config.eval.min_score=7"], "--config.eval.min_score 7.0"),
    ],
)
def test_bad_arguments_write_nothing(args, said, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("plum_jax.loading.load_model", lambda path, **_: LoadedModel(**vars(eval_fixtures.loaded())))
    out = tmp_path / "o"
    assert cli.run(predict.main, [str(photos / "1.png"), "--prompt", "What?", "--out", str(out), *args], name="predict") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("args", [["none.png"], ["--checkpoint", "no/run"]])
def test_bad_input_has_status_2(args, photos, tmp_path, capsys):
    paths = [] if args[0] == "none.png" else [str(photos / "1.png")]
    status = cli.run(predict.main, [*paths, *args, "--prompt", "What?", "--out", str(tmp_path / "o")])
    assert status == 2 and not (tmp_path / "o" / "predictions.json").exists()
    assert capsys.readouterr().err.count("\n") == 1
