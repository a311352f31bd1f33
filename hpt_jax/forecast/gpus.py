"""A GPU that is not here, in the words of XLA's compiler."""

from __future__ import annotations

import importlib.metadata

from hpt_jax.forecast.chips import Chip, Gpu

# Of every NVIDIA GPU of these generations (CUDA C++ Programming Guide, "compute capabilities").
_LIMITS = {
    "threads_per_warp": 32,
    "threads_per_block_limit": 1024,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "shared_memory_per_block": 48 * 2**10,
}


def target_config(chip: Chip, gpu: Gpu) -> str:
    """A `GpuTargetConfigProto` as text, with the CUDA and cuDNN that are installed.

    The numbers are not those of a real GPU's driver; with them a program compiles, and what XLA
    would choose by trying, such as the algorithms of convolutions, is left open.
    """
    own = {
        "core_count": gpu.cores,
        "fpus_per_core": gpu.units,
        "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared_block,
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": int(chip.memory),
        "memory_bandwidth": int(chip.memory_rate),
    }
    limits = " ".join(f"{name}: {value}" for name, value in {**_LIMITS, **own}.items())
    return (
        f"gpu_device_info {{ {limits} cuda_compute_capability {{ major: {gpu.capability} }} }} "
        f'platform_name: "CUDA" device_description_str: "{gpu.name}" '
        f"dnn_version_info {{ {_version('nvidia-cudnn-cu12')} }} "
        f"runtime_version {{ {_version('nvidia-cuda-runtime-cu12')} }}"
    )


def _version(package: str) -> str:
    major, minor = importlib.metadata.version(package).split(".")[:2]
    return f"major: {major} minor: {minor}"
