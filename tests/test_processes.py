"""Training in several real processes: equal to one, through kills and restarts with other numbers of them."""

import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from fixtures_partonomy import write_folder
from process_fixtures import Launch, command, ends

from plum_jax import loading
from plum_jax.checkpoint import latest_step
from plum_jax.logger import read_metrics

STEPS = 24
# Where a gradient is 0 but for rounding, AdamW makes steps of its sign: such parameters would differ with the order of sums.
ROBUST = ("optim.epsilon=1e-4",)
TIMES = ("images_per_second", "data_wait")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, images=8)
    return folder


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    with Launch(tmp_path_factory.mktemp("cache")) as launch:
        yield launch


@pytest.fixture(scope="module")
def train(launch, data):
    """train(count, folder) -> the processes of the same command each time."""
    return lambda count, folder: launch(count, command(data, folder, f"train.steps={STEPS}", *ROBUST))


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The run folder of one process that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    ((status, _, err),) = ends(train(1, folder))
    assert status == 0, err
    return folder


@pytest.fixture(scope="module")
def four(train, whole, tmp_path_factory):
    """The run folder of four processes, the first of which was killed on the way."""
    folder = tmp_path_factory.mktemp("runs") / "four"
    killed_on_the_way(train, 4, 0, folder)
    return folder


def until_saved(processes, folder, step):
    while not (folder / "checkpoints" / str(step)).exists():
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.01)


def killed_on_the_way(train, count, victim, folder):
    """Kills a process during training; the others end by themselves and name it; the same command goes on to the end."""
    processes = train(count, folder)
    until_saved(processes, folder, 8)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    said = ends(processes, 60)
    assert time.monotonic() - began < 60
    for number, (status, out, err) in enumerate(said):
        if number == victim:
            assert status == -signal.SIGKILL
            continue
        assert status != 0
        last = err.splitlines()[-1]
        assert last.startswith(f"plum train: error (process {number} of {count}): process {victim} (host "), err
        assert " was lost" in last and last.endswith(
            "run the same command on all hosts again: it goes on from the last checkpoint"
        )
        assert "Traceback" not in err and "stack trace" not in err and "coordination_service" not in err, err
        progress = re.search(r"^train: \d", err, re.MULTILINE) or "plum train\n" in out
        assert (number == 0) == bool(progress)  # one speaks of it
    said = ends(train(count, folder))
    assert [status for status, _, _ in said] == [0] * count, said
    assert "Resumed step " in said[0][1] and all("Resumed" not in out for _, out, _ in said[1:])
    steps = STEPS - int(said[0][1].partition("Resumed step ")[2].split()[0])
    data = json.loads((folder / "run.json").read_text())["data"]
    assert data["families"]["explanatory"]["draws"] == 16 * steps  # by all processes together


def assert_same_run(folder, whole):
    """Metrics and final parameters of two runs, but for the order in which sums are taken."""
    rows, wanted = read_metrics(folder), read_metrics(whole)
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, right in zip(rows, wanted, strict=True):
        for name in row.keys() - set(TIMES):
            np.testing.assert_allclose(
                row[name], right[name], rtol=1e-5 if name == "loss" else 1e-3, err_msg=f"{row['step']} {name}"
            )
    a, b = (jax.device_get(loading.load_model(x).params) for x in (folder, whole))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def without_the_last(folder, copy):
    """A copy of a run folder as it was before its last checkpoint."""
    shutil.copytree(folder, copy)
    steps = sorted(int(path.name) for path in (copy / "checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(copy / "checkpoints" / str(steps[-1]))
    return copy


def test_two_processes_one_of_them_killed_are_one(train, whole, tmp_path):
    killed_on_the_way(train, 2, 1, tmp_path / "two")
    assert_same_run(tmp_path / "two", whole)


def test_four_processes_the_first_of_them_killed_are_one(four, whole):
    assert_same_run(four, whole)


@pytest.mark.slow
def test_sigterm_to_one_or_all_of_two_saves_the_same_step(launch, data, tmp_path):
    """jax looks for SIGTERM once a second, so the run has steps for many seconds."""

    def start(count, folder):
        return launch(count, command(data, folder, "train.steps=2000", *ROBUST))

    def stopped(processes, folder, step, told):
        until_saved(processes, folder, step)
        for number in told:
            processes[number].send_signal(signal.SIGTERM)
        said = ends(processes, 60)
        assert all(status == 0 for status, _, _ in said), said
        assert not any("Preempted" in out for _, out, _ in said[1:]), said
        found = re.search(r"^Preempted: saved step (\d+); run the same command to go on$", said[0][1], re.MULTILINE)
        assert found, said
        assert latest_step(folder) == int(found[1]) and json.loads((folder / "run.json").read_text())["status"] == "preempted"
        return int(found[1]), said[0][1]

    two, one = tmp_path / "two", tmp_path / "one"
    first, _ = stopped(start(2, two), two, 4, [1])
    second, said = stopped(start(2, two), two, first // 4 * 4 + 4, [0, 1])
    assert f"Resumed step {first} " in said and second > first
    stopped(start(1, one), one, -(-second // 4) * 4, [0])
    losses, wanted = ([(row["step"], row["loss"]) for row in read_metrics(run)] for run in (two, one))
    assert len(losses) == second // 2
    np.testing.assert_allclose(losses, wanted[: second // 2], rtol=1e-5)


@pytest.mark.slow
def test_sigterm_while_two_compile_ends_both_at_once(launch, data, tmp_path):
    """Without the flags that make compilation short, and without programs that were compiled before."""
    two = launch(2, command(data, tmp_path / "two"), XLA_FLAGS="", XDG_CACHE_HOME=str(tmp_path / "cache"))
    while not (line := two[0].stdout.readline()).startswith("Compiling the training step"):
        assert line, ends(two)
    two[1].send_signal(signal.SIGTERM)
    first, second = ends(two, 60)
    assert first[0] == second[0] == 0 and "Traceback" not in first[2] + second[2], (first, second)
    assert first[1] == "Preempted: before the first save; run the same command to go on\n", first
    assert "Preempted" not in second[1], second
    assert json.loads((tmp_path / "two" / "run.json").read_text())["status"] == "preempted"
    assert not latest_step(tmp_path / "two")


def test_one_process_goes_on_where_four_stopped(train, whole, four, tmp_path):
    folder = without_the_last(four, tmp_path / "run")
    ((status, out, err),) = ends(train(1, folder))
    assert status == 0 and f"Resumed step {STEPS - 4}" in out, err
    assert_same_run(folder, whole)


def test_two_processes_go_on_where_one_stopped(train, whole, tmp_path):
    folder = without_the_last(whole, tmp_path / "run")
    (first, second) = ends(train(2, folder))
    assert first[0] == second[0] == 0 and f"Resumed step {STEPS - 4}" in first[1], (first, second)
    assert_same_run(folder, whole)
