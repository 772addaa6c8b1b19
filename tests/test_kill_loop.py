"""A few kills of tools/kill_loop.py, and faults that it must find."""

import json
import shutil

import pytest

from plum_jax import cli
from tools import kill_loop


@pytest.mark.slow
def test_a_few_kills_and_the_faults_that_must_be_found(tmp_path, capsys):
    out = tmp_path / "loop"
    assert cli.run(kill_loop.main, ["--kills=3", f"--out={out}"], name="kill_loop") == 0, capsys.readouterr().err
    facts = json.loads((out / "kill_loop.json").read_text())
    assert facts["kills"] == 3 and facts["read"] >= kill_loop.KEEP
    assert cli.run(kill_loop.main, ["--kills=3", f"--out={out}"], name="kill_loop") == 2  # never over an old one

    fire, whole = (kill_loop.Runs(out, name, facts["steps"]) for name in ("under_fire", "whole"))
    last, folder = fire.steps()[-1], fire.folder / "checkpoints"
    kill_loop.check_end(fire, whole)
    with pytest.raises(kill_loop.Fault, match="are lost"):
        kill_loop.check_checkpoints(fire, whole, [last + 5], "test")
    text = (fire.folder / "metrics.csv").read_text()
    (fire.folder / "metrics.csv").write_text(text.replace("\n6,", "\n5,"))
    with pytest.raises(kill_loop.Fault, match="without kills"):
        kill_loop.check_end(fire, whole)
    (fire.folder / "metrics.csv").write_text(text)
    (board,) = (fire.folder / "tensorboard").iterdir()
    shutil.copy(board, board.with_name(board.name + "2"))
    with pytest.raises(kill_loop.Fault, match="TensorBoard"):
        kill_loop.check_end(fire, whole)
    shutil.rmtree(folder / str(last))
    shutil.copytree(folder / str(last - 5), folder / str(last))
    with pytest.raises(kill_loop.Fault, match="is not that of the uninterrupted run"):
        kill_loop.check_checkpoints(fire, whole, [], "test")
    shutil.rmtree(folder / str(last) / "state")
    with pytest.raises(kill_loop.Fault, match=f"checkpoint {last} cannot be read"):
        kill_loop.check_checkpoints(fire, whole, [], "test")
