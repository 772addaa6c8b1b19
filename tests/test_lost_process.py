"""What jax's C++ log says of a lost process becomes one sentence; everything else passes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plum_jax import lost_process

STATUS = (
    "F1124 20:35:38.692069   30431 client.h:80] Terminating process because the JAX distributed service detected fatal errors. "
    "This most likely indicates that another task died; see the other task logs for more details. absl::Status: "
)
SILENT = (
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n{}\nThe tasks have crashed. Check the task "
    "logs for an earlier error, or scheduler events (e.g. preemption, eviction) to debug further.\n"
)
STACK = "*** Check failure stack trace: ***\n    @     0x7fafc9840634  absl::lts_20260107::log_internal::LogMessage::Flush()\n"
CASES = {
    SILENT.format("1"): "process 1 (host b) was lost: no sign of life for 30 s; run the same command on all hosts again",
    SILENT.format("1\n2"): "process 1 (host b), process 2 (host c) was lost: no sign of life",
    SILENT.format("/job:jax_worker/replica:0/task:2"): "process 2 (host c) was lost",
    "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted\n": (
        "process 0 (host a) was lost, or ended for a reason that its own output says; run the same command on all hosts again"
    ),
    "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n": (
        "not all of 3 processes came within 300 s to a:1234; start the command on every host"
    ),
    "INVALID_ARGUMENT: Unexpected task registered with task=3\n\nRPC: /x/RegisterTask\n": (
        "process 3 is not among those that process 0 waits for; set JAX_NUM_PROCESSES to the same on all hosts"
    ),
    "ABORTED: 1 unexpectedly tried to connect with a different incarnation. It has likely restarted.\n": (
        "process 1 was started twice, or restarted alone; end all processes"
    ),
    "INTERNAL: something new\n": "jax ended the run (INTERNAL: something new); run the same command on all hosts again",
}
ABOUT = dict(command="train", number=2, count=3, address="a:1234", hosts=["a", "b", "c"], start=300, lost=30)


def filtered(*lines, about=ABOUT):
    said = []
    sieve = lost_process.Filter(dict(about), said.append)
    for line in lines:
        sieve.line(line)
    sieve.end()
    return "".join(said)


@pytest.mark.parametrize("status", CASES)
def test_sentences(status):
    said = filtered(*(STATUS + status + STACK).splitlines(keepends=True))
    assert said.startswith(f"plum train: error (process 2 of 3): {CASES[status]}") and said.count("\n") == 1


def test_hosts_and_numbers_that_are_not_known():
    unknown = dict(ABOUT, hosts=[], number=None, count=None, address=None)
    said = filtered(*(STATUS + SILENT.format("5") + STACK).splitlines(keepends=True), about=unknown)
    assert said.startswith("plum train: error: process 5 was lost: no sign of life for 30 s;")


def test_everything_else_passes():
    error = "E1124 20:31:01.135093   28002 coordination_service_agent.cc:289] Polled an error from coordination service.\n"
    other = ["W1124 20:36:18.018879   32572 cpu_client.cc:5] slow\n", "Fatal Python error: Segmentation fault\n", "more"]
    assert filtered(*other) == "".join(other)
    assert filtered(other[0], error, "goes on\n") == other[0] + error + "goes on\n"  # jax went on: it is shown at the end


def test_the_program_itself():
    """As it stands beside a process: hosts through the pipe, bytes that are no text, and no package of ours."""
    text = f"{lost_process.HOSTS}{json.dumps(['a', 'b', 'c'])}\n".encode() + b"caf\xe9 \xff\n" + STATUS.encode()
    text += SILENT.format("1").encode() + STACK.encode()
    command = [sys.executable, "-I", str(Path(lost_process.__file__)), json.dumps(dict(ABOUT, hosts=[]))]
    done = subprocess.run(command, input=text, capture_output=True, timeout=60)
    first, second = done.stdout.splitlines()
    assert first == b"caf\xe9 \xff" and b"process 1 (host b) was lost" in second and not done.stderr and done.returncode == 0
