"""Fixed two-dimensional sine-cosine positions of the patches."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sincos_positions(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Position table of a grid of patches, in raster order.

    The first half of the features encodes the column, the second half the row, as in the published
    models; each half is sin(p / 10000^(2i/D')), cos(...) with D' = dim / 2 (Vaswani et al., 2017).

    Args:
      grid: rows, columns.
      dim: width of the tokens, a multiple of 4.

    Returns:
      float32 [rows * columns, dim].
    """
    # As the reference rounds, so that its checkpoints hold this table bit for bit.
    frequencies = 1.0 / 10000.0 ** (np.arange(dim // 4) / (dim / 4.0))  # [dim / 4]
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])

    def encode(coordinate: np.ndarray) -> np.ndarray:
        angles = coordinate[:, None] * frequencies  # [N, dim / 4]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [N, dim / 2]

    return np.concatenate([encode(column), encode(row)], axis=1).astype(np.float32)  # [N, dim]


def interpolate_positions(
    table: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
) -> Float[Array, "new_N D"]:
    """The position table of `grid`, stretched bicubically over `new_grid`.

    A model reads other resolutions this way because it never saw coordinates beyond its own grid.
    """
    if grid == new_grid:
        return jnp.asarray(table)
    dim = table.shape[1]
    image = jax.image.resize(
        table.reshape(*grid, dim), (*new_grid, dim), method="bicubic", antialias=False
    )
    return image.reshape(-1, dim)
