"""Several processes of one run on this machine, without torchrun or MPI.

    python -m tools.launch_local --processes=2 -- plum train --config=configs/tiny.py --config.data.folder=DIR --workdir=W
    python -m tools.launch_local --processes=8 --gpus=8 -- plum train ...      # one process a GPU

One process drives all GPUs of a machine just as well and is simpler: run the command by itself. Several are for trying out
on one machine what happens on many, and for machines where one process cannot feed all of its GPUs.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE = 60.0  # seconds that the others have to end by themselves when one has failed, and after SIGTERM


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence. Not that of plum_jax.cli: this program imports nothing of the project."""

    def error(self, message):
        self.exit(2, f"launch_local: {message}\n")


def main(argv=None):
    parser = Parser("python -m tools.launch_local", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of this machine, split evenly among the processes")
    parser.add_argument("--grace", type=float, default=GRACE, help=f"seconds to end after one has failed (default {GRACE:.0f})")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what every process runs")
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.processes < 1:
        parser.error(f"--processes {args.processes}: give 1 or more")
    if args.gpus % args.processes:
        parser.error(f"--gpus {args.gpus}: does not divide evenly among {args.processes} processes")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if args.gpus and visible and len(visible.split(",")) < args.gpus:
        parser.error(f"--gpus {args.gpus}: CUDA_VISIBLE_DEVICES names {len(visible.split(','))}")
    if not command:
        parser.error("no command; write it after --, such as -- plum train --workdir=W")
    if not shutil.which(command[0]):
        parser.error(f"{command[0]}: is no program that can be run; install it, or give its path")
    return launch(command, args.processes, gpus=args.gpus, grace=args.grace)


def environments(processes, gpus, port):
    """Variables that describe each process to jax, over those of this process."""
    share = gpus // processes
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(gpus)]
    for index in range(processes):
        found = {
            **os.environ,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "PYTHONUNBUFFERED": "1",
        }
        if gpus:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(names[index * share : (index + 1) * share])
        yield found


def launch(command, processes, *, gpus=0, grace=GRACE, out=None):
    """Runs `command` in `processes` processes and prints their lines as "[process] line".

    When one fails, the others have `grace` seconds to end by themselves (jax tells them), then SIGTERM and, `grace` seconds
    later, SIGKILL. SIGTERM and Ctrl-C are passed on to all of them.

    Returns:
      0 when all processes ended with 0; else the status of the first that failed, 128 + number for one that a signal ended.
    """
    out = out or sys.stdout
    started, readers, lock = [], [], threading.Lock()
    with _passing_on(started):
        for index, env in enumerate(environments(processes, gpus, _free_port())):
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            started.append(process)
            reader = threading.Thread(target=_copy, args=(process.stdout, f"[{index}] ", out, lock), daemon=True)
            reader.start()
            readers.append(reader)
        status = _wait(started, grace, out, lock)
    for reader in readers:
        reader.join(timeout=10)
    return status


def _wait(processes, grace, out, lock):
    """Until all have ended -> the status of the first that failed, or 0."""
    status, since, sent = 0, None, None
    while True:
        codes = [process.poll() for process in processes]
        failed = [(index, code) for index, code in enumerate(codes) if code]
        if failed and not status:
            index, code = failed[0]
            status, since = code if code > 0 else 128 - code, time.monotonic()
            with lock:
                print(f"launch_local: process {index} ended with {status}; ending the others", file=out, flush=True)
        if None not in codes:
            return status
        if since is not None and time.monotonic() - since > grace:
            sent, since = signal.SIGKILL if sent else signal.SIGTERM, time.monotonic()
            for process in processes:
                if process.poll() is None:
                    process.send_signal(sent)
        time.sleep(0.05)


def _copy(stream, prefix, out, lock):
    for line in stream:
        with lock:
            out.write(prefix + line.rstrip("\n") + "\n")
            out.flush()


class _passing_on:
    """Inside the block SIGTERM and Ctrl-C go to the processes that were started."""

    def __init__(self, processes):
        self.processes, self.previous = processes, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._send)
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        for process in self.processes:
            if process.poll() is None:  # an error here must not leave processes behind
                process.kill()

    def _send(self, number, _):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    raise SystemExit(main())
