"""The launchers for SLURM, several processes of one machine and Kubernetes, and the page that shows them all."""

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from launch_fixtures import NASTY, ROOT, SLURM, STOPPABLE, TPU, environment, fake_cloud, wait_until, write

from plum_jax.config_io import add_config_flag, load_config, parse_args
from tools import launch_local


@pytest.fixture
def cloud(tmp_path):
    with fake_cloud(tmp_path) as cloud:
        yield cloud


def test_help_needs_nothing():
    for script, words in ((TPU, "--dry-run"), (SLURM, "sbatch"), (STOPPABLE, "try again")):
        found = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
        assert words in found.stdout and "set -euo" not in found.stdout and "#" not in found.stdout.replace("#SBATCH", "")


@pytest.mark.parametrize("script", [TPU, SLURM, STOPPABLE], ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    found = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert os.access(script, os.X_OK)


SRUN = """#!/bin/bash
    # two nodes; the tasks of a step one after the other
    [[ $1 == --kill-on-bad-exit=1 ]] && shift
    worst=0
    for ((i = 0; i < SLURM_NTASKS; i++)); do
      SLURM_PROCID=$i SLURM_LOCALID=$((i % (SLURM_NTASKS / 2))) "$@" || worst=$?
    done
    exit $worst
"""
SCONTROL = """#!/bin/bash
    if [[ $1 == show ]]; then printf 'node7\\nnode8\\n'; else echo "$@" >> "$FAKE_CLOUD/requeued"; fi
"""


@pytest.mark.parametrize("tasks, shares", [(2, ["0,1,2,3"] * 2), (4, ["0,1", "2,3"] * 2), (8, ["0", "1", "2", "3"] * 2)])
def test_slurm_gives_every_process_its_share(cloud, tasks, shares):
    found = slurm(cloud, "--dry-run", tasks=tasks)
    address = f"node7:{61440 + 4242 % 4096}"
    assert found.stdout.splitlines() == [f"process {i} of {tasks} at {address}, GPUs {x}" for i, x in enumerate(shares)]


def slurm(cloud, *words, tasks=2):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        write(cloud.parent / "bin" / name, textwrap.dedent(text))
    env = environment(
        cloud, SLURM_JOB_ID="4242", SLURM_JOB_NODELIST="node[7-8]", SLURM_NTASKS=str(tasks), SLURM_JOB_NUM_NODES="2",
        SLURM_GPUS_ON_NODE="4", SLURM_SUBMIT_DIR=str(ROOT), VIRTUAL_ENV="x",
    )  # fmt: skip
    return subprocess.run([SLURM, *words], env=env, capture_output=True, text=True)


def test_slurm_puts_a_stopped_job_back_and_passes_on_a_failure(cloud):
    show = "import json, os, sys; print(json.dumps([os.environ['JAX_PROCESS_ID'], *sys.argv[1:]]))"
    found = slurm(cloud, sys.executable, "-c", show, *NASTY)
    assert [json.loads(line) for line in found.stdout.splitlines()] == [["0", *NASTY], ["1", *NASTY]] and found.returncode == 0
    assert slurm(cloud, "bash", "-c", "exit 4").returncode == 4
    assert not (cloud / "requeued").exists()
    stopped = slurm(cloud, "bash", "-c", "trap 'exit 0' TERM; kill -TERM $PPID; while :; do sleep 0.02; done")
    assert stopped.returncode == 75 and (cloud / "requeued").read_text() == "requeue 4242\n"
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    alone = subprocess.run([SLURM, "plum", "train"], env=env, capture_output=True, text=True)
    assert alone.returncode == 2 and "SLURM_JOB_ID is not set; start this script with sbatch" in alone.stderr


@pytest.mark.parametrize("program, status", [("exit 0", 0), ("exit 5", 5), ("kill -KILL $$", 137)])
def test_the_status_of_a_program_is_kept(program, status):
    assert subprocess.run([STOPPABLE, "bash", "-c", program], stderr=subprocess.DEVNULL).returncode == status


@pytest.mark.parametrize("end, status", [("exit 0", 75), ("exit 5", 5)])
def test_sigterm_is_passed_on_and_asks_for_another_try(tmp_path, end, status):
    program = f"trap 'sleep 0.2; touch {tmp_path}/saved; {end}' TERM; touch {tmp_path}/ready; while :; do sleep 0.02; done"
    process = subprocess.Popen([STOPPABLE, "bash", "-c", program])
    wait_until((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == status and (tmp_path / "saved").exists()


REAL = """
    import numpy as np
    from plum_jax.processes import start_processes
    start_processes()
    import jax
    from jax.experimental.multihost_utils import process_allgather
    found = process_allgather(np.array(jax.process_index() + 1)).tolist()
    print(f"process {jax.process_index()} of {jax.process_count()} found {found}, {len(jax.devices())} devices")
"""


def local(*words, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "tools.launch_local", *words], cwd=ROOT, env={**os.environ, **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_two_real_processes_find_each_other():
    process = local("--processes=2", "--", sys.executable, "-c", textwrap.dedent(REAL), XLA_FLAGS="")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    for index in (0, 1):
        assert f"[{index}] process {index} of 2 found [1, 2], 2 devices\n" in out


def test_one_that_fails_ends_all(tmp_path):
    wait = f'trap "touch {tmp_path}/told; exit 0" TERM; while :; do sleep 0.02; done'
    program = f"if [[ $JAX_PROCESS_ID == 1 ]]; then exit 7; fi; {wait}"
    process = local("--processes=3", "--grace=0.5", "--", "bash", "-c", program)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 7 and "process 1 ended with 7; ending the others" in out and (tmp_path / "told").exists()
    stubborn = 'if [[ $JAX_PROCESS_ID == 0 ]]; then kill -KILL $$; fi; trap "" TERM; while :; do sleep 0.02; done'
    process = local("--processes=2", "--grace=0.5", "--", "bash", "-c", stubborn)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL


def test_sigterm_reaches_all_processes(tmp_path):
    program = f"trap 'echo saved; exit 0' TERM; touch {tmp_path}/$JAX_PROCESS_ID; while :; do sleep 0.02; done"
    process = local("--processes=2", "--", "bash", "-c", program)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and sorted(out.split("\n")) == ["", "[0] saved", "[1] saved"]


def test_gpus_are_split_evenly(monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in launch_local.environments(2, 8, 1)] == ["0,1,2,3", "4,5,6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in launch_local.environments(2, 2, 1)] == ["GPU-a", "GPU-b"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in launch_local.environments(2, 0, 1)] == ["GPU-a,GPU-b"] * 2
    for words, message in (
        (["--processes=0", "--", "x"], "give 1 or more"),
        (["--processes=2", "--gpus=3", "--", "x"], "does not divide evenly among 2 processes"),
        (["--processes=2"], "no command; write it after --"),
        (["--processes=2", "--gpus=4", "--", "x"], "CUDA_VISIBLE_DEVICES names 2"),
        (["--processes=2", "--", "nosuchprogram", "x"], "nosuchprogram: is no program that can be run; install it"),
        (["--processes=2", "--", "/tmp"], "/tmp: is no program that can be run"),
    ):
        with pytest.raises(SystemExit) as stop:
            launch_local.main(words)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and message in said and said.count("\n") == 1


def test_the_jobset_describes_one_slice_and_a_training_that_exists():
    jobset = yaml.safe_load((ROOT / "tools" / "gke" / "jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(side) for side in topology.split("x"))
    assert spec["parallelism"] == spec["completions"] == chips // container["resources"]["limits"]["google.com/tpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    wrapper, plum, train, *words = container["command"]
    assert (ROOT / wrapper) == STOPPABLE and (plum, train) == ("plum", "train")
    assert check_training(words).mesh.fsdp == chips


def check_training(words):
    """Config of the words after `plum train`; UserError for a key that does not exist."""
    parser = argparse.ArgumentParser()
    add_config_flag(parser)
    parser.add_argument("--workdir", required=True)
    args, overrides = parse_args(parser, words)
    return load_config(args.config, overrides)


def test_commands_of_the_page_exist():
    """Every `plum train` of docs/launch.md loads its config, every launcher it names is there."""
    page = (ROOT / "docs" / "launch.md").read_text()
    blocks = [block.replace("\\\n", " ") for block in page.split("\n\n") if block.startswith("    ")]
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]
    trained = [words[words.index("train") + 1 :] for words in commands if "plum" in words and "train" in words]
    assert len(trained) >= 4
    for words in trained:
        check_training(words)
    for words in commands:
        for word in words:
            if word.startswith("tools/"):
                assert (ROOT / word).exists(), word
            if word.startswith("tools."):
                assert (ROOT / f"{word.replace('.', '/')}.py").exists(), word
