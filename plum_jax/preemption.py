"""Knows when the machine wants the process to stop: SIGTERM on any host."""

import signal
import threading

import jax


class Preemption:
    """Inside the block SIGTERM no longer kills; `requested(step)` says that it arrived, on all hosts at the same step."""

    def __init__(self):
        self.received, self.previous = False, None

    def __enter__(self):
        # With several processes jax's coordination service owns the signal and makes the hosts agree on a step.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_):
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)

    def _note(self, *_):
        self.received = True

    def requested(self, step):
        if jax.process_count() == 1:
            return self.received
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
