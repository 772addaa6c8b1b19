"""run.json at start and end, hashes, and files that are never half-written."""

import hashlib
import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from plum_jax import console
from plum_jax.config_io import load_config
from plum_jax.errors import UserError
from plum_jax.run_record import RunRecord, sha256_of, versions, write_json, write_text


def read(folder):
    return json.loads((folder / "run.json").read_text())


def test_record_is_there_during_the_run_and_complete_after_it(tmp_path):
    (tmp_path / "input.txt").write_text("x")
    with RunRecord(tmp_path / "out", "train", load_config("tiny")) as record:
        assert read(tmp_path / "out")["status"] == "running"
        record.input("data", tmp_path / "input.txt")
        record.input("gone", tmp_path / "no.txt")
        for _ in range(2):
            with record.timing("step"):
                pass
        record.note(parameters=np.int64(3))
    facts = read(tmp_path / "out")
    assert facts["status"] == "done" and facts["command"] == "train" and facts["parameters"] == 3
    assert facts["config"]["name"] == "tiny" and facts["versions"]["jax"] == versions()["jax"]
    assert facts["inputs"]["data"]["sha256"] == hashlib.sha256(b"x").hexdigest()
    assert facts["inputs"]["gone"]["sha256"] is None
    assert facts["seconds"].keys() == {"step", "total"} and facts["finished"] >= facts["started"]


SLEEPER = """
import ctypes, sys
from plum_jax.run_record import RunRecord
with RunRecord(sys.argv[1], "predict", goes_on=True):
    print("not flushed")
    print("ready", file=sys.stderr, flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)  # outside of Python, like XLA
"""


def test_sigterm_ends_a_command_that_goes_on_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "not flushed\n")
    assert err == "\nplum predict: stopped by SIGTERM; run the same command to go on\n"
    assert read(tmp_path)["status"] == "stopped" and read(tmp_path)["finished"]


def test_a_record_leaves_sigterm_as_it_was(tmp_path):
    for handler in (signal.SIG_DFL, signal.default_int_handler):
        before = signal.signal(signal.SIGTERM, handler)
        try:
            with RunRecord(tmp_path, "predict", goes_on=True):
                assert (signal.getsignal(signal.SIGTERM) is handler) == (handler is not signal.SIG_DFL)
            assert signal.getsignal(signal.SIGTERM) is handler
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("error, status", [(ValueError("bad"), "failed"), (KeyboardInterrupt(), "stopped")])
def test_record_of_a_run_that_did_not_end_well(tmp_path, error, status):
    with pytest.raises(type(error)), RunRecord(tmp_path, "train"):
        raise error
    assert read(tmp_path)["status"] == status
    assert ("error" in read(tmp_path)) == (status == "failed")


def test_a_status_set_by_the_run_stays(tmp_path):
    with RunRecord(tmp_path, "train") as record:
        record.note(status="preempted")
    assert read(tmp_path)["status"] == "preempted"


def test_only_one_process_writes(tmp_path):
    with RunRecord(tmp_path, "train", write=False):
        pass
    assert not (tmp_path / "run.json").exists()


def test_hash_of_a_folder_is_what_sha256sum_says(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "z").write_text("1")
    (tmp_path / "a" / "b" / "y").write_text("2")
    listing = subprocess.run(["sha256sum", "b/y", "z"], cwd=tmp_path / "a", capture_output=True, check=True).stdout
    assert sha256_of(tmp_path / "a") == hashlib.sha256(listing).hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": threading.Lock()})
    assert (tmp_path / "a.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with console.Progress(total=950, label="train", unit="step", start=300) as bar:
        bar.update(20, loss=1.4213)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("train: 320/950 (34%)") and "loss=1.421" in line and "step" in line and "\r" not in line
    assert list(console.progress(range(3), label="x")) == [0, 1, 2]
    assert "x: 3/3 (100%)" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_progress_prints_its_last_line_once(seconds, capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", seconds)
    with console.Progress(total=2, label="x") as bar:
        bar.update(2)
    assert capsys.readouterr().err.count("2/2") == 1


def test_output_folder_may_not_be_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for bad in (tmp_path / "file", tmp_path / "file" / "a" / "b", tmp_path / "nowhere", ""):
        with pytest.raises(UserError):
            console.check_out(bad)
    console.check_out(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_sizes_and_durations():
    assert [console.size(n) for n in (12, 1536, 2.5e9, 3e12)] == ["12 B", "1.5 KB", "2.5 GB", "3.0 TB"]
    assert [console.duration(s) for s in (0.84, 75.2, 4000)] == ["0.8 s", "1:15", "1:06:40"]


def test_header_names_versions_and_output(capsys):
    console.header("data make", "out", device=False)
    out = capsys.readouterr().out
    assert out.startswith("plum data make\n") and "output    out" in out and "device" not in out
    console.header("train", "out")
    assert "device    cpu" in capsys.readouterr().out
