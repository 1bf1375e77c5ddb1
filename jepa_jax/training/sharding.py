"""Where each array lives: a device mesh, and a table from parameter roles to its axes.

The mesh has three axes. `data` splits the batch; `fsdp` splits the batch and the parameters, which
are gathered where they are used; `tensor` splits attention heads and the MLP's hidden width. One
device is a 1 x 1 x 1 mesh.
"""

import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jepa_jax.config import MeshConfig
from jepa_jax.errors import UserError

# The first pattern that matches the end of a parameter's path decides; None leaves a dimension
# whole. The blocks' parameters have a leading axis for the layer, which is never split. Anything
# else (LayerNorm, other biases, the mask vector, counters) is small, and kept whole everywhere.
# Optimizer moments and the moving average follow the parameter whose path they end with.
RULES = (
    (r"attention/qkv/kernel", P(None, "fsdp", None, "tensor", None)),  # [L, D, 3, heads, head_dim]
    (r"attention/qkv/bias", P(None, None, "tensor", None)),  # [L, 3, heads, head_dim]
    (r"attention/proj/kernel", P(None, "tensor", None, "fsdp")),  # [L, heads, head_dim, D]
    (r"mlp/fc1/kernel", P(None, "fsdp", "tensor")),  # [L, D, hidden]
    (r"mlp/fc1/bias", P(None, "tensor")),  # [L, hidden]
    (r"mlp/fc2/kernel", P(None, "tensor", "fsdp")),  # [L, hidden, D]
    (r"(patch_embed|embed|proj)/kernel", P(None, "fsdp")),  # [inputs, D]
)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    data = config.data
    if data == -1:
        data = max(devices // (config.fsdp * config.tensor), 1)
    shape = (data, config.fsdp, config.tensor)
    if data * config.fsdp * config.tensor != devices:
        raise UserError(
            f"config.mesh = data {config.data}, fsdp {config.fsdp}, tensor {config.tensor}: must "
            f"multiply to the number of devices, {devices}"
        )
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def check_mesh(mesh: Mesh, *, batch_size: int, accumulation_steps: int) -> None:
    """Refuses a batch that does not split over the mesh.

    Raises:
      UserError: with the batch size and the nearest ones that do.
    """
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * accumulation_steps
    if batch_size % shares:
        below, above = batch_size // shares * shares, -(-batch_size // shares) * shares
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"config.batch_size = {batch_size}: must be a multiple of {shares} (data x fsdp axes "
            f"of the mesh x optimizer.accumulation_steps), {nearest} say"
        )


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array of a tree, by the rules above."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in RULES:
            if re.search(rf"(^|/){pattern}$", name):
                divides = (
                    axis is None or size % mesh.shape[axis] == 0
                    for axis, size in zip(spec, leaf.shape, strict=False)
                )
                return NamedSharding(mesh, spec if all(divides) else P())
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over the axes `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())
