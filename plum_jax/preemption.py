"""SIGTERM, by which a machine asks a program to stop, and Ctrl-C: in training, and in what goes on when it is repeated."""

import contextlib
import os
import signal
import sys
import threading

from plum_jax import processes

EXITS = {signal.SIGTERM: 0, signal.SIGINT: 128 + signal.SIGINT}


class Preemption:
    """Inside the block the two signals do not end the process between a step and its save.

        with Preemption(leave) as preemption:
            ...                              # nothing is lost by an end here: `leave` is called at once
            with preemption.steps():
                ...; preemption.requested(step)   # here the loop is told, on all hosts at the same step

    While XLA compiles, Python runs no handler of signals, for minutes. So a thread of its own hears them.

    Args:
      leave: called with the signal when there is nothing to save; then the process ends, with status 0 after SIGTERM and 130
        after Ctrl-C. Without it (training inside another program) SIGTERM waits for the next step, and Ctrl-C is Python's.
      exits: {signal that is heard: exit status}.
    """

    def __init__(self, leave=None, exits=None):
        self.leave, self.received, self.stepping, self.lock = leave, None, False, threading.Lock()
        self.previous, self.exits = {}, exits or EXITS

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        heard = (signal.SIGTERM,) if self.leave is None else tuple(self.exits)
        if self.leave is not None:
            ours, theirs = os.pipe()
            os.set_blocking(theirs, False)
            self.wakeup = (signal.set_wakeup_fd(theirs), ours, theirs)
            threading.Thread(target=self._listen, args=(ours,), daemon=True).start()
        # With a thread that hears the signals the handler does nothing, so that each is heard once, and in order.
        handler = self._note if self.leave is None else lambda *_: None
        self.previous = {number: signal.signal(number, handler) for number in heard}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.previous and self.leave is not None:
            before, ours, theirs = self.wakeup
            signal.set_wakeup_fd(before)
            os.close(theirs)  # the thread reads the end of the pipe

    def _note(self, number, _=None):
        self.received = self.received or signal.Signals(number)

    def _listen(self, pipe):
        while number := os.read(pipe, 1):
            if number[0] not in self.exits:
                continue
            with self.lock:
                again = self.received is signal.SIGINT and number[0] == signal.SIGINT
                self._note(number[0])
                if not self.stepping or again:
                    self._leave(self.received)
                if number[0] == signal.SIGINT:
                    print("\nStopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        os.close(pipe)

    def _leave(self, number):
        try:
            self.leave(number)
        finally:
            os._exit(self.exits[number])

    @contextlib.contextmanager
    def steps(self, doing=True):
        """A block in which there is something to save, or, with False, a part of it in which everything is saved."""
        with self.lock:
            before, self.stepping = self.stepping, doing
            if not doing and self.received is not None and self.leave is not None:
                self._leave(self.received)
        try:
            yield
        finally:
            with self.lock:
                self.stepping = before

    def requested(self, step):
        """Whether to save this step and stop, after SIGTERM on any host.

        Raises:
          KeyboardInterrupt: after Ctrl-C, which stops without saving.
        """
        import jax

        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if jax.process_count() == 1:
            return self.received is not None
        from jax.experimental import multihost_utils  # the signal is that of jax's coordination service, which agrees on a step

        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def nothing_to_save(leave):
    """A block in a run of several processes, often a long one, in which there is nothing to save.

    jax hears SIGTERM there, in the place of Python, and agrees on a step to save. In this block SIGTERM of any process ends all
    of them at once, which process 0 decides. The others are in the block too, or wait for what process 0 will tell them; what
    follows the block must begin with such a wait, as process 0 may end them when they have left it and it has not.

    Args:
      leave: as of `Preemption`; None leaves SIGTERM to the next step.
    """
    over, lock = threading.Event(), threading.Lock()

    def listen():
        while not over.wait(1):
            with lock:
                if over.is_set():
                    return
                if not processes.first():
                    processes.end_if_told()
                elif processes.terminated():
                    try:
                        leave(signal.SIGTERM)
                        processes.end_all()
                    finally:
                        os._exit(EXITS[signal.SIGTERM])

    if leave is not None and processes.several():
        threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        with lock:
            over.set()


def leave_run(workdir, number):
    """Says which step is saved, on the terminal and in run.json, when a signal ends the process between two saves."""
    from plum_jax.checkpoint import latest_step
    from plum_jax.run_record import mark_stopped

    step = latest_step(workdir)
    if number == signal.SIGTERM:
        what = f"step {step:,} is saved already" if step else "before the first save"
        print(f"Preempted: {what}; run the same command to go on", flush=True)
    else:
        print(f"\nplum train: interrupted; {saved_so_far(step)}", file=sys.stderr, flush=True)
    mark_stopped(workdir, "preempted" if number == signal.SIGTERM else "stopped")


def saved_so_far(step):
    """What a user wants to know after Ctrl-C."""
    return f"the last saved step is {step:,}; run the same command to go on" if step else "no step is saved yet"
