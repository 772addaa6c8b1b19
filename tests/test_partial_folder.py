import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plum_jax.errors import UserError
from plum_jax.partial_folder import partial_folder

ROOT = Path(__file__).resolve().parent.parent
WRITER = """
import sys, time
from plum_jax.partial_folder import partial_folder
with partial_folder(sys.argv[1]) as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing tmp_path/out."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()


def test_the_folder_has_its_name_at_the_end(tmp_path):
    with partial_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "a").read_text() == "1"


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), partial_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_sigterm_leaves_nothing(writer, tmp_path):
    writer.send_signal(signal.SIGTERM)
    assert writer.wait(timeout=20) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(writer, tmp_path):
    with pytest.raises(UserError, match="is being written by another program"), partial_folder(tmp_path / "out"):
        pass
    assert (tmp_path / ".out.partial" / "half").read_text() == "x"


def test_what_a_killed_writer_left_is_cleared(writer, tmp_path):
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    time.sleep(0.05)
    with partial_folder(tmp_path / "out") as folder:
        assert not list(folder.iterdir())
    assert not list((tmp_path / "out").iterdir())


def test_an_output_that_appeared_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(UserError, match="was written by another program meanwhile"), partial_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
