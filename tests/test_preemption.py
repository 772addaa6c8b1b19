"""SIGTERM and Ctrl-C: at once where nothing is lost, else after the step; also while the main thread is outside of Python."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import ctypes, signal, sys, time
from plum_jax.preemption import Preemption

def compiling():  # outside of Python, like XLA: no handler of signals runs
    print("ready", flush=True)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        ctypes.CDLL(None).usleep(900000)

def stepping(preemption):
    with preemption.steps():
        print("ready", flush=True)
        while not preemption.requested(1):
            time.sleep(0.01)
        time.sleep(0.5)
        print("saved", flush=True)

def in_a_long_step(preemption):
    with preemption.steps():
        compiling()

def validating(preemption):
    with preemption.steps(), preemption.steps(False):
        compiling()

with Preemption(lambda number: print("left", signal.Signals(number).name, flush=True)) as preemption:
    try:
        {doing}
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
print("went on", flush=True)
"""


def run(doing, *signals, pause=0.2):
    """-> (exit status, what was printed after "ready", what on stderr)."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{doing}", doing)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 15, "did not end at once"
    return process.returncode, out.split("\n")[:-1], err


@pytest.mark.parametrize("doing", ["compiling()", "validating(preemption)"])
def test_where_nothing_is_lost_the_end_comes_at_once(doing):
    assert run(doing, signal.SIGTERM) == (0, ["left SIGTERM"], "")
    assert run(doing, signal.SIGINT) == (130, ["left SIGINT"], "")


def test_during_steps_the_loop_saves_first():
    assert run("stepping(preemption)", signal.SIGTERM) == (0, ["saved", "went on"], "")
    assert run("stepping(preemption)", signal.SIGTERM, signal.SIGTERM) == (0, ["saved", "went on"], "")


def test_during_steps_one_ctrl_c_ends_after_the_step_and_two_at_once():
    status, out, err = run("stepping(preemption)", signal.SIGINT)
    assert (status, out) == (130, ["interrupted"]) and "Ctrl-C again stops at once" in err and "Traceback" not in err
    status, out, err = run("in_a_long_step(preemption)", signal.SIGINT, signal.SIGINT)
    assert (status, out) == (130, ["left SIGINT"]) and "Traceback" not in err


def test_handlers_are_put_back():
    from plum_jax.preemption import Preemption

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Preemption(print) as preemption, preemption.steps():
        signal.raise_signal(signal.SIGTERM)
        while not preemption.requested(1):  # another thread hears it
            time.sleep(0.01)
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGINT) is before[1]
        signal.raise_signal(signal.SIGTERM)
        assert preemption.requested(1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
