"""Cutting images into patches, and picking tokens by index."""

import jax
from jaxtyping import Array, Float, Int


def patchify(images: Float[Array, "B H W C"], patch_size: int) -> Float[Array, "B N P"]:
    """Non-overlapping patches in raster order, each flattened as (row, column, channel)."""
    B, H, W, C = images.shape
    rows, columns = H // patch_size, W // patch_size
    x = images.reshape(B, rows, patch_size, columns, patch_size, C)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, rows, columns, p, p, C]
    return x.reshape(B, rows * columns, patch_size * patch_size * C)


def gather_tokens(tokens: Float[Array, "B N D"], index: Int[Array, "B K"]) -> Float[Array, "B K D"]:
    """Each image's own selection of its tokens.

    The indices of an image must be in range, sorted and unique, as the masks are: XLA may then use
    the cheap, deterministic form of the gather (and of the scatter in its transpose).
    """

    def one_image(x: Array, i: Array) -> Array:
        return x.at[i].get(unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds")

    return jax.vmap(one_image)(tokens, index)
