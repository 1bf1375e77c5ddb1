"""Where each array lives: a device mesh, and a table from parameter roles to its axes.

The mesh has three axes. `data` splits the batch; `fsdp` splits the batch and the parameters, which
are gathered where they are used; `tensor` splits attention heads and the MLP's hidden width. One
device is a 1 x 1 x 1 mesh.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jepa_jax.config import MeshConfig
from jepa_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# The first pattern that matches the end of a parameter's path decides; None leaves a dimension
# whole. The blocks' parameters have a leading axis for the layer, which is never split. Anything
# else (LayerNorm, other biases, the mask vector, counters) is small, and kept whole everywhere.
# Optimizer moments and the moving average follow the parameter whose path they end with.
RULES = (
    # [layers, D, 3, heads, head_dim]
    (r"attention/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
    # [layers, 3, heads, head_dim]
    (r"attention/qkv/bias", PartitionSpec(None, None, "tensor", None)),
    # [layers, heads, head_dim, D]
    (r"attention/proj/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    # [layers, D, hidden], [layers, hidden], [layers, hidden, D]
    (r"mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"mlp/fc1/bias", PartitionSpec(None, "tensor")),
    (r"mlp/fc2/kernel", PartitionSpec(None, "tensor", "fsdp")),
    # [inputs, D]
    (r"(patch_embed|embed|proj)/kernel", PartitionSpec(None, "fsdp")),
)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all processes, or over those given.

    Neighbours on the network become neighbours in the mesh. Where devices form several slices
    (TPU) or hosts (GPU), which talk to each other over a slower network, the `data` axis goes over
    them, and `fsdp` and `tensor` stay within one, if they fit.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    by_process = slices == 1 and devices[0].platform == "gpu"
    groups = len({device.process_index for device in devices}) if by_process else slices
    if groups > 1 and shape[0] % groups == 0:
        array = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // groups, *shape[1:]),
            (groups, 1, 1),
            devices,
            process_is_granule=by_process,
            allow_split_physical_axes=True,
        )
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Devices along `data`, `fsdp` and `tensor`.

    Raises:
      UserError: they do not multiply to the number of devices.
    """
    inner = config.fsdp * config.tensor
    given = f"config.mesh = data {config.data}, fsdp {config.fsdp}, tensor {config.tensor}"
    if num_devices % inner:
        raise UserError(
            f"{given}: fsdp x tensor = {inner} must divide the number of devices, {num_devices}; "
            f"{_nearest_divisors(inner, num_devices)} do"
        )
    data = num_devices // inner
    if config.data not in (None, data):
        raise UserError(
            f"{given}: must multiply to the number of devices, {num_devices}; set data to {data}, "
            "or to None for all that are left"
        )
    return data, config.fsdp, config.tensor


def check_divisible(
    params: Any, mesh: Mesh | AbstractMesh, *, batch_size: int, accumulation_steps: int
) -> None:
    """Refuses a batch or parameters that can't be sharded over the mesh evenly.

    Args:
      params: the parameters, or their shapes.

    Raises:
      UserError: with the number and the nearest allowed ones.
    """
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * accumulation_steps
    if batch_size % shares:
        below = batch_size // shares * shares
        nearest = f"{below} or {below + shares}" if below else f"{shares}"
        raise UserError(
            f"config.batch_size = {batch_size}: must be a multiple of {shares} (data x fsdp axes "
            f"of the mesh x optimizer.accumulation_steps), {nearest} for example"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for size, axis in zip(leaf.shape, _spec_of(name), strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"config.mesh.{axis} = {mesh.shape[axis]}: must divide {size}, of the shape "
                    f"{tuple(leaf.shape)} of {name}; {_nearest_divisors(mesh.shape[axis], size)} do"
                )


def _nearest_divisors(number: int, of: int) -> str:
    """The divisors next to a number, below and above."""
    divisors = [d for d in range(1, of + 1) if of % d == 0]
    below = [d for d in divisors if d < number][-1:]
    above = [d for d in divisors if d > number][:1]
    return " and ".join(map(str, below + above))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array of a tree, by the rules above."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        del leaf
        return NamedSharding(mesh, _spec_of(jax.tree_util.keystr(path, simple=True, separator="/")))

    return jax.tree_util.tree_map_with_path(place, tree)


def _spec_of(name: str) -> PartitionSpec:
    """The axes of an array's dimensions, by the end of its path."""
    for pattern, spec in RULES:
        if re.search(rf"(^|/){pattern}$", name):
            return spec
    return PartitionSpec()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over the axes `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of the whole batch that this process's devices hold, in order: int64 [b]."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    held = {row for (rows,) in filter(None, slices) for row in range(*rows.indices(batch_size))}
    return np.array(sorted(held), np.int64)


def traced_on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the mesh known while it is traced: see `models.layout.shard`."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
