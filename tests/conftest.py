"""Eight fake CPU devices and quick compilation for every test, set before anything imports jax."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling a train step takes six times as long as running all the steps of a test.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
