"""Shards written by several processes. What is done lies on the disk, so that nothing is lost when one of them is killed."""

import contextlib
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import time
from pathlib import Path

from data_pipelines.shards import write_shard
from plum_jax.errors import UserError

PATIENCE = 20  # seconds that the processes of a build that was killed have to notice it and to end
REPORT = 10  # seconds between two lines about the progress


@contextlib.contextmanager
def build_lock(folder):
    """One build at a time in a folder. The lock is the processes', inherited by the workers: it goes when the last one ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"{folder}: another build is writing there; wait for it, or use another --out") from error
                time.sleep(0.1)
        yield


def write_shards(recorder, jobs, workers, *, strict, log):
    """jobs: [(indices, shard path, part path)]; each is done by `write_shard` in one of the processes.

    Raises what the first of them raises. Where processes cannot be forked the shards are written in this one.
    """
    done, began = _Progress(jobs, log), time.monotonic()
    if min(workers, len(jobs)) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        for indices, shard, part in jobs:
            write_shard(recorder, indices, shard, part, strict=strict)
            done.report(began)
        return
    context = multiprocessing.get_context("fork")  # the source is there already, in memory that is shared
    pipes, processes = [], []
    for worker in range(min(workers, len(jobs))):
        receiver, sender = context.Pipe(duplex=False)
        arguments = (recorder, jobs[worker::workers], sender, os.getpid(), strict)
        processes.append(context.Process(target=_work, args=arguments, daemon=True))
        processes[-1].start()
        sender.close()
        pipes.append(receiver)
    try:
        _wait(processes, pipes, lambda: done.report(began))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(recorder, jobs, sender, parent, strict):
    try:
        for indices, shard, part in jobs:
            go_on = lambda: os.getppid() == parent  # noqa: E731  a killed parent tells nobody
            if not write_shard(recorder, indices, shard, part, strict=strict, go_on=go_on):
                return
        sender.send(None)
    except BaseException as error:
        sender.send((isinstance(error, UserError), str(error) if isinstance(error, UserError) else repr(error)))
        raise SystemExit(1) from error


def _wait(processes, pipes, report):
    """Until every process has said that it is done; the first fault is raised here."""
    waiting = dict(zip(pipes, processes, strict=True))
    while waiting:
        for pipe in multiprocessing.connection.wait(waiting, timeout=1):
            process = waiting.pop(pipe)
            try:
                fault = pipe.recv()
            except EOFError:
                process.join()
                how = "repeat the command with --resume, perhaps with fewer --workers"
                raise RuntimeError(f"a worker ended with status {process.exitcode}; {how}") from None
            if fault:
                user, message = fault
                raise (UserError if user else RuntimeError)(message)
        report()


class _Progress:
    """Counts the parts on the disk and says now and then how fast they come."""

    def __init__(self, jobs, log):
        self.parts, self.log, self.said = [Path(part) for _, _, part in jobs], log, time.monotonic()
        for part in self.parts:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)

    def report(self, began):
        now = time.monotonic()
        if now - self.said < REPORT:
            return
        done = sum(part.is_file() for part in self.parts)
        left = f", {(now - began) / done * (len(self.parts) - done):.0f} s left" if done else ""
        self.log(f"{done} of {len(self.parts)} shards after {now - began:.0f} s{left}")
        self.said = now
