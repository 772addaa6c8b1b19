"""Eight virtual CPU devices for every test: a sharding rule that does nothing on one device is a rule that is never tested."""

import os
import tempfile

import pytest

# Before jax is imported; a device count given from outside (another number of devices) wins.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks the network which TPU it is on otherwise
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # as many processes compile for TPUs as run tests
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a network
# Many tests compile the same programs, and so does every process that they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"plum_jax_tests_{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="module")
def quick_compilation():
    """Half the compilation time for slower programs: for tests that run a large program once or twice."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # programs of this size keep gigabytes
