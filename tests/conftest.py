"""Eight virtual CPU devices for every test: a sharding rule that does nothing on one device is a rule that is never tested."""

import os

# Before jax is imported; a device count given from outside (another number of devices) wins.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a network
