"""A run of several processes: how it starts, who speaks for it, what they tell each other, and how it ends.

What they tell each other goes through the key-value store of jax's coordination service, which process 0 runs: no device takes
part, so it works before devices are opened and while the devices of others are busy. Process 0 is the one that all depend on.

A process that ends with an error leaves at once, without the barrier at which jax would wait for the others. They notice
in one of two ways: a collective fails (`verdict`), or jax misses the signs of life and ends them (plum_jax.lost_process says it
in a sentence). Both name the process and say what to do, and the exit status is not 0.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from plum_jax.errors import UserError

START_SECONDS = "PLUM_START_SECONDS"  # environment: how long processes wait for each other at the start
LOST_SECONDS = "PLUM_LOST_SECONDS"  # environment: a process without a sign of life for so long is lost
FAILED = "plum/failed/"  # keys under which processes say why they ended
ENDED = "plum/ended"  # the key by which process 0 ends all processes after SIGTERM
SIGTERM_CAME = "RECEIVED_PREEMPTION_NOTICE"  # the key by which jax's coordination service says that one of them got SIGTERM
POLL = 1000  # milliseconds between two looks at these
FROM_A_PEER = r"(?i)gloo|nccl|connection|peer|unavailable|deadline|timed? ?out|barrier|coordination|heartbeat|preempted"
_calls = {}  # {name of an exchange: how often it was made}: every exchange has keys of its own


def _state():
    """jax's own record of the processes, which needs no device; None before jax is imported."""
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed  # the way to the coordination service that Orbax takes too; jax offers no public one

    return distributed.global_state


def several():
    """Whether this is one process of several."""
    state = _state()
    return state is not None and state.client is not None and state.num_processes > 1


def who():
    """' (process 2 of 4)', '' when there is only one."""
    return f" (process {_state().process_id} of {_state().num_processes})" if several() else ""


def first():
    """Whether this is the first process, or the only one."""
    return not several() or _state().process_id == 0


def say(message):
    """Prints on the first process only."""
    if first():
        print(message, flush=True)


def start_processes(command="train"):
    """jax.distributed.initialize(), when the environment describes more than one process; before a device is touched.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS by hand; SLURM, Open MPI and TPU pods are recognised by jax.

    Raises:
      UserError: the environment is wrong, process 0 does not answer, or the processes run different code.
    """
    from plum_jax.agreement import check_code

    about = {"command": command, "hosts": [], **described(os.environ)}
    if not about["several"]:
        return
    if about["address"]:
        (_wait_for_port if about["number"] == 0 else _wait_for_process_0)(about["address"], about["start"])
    _say_what_was_lost(about)
    import jax

    by_hand = (about["address"], about["count"], about["number"]) if about["address"] else ()
    try:
        jax.distributed.initialize(*by_hand, initialization_timeout=about["start"], heartbeat_timeout_seconds=about["lost"])
    except (RuntimeError, ValueError) as error:  # of the detection of a cluster; what goes wrong later ends in C++
        raise UserError(
            f"jax cannot start the processes ({str(error).partition(chr(10))[0]}); set JAX_NUM_PROCESSES, JAX_PROCESS_ID and "
            "JAX_COORDINATOR_ADDRESS on every host"
        ) from error
    hosts = tell_all("hosts", socket.gethostname())
    from plum_jax.lost_process import HOSTS

    os.write(2, f"{HOSTS}{json.dumps(hosts)}\n".encode())
    check_code()


def described(env):
    """Environment -> {"several", "number", "count", "address", "start", "lost"}; None where jax finds it out itself."""
    known = dict(start=_number(env, START_SECONDS, 300), lost=_number(env, LOST_SECONDS, 30, low=4))
    count = _number(env, "JAX_NUM_PROCESSES", None)
    if count is None and "JAX_PROCESS_ID" in env:
        raise UserError("JAX_NUM_PROCESSES: is not set, but JAX_PROCESS_ID is; set both, or neither for a single process")
    if count is not None and count > 1:
        number = _number(env, "JAX_PROCESS_ID", None, low=0, high=count - 1)
        if number is None:
            raise UserError(f"JAX_PROCESS_ID: is not set; give each of the {count} processes a number from 0 to {count - 1}")
        address = env.get("JAX_COORDINATOR_ADDRESS", "")
        if not re.fullmatch(r".+:\d{1,5}", address) or not 0 < int(address.rpartition(":")[2]) < 65536:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS: {address!r} is not HOST:PORT; set it, on all hosts, to the host of process 0 and a "
                "free port there"
            )
        return dict(several=True, number=number, count=count, address=address, **known)
    ranks = max(_number(env, name, 1) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    found = ranks > 1 or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    return dict(several=found and count is None, number=None, count=None, address=None, **known)


def _number(env, name, default, *, low=1, high=None):
    text = env.get(name, "")
    if not text:
        return default
    if text.isdecimal() and low <= int(text) and (high is None or int(text) <= high):
        return int(text)
    raise UserError(f"{name}: {text!r} is not a number from {low}{f' to {high}' if high is not None else ' up'}; correct it")


def _wait_for_process_0(address, seconds):
    """Until process 0 listens; jax would wait in C++ and abort. UserError after `seconds`."""
    host, _, port = address.rpartition(":")
    error = _try_for(seconds, lambda: socket.create_connection((host.strip("[]"), int(port)), timeout=5))
    if error:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS: process 0 did not answer at {address} within {seconds} s ({error}); start the "
            "command there too, or correct the address"
        ) from error


def _wait_for_port(address, seconds):
    """Until the port of process 0 is free: a process of an earlier run may still be ending. jax would crash on a taken one."""
    port = int(address.rpartition(":")[2])
    error = _try_for(min(seconds, 60), lambda: socket.create_server(("", port)))
    if error:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS: port {port} of this host cannot be opened ({error.strerror}); end the program "
            "that has it, or give another port on all hosts"
        ) from error


def _try_for(seconds, connect):
    """None as soon as a socket can be made, which is closed again; the error of the last trial after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connect().close()
            return None
        except OSError as error:
            if time.monotonic() > deadline:
                return error
        time.sleep(0.5)


def _say_what_was_lost(about):
    """Puts plum_jax.lost_process between file descriptor 2 and where it went; Python's own messages do not pass through it."""
    program = Path(__file__).with_name("lost_process.py")
    straight = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    beside = subprocess.Popen(
        [sys.executable, "-I", str(program), json.dumps(about)], stdin=subprocess.PIPE, stdout=straight, stderr=straight,
        start_new_session=True,  # Ctrl-C is for this process; that one ends when this one has
    )  # fmt: skip
    os.dup2(beside.stdin.fileno(), 2)
    beside.stdin.close()
    sys.stderr = straight


def tell_all(name, value):
    """Every process gives a value that JSON can hold -> the values of all, in their order. All must call it.

    Raises:
      UserError: another process ended with an error instead.
    """
    if not several():
        return [value]
    state, place = _state(), _place(name)
    state.client.key_value_set(f"{place}/{state.process_id}", json.dumps(value))
    return [json.loads(_await(f"{place}/{number}")) for number in range(state.num_processes)]


def meet(name):
    """Waits until all processes are here, however long that takes.

    Before what a backend allows them little time for: gloo gives up when one enters the first collective 30 s after another.
    """
    tell_all(name, True)


def first_says(name, value):
    """The value of process 0, on all processes; None may be given on the others. All must call it."""
    if not several():
        return value
    state, place = _state(), _place(name)
    if state.process_id == 0:
        state.client.key_value_set(place, json.dumps(value))
    return json.loads(_await(place))


def _place(name):
    """A new key: the same on all processes, as they all make the same exchanges in the same order."""
    _calls[name] = _calls.get(name, 0) + 1
    return f"plum/{name}/{_calls[name]}"


def _await(key):
    """The value of a key, however long it takes; UserError as soon as a process says that it failed.

    Ends this process, with status 0, when process 0 ends all of them.
    """
    import jax

    while True:
        try:
            return _state().client.blocking_key_value_get(key, POLL)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        failed = failure()
        if failed:
            raise UserError(failed)
        end_if_told()


def terminated():
    """Whether SIGTERM has come to any of several processes. jax hears it, in the place of Python, and tells all of them."""
    return _found(SIGTERM_CAME)


def end_all():
    """Ends all processes with status 0. For process 0, while the others wait for what it tells them or ask `end_if_told`."""
    _state().client.key_value_set(ENDED, "SIGTERM")
    _end()


def end_if_told():
    """Ends this process with status 0 when process 0 ends all of them."""
    if _found(ENDED):
        _end()


def _found(key):
    import jax

    with contextlib.suppress(jax.errors.JaxRuntimeError):  # it is not there
        return bool(_state().client.key_value_try_get(key))
    return False


def _end():
    """Ends this process with status 0, when all others have come to their end too."""
    import jax

    jax.distributed.shutdown()
    _flush()
    os._exit(0)


def _flush():
    with contextlib.suppress(OSError, ValueError):  # their readers may be gone
        sys.stdout.flush()
        sys.stderr.flush()


def failure():
    """What another process said when it ended with an error, with its number and host; None when none did."""
    state = _state()
    said = {int(key.rpartition("/")[2]): text for key, text in state.client.key_value_dir_get(FAILED)}
    said.pop(state.process_id, None)
    return said[min(said)] if said else None


def verdict(error):
    """Another process's error, when it is the reason for this one; else None.

    A collective fails at once where a process is gone, but does not say which. One that failed has said so; of one that was
    lost jax learns within PLUM_LOST_SECONDS, and ends this process while it waits here.
    """
    if not several() or isinstance(error, UserError) or not re.search(FROM_A_PEER, f"{type(error).__name__}: {error}"):
        return None
    import jax

    deadline, found = time.monotonic() + described(os.environ)["lost"] + 15, None
    while time.monotonic() < deadline and not found:
        time.sleep(0.5)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 does not answer: jax ends this process any moment
            found = failure()
    return found


def leave(status, sentence=""):
    """Ends a process of several; returns the status where there is only one.

    With status 0 after all others have come here too. With another one at once, and the others learn the sentence.
    """
    if not several():
        return status
    import jax

    if status == 0:
        jax.distributed.shutdown()
        return 0
    state = _state()
    if not sentence.startswith("process "):  # else it tells of another process already
        sentence = f"process {state.process_id} (host {socket.gethostname()}) stopped: {sentence}"
    try:
        state.client.key_value_set(f"{FAILED}{state.process_id}", sentence)
        deadline = time.monotonic() + 5
        # The others depend on process 0: it gives those that fail for the same reason the time to say so.
        while state.process_id == 0 and time.monotonic() < deadline:
            if len(state.client.key_value_dir_get(FAILED)) == state.num_processes:
                break
            time.sleep(0.1)
    except jax.errors.JaxRuntimeError:
        pass  # process 0 is gone already
    _flush()
    os._exit(status)


def sum_over_hosts(account):
    """The accounts of all processes as one; the same on each of them."""
    from data_pipelines.account import Account

    if not several():
        return account
    total = Account()
    for text in tell_all("account", account.to_json()):
        total.add(Account.from_json(text))
    return total
