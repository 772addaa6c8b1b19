"""Starting several processes: what is wrong with the environment, or differs between them, is one sentence on each."""

import re
import socket
import time
from types import SimpleNamespace

import pytest
from fixtures_partonomy import write_folder
from process_fixtures import Launch, command, ends, free_port

from plum_jax import agreement, processes
from plum_jax.errors import UserError

TWO = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "localhost:1234"}
# Both processes go through everything; only what `differ` gives is different.
PROGRAM = """
import sys
from types import SimpleNamespace as Source
from plum_jax import agreement, processes
from plum_jax.errors import UserError
processes.start_processes()
number = processes._state().process_id

def attempt(check, *values):
    try:
        print("SAID", check(*values))
    except UserError as error:
        print("SAID", error)

folders = sys.argv[1:]
attempt(agreement.check_code)
agreement.source_hash = lambda: f"hash{number}"
attempt(agreement.check_code)
attempt(agreement.check_data, Source(path=folders[0] + "/partonomy_qa_pairs_train.json"))
attempt(agreement.check_data, Source(path=folders[number] + "/partonomy_qa_pairs_train.json"))
attempt(agreement.check_data, Source(describe=lambda: [dict(dataset="vqa", records=5 + number)]))
agreement.VISIBLE_SECONDS = 1
attempt(agreement.check_shared, folders[0] + ("/dataset.json" if number == 0 else "/none/dataset.json"))
print("SAID", processes.tell_all("x", {"é": number}), processes.first_says("y", number))
raise SystemExit(processes.leave(0))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder / "a", images=8)
    write_folder(folder / "b", images=7)
    return folder


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    with Launch(tmp_path_factory.mktemp("cache")) as launch:
        yield launch


def refused(processes):
    """The one line that each process says before it ends with status 2."""
    lines = []
    for number, (status, _, err) in enumerate(ends(processes)):
        found = [line for line in err.splitlines() if line.startswith("plum train: error")]
        assert status == 2 and len(found) == 1 and "Traceback" not in err, err
        assert found[0].startswith(f"plum train: error (process {number} of {len(processes)}): ")
        lines.append(found[0].partition("): ")[2])
    return lines


@pytest.mark.parametrize(
    "change, words",
    [
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID: '2' is not a number from 0 to 1"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID: '-1' is not a number from 0 to 1"),
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID: is not set; give each of the 2 processes a number from 0 to 1"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: 'two' is not a number from 1 up"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES: '0' is not a number from 1 up"),
        ({"JAX_NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES: is not set, but JAX_PROCESS_ID is"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS: '' is not HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS: 'host' is not HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "host:70000"}, "JAX_COORDINATOR_ADDRESS: 'host:70000' is not HOST:PORT"),
        ({"PLUM_LOST_SECONDS": "1"}, "PLUM_LOST_SECONDS: '1' is not a number from 4 up"),
    ],
)
def test_environment(change, words):
    with pytest.raises(UserError, match=re.escape(words)):
        processes.described({**TWO, **change})


def test_environments_that_are_right():
    assert processes.described(TWO)["number"] == 1
    assert (
        not processes.described({})["several"]
        and not processes.described({**TWO, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"})["several"]
    )
    for one in ({"SLURM_STEP_NUM_TASKS": "4"}, {"OMPI_COMM_WORLD_SIZE": "2"}, {"TPU_WORKER_HOSTNAMES": "a,b"}):
        assert processes.described(one) == dict(several=True, number=None, count=None, address=None, start=300, lost=30)


def test_a_taken_port_and_nobody_there():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of this host cannot be opened"):
            processes._wait_for_port(f"localhost:{port}", 1)
        processes._wait_for_process_0(f"localhost:{port}", 1)
    began = time.monotonic()
    with pytest.raises(UserError, match="process 0 did not answer at localhost:.* within 1 s .*; start the command there too"):
        processes._wait_for_process_0(f"localhost:{free_port()}", 1)
    assert time.monotonic() - began < 30


def test_spread():
    assert agreement.spread([2, 1, 1], "abc") == "2 on process 0 (host a), 1 on processes 1, 2 (hosts b, c)"
    assert agreement.spread(["x"] * 6 + [None], "abcdefg") == (
        "x on processes 0, 1, 2, 3, ... (hosts a, b, c, d, ...), null on process 6 (host g)"
    )


def test_one_process_alone_agrees_with_itself(data):
    agreement.check_same({"things": (1, "nothing")})
    agreement.check_data(SimpleNamespace(path=data / "a"))
    assert processes.tell_all("x", 1) == [1] and processes.first_says("x", 2) == 2
    assert processes.leave(3, "") == 3 and processes.verdict(RuntimeError("gloo")) is None and processes.who() == ""


def test_different_devices(launch, data, tmp_path):
    two = {1: {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}}
    said = refused(launch(2, command(data / "a", tmp_path / "run"), different=two))
    for line in said:
        assert re.match(
            r"devices differ between the processes: 1 x cpu on process 0 \(host .*\), 2 x cpu on process 1 \(host ", line
        )
        assert "give every process the same number and kind of devices" in line
    assert not (tmp_path / "run").exists()


def test_different_configs_and_run_folders(launch, data, tmp_path):
    said = refused(launch(2, command(data / "a", tmp_path / "run"), different={1: {"arguments": ["--config.optim.lr=0.5"]}}))
    for line in said:
        assert re.match(
            r"values of config.optim.lr differ between the processes: 0.004 on process 0 .*, 0.5 on process 1 ", line
        )
        assert line.endswith("run the same command on all hosts")


def test_an_error_of_one_process_is_told_by_all(launch, data, tmp_path):
    there = {1: {"arguments": [f"--config.data.folder={tmp_path}/gone"]}}
    first, second = refused(launch(2, command(data / "a", tmp_path / "run"), different=there))
    assert f"{tmp_path}/gone" in second and first.startswith("process 1 (host ") and first.endswith(f"stopped: {second}")


def test_code_data_and_folders(launch, data):
    for status, out, err in ends(launch(2, ["-c", PROGRAM, str(data / "a"), str(data / "b")])):
        assert status == 0, err
        said = [line[5:] for line in out.splitlines() if line.startswith("SAID ")]
        assert said[0] == said[2] == "None"
        assert re.match(r"the files of plum_jax differ .*: hash0 on process 0 .*, hash1 on .*install the same commit", said[1])
        assert re.match(
            r"contents of partonomy_qa_pairs_train.json differ .* copy the same config.data.folder to all hosts", said[3]
        )
        assert re.match(r"records of config.data differ .*: 5 of vqa on process 0 .*, 6 of vqa on process 1", said[4])
        assert re.match(
            r"files dataset.json in --workdir differ .*: there on process 0 .*, missing on .*must be one folder", said[5]
        )
        assert said[6] == "[{'é': 0}, {'é': 1}] 0"


def test_processes_that_never_come(launch, data, tmp_path):
    alone = dict(JAX_NUM_PROCESSES="2", JAX_COORDINATOR_ADDRESS=f"localhost:{free_port()}", PLUM_START_SECONDS="2")
    ((status, _, err),) = ends(launch(1, command(data / "a", tmp_path / "run"), JAX_PROCESS_ID="0", **alone), 120)
    assert status != 0 and err.splitlines()[-1].startswith(
        "plum train: error (process 0 of 2): not all of 2 processes came within 2 s to localhost:"
    ), err
    assert "stack trace" not in err
