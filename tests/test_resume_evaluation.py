"""A stopped evaluation continues and ends with the same files; bad images are counted; other settings are refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from plum_jax import cli, evaluate
from plum_jax.errors import UserError
from plum_jax.evaluation import prediction_file
from plum_jax.evaluation.folder import evaluate_folder
from plum_jax.evaluation.journal import META, NAME
from plum_jax.evaluation.runner import UNREADABLE, Sizes
from plum_jax.inference import Model
from plum_jax.loading import LoadedModel
from tests import eval_fixtures

IMAGES = ((20, 31), (24, 16), (33, 27), (18, 22), (30, 19))
SIZES = Sizes(images=2, questions=3, masks=5)  # those of tests.test_evaluate: compiled once
SCRIPT = """
import sys, time
from pathlib import Path
from plum_jax.evaluation import folder, prediction_file
from plum_jax.inference import Model
from tests import eval_fixtures
from tests.test_resume_evaluation import SIZES
append = prediction_file.append
def slow(path, predictions):
    append(path, predictions)
    time.sleep(float(sys.argv[3]))
prediction_file.append = slow
folder.evaluate_folder(Model(eval_fixtures.loaded()), Path(sys.argv[1]), "test", Path(sys.argv[2]), log=None, sizes=SIZES)
"""

COMMAND = """
import sys, time
from plum_jax import cli, loading
from plum_jax.evaluation import prediction_file
from tests import eval_fixtures
model, append = eval_fixtures.loaded(), prediction_file.append
def slow(path, predictions):
    append(path, predictions)
    time.sleep(float(sys.argv[1]))
prediction_file.append = slow
loading.load_model = lambda *_, **__: loading.LoadedModel(model.config, model.params, model.tokenizer, "", "random", 0)
raise SystemExit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def model():
    return Model(eval_fixtures.loaded())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    eval_fixtures.write_folder(folder, IMAGES)
    return folder


@pytest.fixture(scope="module")
def whole(data, model):
    """Folder of a run that was not stopped."""
    evaluate_folder(model, data, "test", data / "whole", log=None, sizes=SIZES)
    return data / "whole"


def files(out):
    """What must be equal to the byte; results without what is about this start."""
    results = json.loads((out / "results.json").read_text())
    for key in ("seconds", "command"):
        results.pop(key)
    return (out / NAME).read_bytes(), (out / "instances.jsonl").read_bytes(), json.dumps(results)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("images, torn", [(1, b""), (2, b'{"index": 6, "image_pa'), (3, b"{"), (5, b"")])
def test_a_stopped_run_continues(whole, data, model, tmp_path, monkeypatch, images, torn):
    append, written = prediction_file.append, []

    def stop(path, predictions):
        append(path, predictions)
        written.append(path)
        if len(written) == images:
            path.write_bytes(path.read_bytes() + torn)
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(prediction_file, "append", stop)
        evaluate_folder(model, data, "test", tmp_path, log=None, sizes=SIZES)
    assert not (tmp_path / "results.json").exists()
    towers = []
    encode = Model.stack
    monkeypatch.setattr(Model, "stack", lambda self, *a: towers.append(1) or encode(self, *a))
    evaluate_folder(model, data, "test", tmp_path, log=None, sizes=SIZES)
    assert files(tmp_path) == files(whole)
    assert len(towers) == 3 - images // 2 if images < 5 else not towers  # finished groups of two images are not run again


def test_a_killed_process_continues(data, tmp_path):
    """Each run in a process of its own: one process may compile the same program to other last digits than the next."""

    def start(out, delay):
        command = [sys.executable, "-c", SCRIPT, str(data), str(tmp_path / out), str(delay)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})

    unstopped, process, predictions = start("whole", 0), start("out", 30), tmp_path / "out" / NAME
    try:
        deadline = time.monotonic() + 240
        while not predictions.is_file() or not predictions.read_bytes().endswith(b"\n"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert 0 < len(predictions.read_text().splitlines()) < 15
    assert start("out", 0).wait(240) == 0 and unstopped.wait(240) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_sigterm_ends_the_command_which_goes_on(data, tmp_path):
    def start(delay):
        words = ["evaluate", "partonomy", "--checkpoint=any", f"--data={data}", f"--out={tmp_path}", "--protocols=published"]
        kinds = "--question-types=identification_with_label"
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(delay), *words, kinds, "--batch-images=2"],
            env={**os.environ, "PYTHONPATH": os.getcwd()}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    process = start(60)
    while not (tmp_path / NAME).is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    assert err.endswith("\nplum evaluate: stopped by SIGTERM; run the same command to go on\n")
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "stopped"
    process = start(0)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and "Going on: " in err and "Wrote" in out, err
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "done"


def test_a_finished_run_is_scored_again_without_the_model(whole, data, model, tmp_path, monkeypatch):
    before = files(whole)
    monkeypatch.setattr(Model, "view", None)
    evaluate_folder(model, data, "test", whole, log=None, sizes=SIZES)
    assert files(whole) == before


def test_other_settings_are_refused(whole, data, model, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (NAME, META):
        (copy / name).write_bytes((whole / name).read_bytes())
    again = lambda **options: evaluate_folder(model, data, "test", copy, log=None, sizes=SIZES, **options)  # noqa: E731
    with pytest.raises(UserError, match="holds a run that differs in protocols; give another --out, or .*--restart"):
        again(protocols=("middle",))
    with pytest.raises(UserError, match="differs in max_images"):
        again(max_images=2)
    lines = (copy / NAME).read_text().splitlines(keepends=True)
    (copy / NAME).write_text("".join([*lines[:2], lines[3]]))
    with pytest.raises(UserError, match="line 3 is not what this run wrote"):
        again()
    (copy / META).unlink()
    with pytest.raises(UserError, match=f"predictions without a readable {META}"):
        again()
    assert again(changed="restart")["counts"]["scored"] == 15


def test_bad_images_are_counted(data, model, tmp_path, capsys):
    folder = tmp_path / "data"
    eval_fixtures.write_folder(folder, IMAGES)
    good = evaluate_folder(model, folder, "test", tmp_path / "good", log=None, sizes=SIZES)
    (folder / "images" / "1.png").unlink()
    (folder / "images" / "4.png").write_bytes((folder / "images" / "4.png").read_bytes()[:60])
    out = tmp_path / "out"
    results = evaluate_folder(model, folder, "test", out, log=None, sizes=SIZES)
    assert results["counts"] == {"scored": 9, "skipped": {UNREADABLE: 6}} and results["data"]["n_instances"] == 15
    assert results["summary"]["n_skipped"] == 6 and results["summary"]["n_instances"] == 3
    said = capsys.readouterr().err
    assert said.count("warning:") == 2 and "1.png: is missing or not a readable image; 3 questions skipped" in said
    predictions = list(prediction_file.read(out / NAME))
    assert [p.index for p in predictions if p.skipped] == [3, 4, 5, 12, 13, 14]
    assert len({p.index for p in predictions}) == 15
    kept = {p.index: p for p in prediction_file.read(tmp_path / "good" / NAME)}
    for p in predictions:
        if not p.skipped:
            assert p.choice_scores["part"]["answer_mean"] == pytest.approx(
                kept[p.index].choice_scores["part"]["answer_mean"], abs=1e-5
            )
    assert good["counts"]["skipped"] == {}
    assert evaluate_folder(model, folder, "test", out, log=None, sizes=SIZES)["counts"] == results["counts"]


def test_mostly_bad_images_are_an_error(model, tmp_path):
    folder = tmp_path / "data"
    eval_fixtures.write_folder(folder, IMAGES)
    for i in range(3):
        (folder / "images" / f"{i}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"0\.png: is missing or not a readable image, like 3 of the 5 images.*--restart"):
        evaluate_folder(model, folder, "test", tmp_path / "out", log=None, sizes=SIZES)
    for i in range(3):
        (folder / "images" / f"{i}.png").unlink()
    with pytest.raises(UserError, match="like 3 of the 5 images"):
        evaluate_folder(model, folder, "test", tmp_path / "other", log=None, sizes=SIZES)
    assert not (tmp_path / "other").exists()


def test_the_command_continues_and_restarts(data, tmp_path, capsys, monkeypatch):
    loaded = LoadedModel(**vars(eval_fixtures.loaded()))
    monkeypatch.setattr("plum_jax.loading.load_model", lambda path, **_: loaded)
    out = tmp_path / "out"
    args = ["partonomy", "--checkpoint", "x", "--data", str(data), "--out", str(out), "--max-images", "1", "--devices", "1"]
    assert cli.run(evaluate.main, args, name="evaluate") in (0, None)
    results = json.loads((out / "results.json").read_text())
    assert set(results["protocols"]) == set(evaluate.PROTOCOLS) and results["counts"]["scored"] == 3
    assert all(results["protocols"][name] for name in evaluate.PROTOCOLS)
    few, before = [*args, "--protocols", "published"], (out / "run.json").read_bytes()
    assert cli.run(evaluate.main, few, name="evaluate") == 2
    assert "differs in protocols" in capsys.readouterr().err
    assert (out / "run.json").read_bytes() == before  # what was refused says nothing about the results that are there
    assert cli.run(evaluate.main, [*few, "--restart"], name="evaluate") in (0, None)
    assert json.loads((out / "results.json").read_text())["settings"]["protocols"] == ["published"]
    for wrong, said in (
        (["--protocols", "best"], "'best'"),
        (["--devices", "99"], "this host has"),
        (["--batch-images", "0"], "0"),
    ):
        assert cli.run(evaluate.main, [*args, *wrong], name="evaluate") == 2
        assert said in capsys.readouterr().err
