"""Work in several processes, with the results in the order of the jobs."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import threading


@contextlib.contextmanager
def processes(workers):
    """An ordered `map` over processes, or over none for one worker. Functions and jobs are pickled."""
    if workers == 1:
        yield map
        return
    # Not forked: the caller may have started jax, whose threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    try:
        yield executor.map
    finally:
        executor.shutdown(cancel_futures=True)


def end_with_parent():
    """Ends this worker when its parent was killed, as it would wait for work forever and write into a removed folder."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
