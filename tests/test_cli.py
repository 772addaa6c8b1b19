"""The command table, exit statuses, and the second that --help may take."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from plum_jax import cli, doctor
from plum_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def commands():
    for name, entry in cli.COMMANDS.items():
        for sub in entry if isinstance(entry, dict) else [None]:
            yield [name] if sub is None else [name, sub]


def run_plum(*args):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "plum_jax.cli", *args], capture_output=True, text=True, env=env, timeout=60)


@pytest.mark.parametrize("command", [[], *commands()], ids=" ".join)
def test_help_answers_without_jax(command):
    code = (
        "import sys; from plum_jax import cli\n"
        f"try: status = cli.main({[*command, '--help']!r})\n"
        "except SystemExit as stop: status = stop.code\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
        "sys.exit(status)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "usage: plum" in result.stdout


def test_evaluate_help_says_what_each_benchmark_is(capsys):
    assert cli.main(["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    assert "pope           POPE: objects that are there, and that are not" in said and "--compare A B" in said
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "partonomy", "--help"])
    assert "usage: plum evaluate partonomy" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["--help", "score --help", "score partonomy --help", "evaluate --help"])
def test_a_reader_that_leaves_is_no_fault(command):
    read, write = os.pipe()
    os.close(read)  # nobody will ever read
    result = subprocess.run(
        [sys.executable, "-m", "plum_jax.cli", *command.split()], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    os.close(write)
    assert result.returncode in (0, 141) and result.stderr == ""  # argparse does not say that nobody took its help


def test_every_group_of_commands_is_explained_in_lines_of_a_terminal(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 100
    assert "              partonomy, refer, reason, semantic, vqa, pope, hallucination" in lines


def test_help_takes_less_than_a_second():
    began = os.times()
    assert run_plum("train", "--help").returncode == 0
    ended = os.times()  # processor time of the child: the machine may be busy with other tests
    assert ended.children_user + ended.children_system - began.children_user - began.children_system < 1.0


def test_names_and_descriptions_are_apart(capsys):
    assert cli.main(["score", "--help"]) == 0
    assert "hallucination  the same" in capsys.readouterr().out


def test_train_help_shows_how_to_override():
    assert "--config.optim.lr=1e-4" in run_plum("train", "--help").stdout


def test_no_command_is_wrong_use():
    assert cli.main([]) == 2


def test_unknown_command_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert cli.main(["data", "mak"]) == 2
    assert "did you mean 'make'" in capsys.readouterr().err


def test_user_error_is_one_sentence_and_status_2(capsys):
    def main(argv):
        raise UserError("photo.jpg: cannot be read; give a PNG or JPEG file")

    assert cli.run(main, [], name="predict") == 2
    assert capsys.readouterr().err == "plum predict: error: photo.jpg: cannot be read; give a PNG or JPEG file\n"


@pytest.mark.parametrize(
    "command, said",
    [
        (["predict", "a.png"], "required: --prompt, --out"),
        (["predict", "a.png", "--prompt", "x", "--out", "o", "--batch-size", "two"], "--batch-size: invalid int value: 'two'"),
        (["evaluate", "coco"], "'coco' is not a benchmark; give one of partonomy, refer, reason"),
        (["evaluate"], "no benchmark is named; give one of partonomy, refer, reason"),
        (["evaluate", "--data=refer", "refer"], "'--data=refer' is not a benchmark"),
        (["report"], "required: FOLDER"),
    ],
)
def test_wrong_arguments_are_one_sentence_with_a_hint(command, said, capsys):
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert said in error and error.endswith(f"; see plum {command[0]} --help\n") and error.count("\n") == 1


def test_failure_is_one_line_and_status_1_and_debug_adds_the_traceback(capsys):
    def main(argv):
        assert argv == ["x"]
        raise ValueError("first line\nsecond line")

    assert cli.run(main, ["x"], name="train") == 1
    assert capsys.readouterr().err == "plum train: error: ValueError: first line (--debug shows the traceback)\n"
    assert cli.run(main, ["--debug", "x"], name="train") == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_130():
    def main(argv):
        raise KeyboardInterrupt

    assert cli.run(main, [], name="train") == 130


@pytest.mark.parametrize(("installed", "device", "wanted"), [(True, False, "cpu"), (True, True, None), (False, False, None)])
def test_jax_looks_for_no_tpu_where_libtpu_is_only_a_compiler(monkeypatch, tmp_path, installed, device, wanted):
    monkeypatch.setenv("JAX_PLATFORMS", "set here, so that it is as before after the test")
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(cli, "ACCELERATORS", (str(tmp_path / "accel*"),))
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object() if installed and name == "libtpu" else None)
    if device:
        (tmp_path / "accel0").touch()
    monkeypatch.setattr(cli.processes, "_state", lambda: None)
    told = []  # jax, where a tool has imported it already
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(config=SimpleNamespace(update=lambda *words: told.append(words))))
    seen = []
    assert cli.run(lambda argv: seen.append(os.environ.get("JAX_PLATFORMS")), [], name="test") == 0
    assert seen == [wanted] and told == ([("jax_platforms", wanted)] if wanted else [])


def test_unknown_config_key_names_the_nearest_and_writes_nothing(tmp_path):
    out = tmp_path / "run"
    result = run_plum("train", "--config=configs/tiny.py", f"--workdir={out}", "--config.optim.lrr=1")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "did you mean --config.optim.lr?" in result.stderr
    assert not out.exists()


def test_doctor_prints_one_json_object(capsys):
    status = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in report["checks"]} >= {"python", "packages", "device", "compiled", "tiny", "memory", "disk"}
    assert status == (0 if report["ok"] else 1)
    assert all(c["fix"] for c in report["checks"] if c["status"] == "fault")


def test_doctor_names_the_fix_of_a_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "MODULES", ("json", "no_such_package"))
    status, value, fix = doctor._packages()
    assert status == "fault" and "no_such_package" in value and "pip install" in fix


@pytest.mark.parametrize(
    "error, said",
    [
        (FileExistsError(errno.EEXIST, "File exists", "a/b"), "a/b: File exists; something else has that name"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "x: File name too long; give a shorter name"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; free some space"),
        (
            ValueError("RESOURCE_EXHAUSTED: No space left on device [code='28']"),
            "error: No space left on device; free some space",
        ),
    ],
)
def test_faults_of_the_file_system_are_sentences(error, said, capsys):
    def main(argv):
        raise error

    assert cli.run(main, [], name="x") == 2
    assert said in capsys.readouterr().err


def test_other_errors_of_the_system_stay_failures(capsys):
    def main(argv):
        raise OSError(errno.EIO, "Input/output error", "x")

    assert cli.run(main, [], name="x") == 1
    assert "--debug shows the traceback" in capsys.readouterr().err
