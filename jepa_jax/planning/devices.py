"""Devices to compile for that need not be there: virtual CPUs, a TPU slice, GPUs by description."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from jepa_jax.errors import UserError
from jepa_jax.planning.chips import CHIPS

# What XLA's compiler wants to know of a GPU (NVIDIA's data sheets and programming guides): compute
# capability, multiprocessors, lanes of each, shared memory of each and of a block, L2, clock.
_GPUS = {
    "A100-80G": ("8", "0", 108, 64, 167936, 166912, 40 << 20, 1.41),
    "H100": ("9", "0", 132, 128, 233472, 232448, 50 << 20, 1.98),
    "H200": ("9", "0", 132, 128, 233472, 232448, 50 << 20, 1.98),
}
# Without a card no candidates can be timed: matrix products are cuBLAS's, as most are with one.
_UNTIMED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def virtual_devices(number: int) -> Sequence[Any]:
    """CPU devices that exist in name only, which is enough to compile for. Before any use of JAX.

    Raises:
      UserError: the number is not positive.
    """
    if number < 1:
        raise UserError(f"--devices {number}: must be at least 1")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", number)
    return jax.devices()


def topology_devices(topology: str) -> tuple[Sequence[Any], str]:
    """The devices of a TPU slice such as v5e:16x16, or GPUs such as H100:4x8, and their chip.

    Raises:
      UserError: what holds the compiler is not installed; or it knows no such devices.
    """
    jax.config.update("jax_platforms", "cpu")
    name, _, shape = topology.partition(":")
    return (_gpus(topology, name, shape), name) if name in _GPUS else _tpus(topology)


def compiler_options(device: Any) -> dict[str, Any] | None:
    """With which a program for a device that is not there is compiled; None: the usual ones."""
    return _UNTIMED if device.platform == "gpu" else None


def _gpus(topology: str, name: str, shape: str) -> Sequence[Any]:
    if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", shape):
        raise UserError(
            f"--topology {topology}: must be NAME:GPUS of one host, or NAME:HOSTSxGPUS, "
            f"as {name}:4x8"
        )
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(
            f"--topology {topology}: needs JAX's CUDA plugin, which holds the compiler (no CUDA "
            f"and no GPU): pip install jax-cuda12-plugin=={jax.__version__}"
        )
    from jax.experimental import topologies

    hosts, _, gpus = shape.rpartition("x")
    description = _description(name)
    try:
        return topologies.get_topology_desc(
            name, platform="cuda", target_config=description, topology=f"1x{hosts or 1}x{gpus}"
        ).devices
    except Exception as error:  # of several types
        raise UserError(f"--topology {topology}: {str(error).splitlines()[0]}") from error


def _description(name: str) -> str:
    """A `stream_executor.GpuTargetConfigProto` as text."""
    major, minor, cores, lanes, shared, shared_by_block, l2, clock = _GPUS[name]
    chip = CHIPS[name]
    return f"""
        platform_name: "CUDA"
        device_description_str: "{chip.device_kind}"
        runtime_version {{ major: 12 minor: 8 }}
        dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {cores}
          fpus_per_core: {lanes}
          clock_rate_ghz: {clock}
          device_memory_size: {int(chip.memory)}
          memory_bandwidth: {int(chip.memory_bandwidth)}
          l2_cache_size: {l2}
          shared_memory_per_core: {shared}
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: {shared_by_block}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
        }}
    """


def _tpus(topology: str) -> tuple[Sequence[Any], str]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {topology}: needs libtpu, which holds the compiler: pip install libtpu"
        )
    from jax.experimental import topologies

    # There is no TPU to ask what it is, or to have to oneself: without these the compiler waits,
    # complains, and refuses to work beside another process that compiles.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")
    try:
        devices: Any = topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # of several types
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {topology}: {reason}; for example v5e:16x16") from error
    kind = devices[0].device_kind
    chips = {chip.device_kind: name for name, chip in CHIPS.items()}
    if kind not in chips or len({tuple(device.coords) for device in devices}) < len(devices):
        known = "v5e, v5p, v6e"
        raise UserError(f"--topology {topology}: only chips that are one device each, {known}")
    return devices, chips[kind]
