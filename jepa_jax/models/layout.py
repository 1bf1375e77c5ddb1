"""Over which axes of the mesh activations are sharded."""

from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

# Examples are sharded over these axes of the mesh, in every array of activations.
BATCH_AXES = ("data", "fsdp")


def shard(x: Array, *axes: Any) -> Array:
    """Tells the compiler over which axes of the mesh the dimensions of an activation are sharded.

    Without a mesh it does nothing. Left to itself, the compiler may choose to keep a layer's
    parameters sharded and to move activations instead, which are far larger.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *axes))
