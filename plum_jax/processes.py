"""A run of several processes: how it starts, and who speaks for it."""

import os


def say(message):
    """Prints on the first process only."""
    import jax

    if jax.process_index() == 0:
        print(message, flush=True)


def start_processes():
    """jax.distributed.initialize(), when the environment describes more than one process; before a device is touched.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS by hand; SLURM, Open MPI and TPU pods are recognised by jax.
    """
    import jax

    env = os.environ
    if int(env.get("JAX_NUM_PROCESSES", "1")) > 1:
        jax.distributed.initialize(env["JAX_COORDINATOR_ADDRESS"], int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"]))
        return
    ranks = max(int(env.get(name, "1")) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    if ranks > 1 or "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()
