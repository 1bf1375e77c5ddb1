"""Masks of several batches for `benchmarks.peer_torch`: ours, and as the reference made them.

In NumPy, because a GPU machine need not have TensorFlow, which `jepa_jax.data.masks` needs; what is
drawn has the same distribution. The tests hold the two against each other.
"""

import numpy as np

from jepa_jax.config import MaskConfig
from jepa_jax.errors import UserError

MIN_KEEP = 10  # of the reference: a context with fewer patches is drawn again
MAX_DRAWS = 100

Masks = dict[str, np.ndarray]  # context_index int32 [B, K], target_index int32 [B, M, T]


def draw_masks(
    masks: MaskConfig, grid: tuple[int, int], batch_size: int, *, num_batches: int, seed: int
) -> tuple[list[Masks], list[Masks]]:
    """Masks of our pipeline and of the reference's; their target blocks have the same sizes.

    Ours have exactly K context tokens, a random choice of those that are visible. The reference's
    keep the first of each image, as many as the batch's poorest image has.
    """
    rng, ours, published = np.random.default_rng(seed), [], []
    for _ in range(num_batches):
        points = rng.random(2)
        K = masks.context_tokens
        sizes = _block_sizes(masks, np.array(grid), points)  # [1 + M, 2]
        corners, visible = _draw_blocks(rng, sizes, np.array(grid) + 1, grid, batch_size, K)
        rank = np.where(visible, rng.random(visible.shape), 2.0)
        ours.append(_to_indices(rank, K, corners, sizes, grid))

        limit = np.array(grid)  # no block spans the grid, no corner is the last that fits
        sizes = np.minimum(sizes, limit - 1)
        corners, visible = _draw_blocks(rng, sizes, limit, grid, batch_size, MIN_KEEP)
        shortest = int(visible.sum(axis=1).min())
        rank = np.where(visible, np.arange(visible.shape[1]), visible.shape[1])
        published.append(_to_indices(rank, shortest, corners, sizes, grid))
    return ours, published


def _block_sizes(masks: MaskConfig, grid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Height and width of the context block and of the M target blocks: int [1 + M, 2].

    One point in [0, 1) gives a block's area and its aspect ratio, as published.
    """

    def size(scale: tuple[float, float], aspect_ratio: tuple[float, float], u: float):
        area = np.floor(grid.prod() * (scale[0] + u * (scale[1] - scale[0])))
        ratio = aspect_ratio[0] + u * (aspect_ratio[1] - aspect_ratio[0])
        return np.round(np.sqrt([area * ratio, area / ratio])).astype(int)

    context = size(masks.context_scale, (1.0, 1.0), points[0])
    target = size(masks.target_scale, masks.target_aspect_ratio, points[1])
    return np.minimum(np.stack([context] + [target] * masks.num_targets), grid)


def _draw_blocks(
    rng: np.random.Generator,
    sizes: np.ndarray,
    limit: np.ndarray,
    grid: tuple[int, int],
    batch_size: int,
    min_visible: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Corners [B, 1 + M, 2] below limit - size, and which patches they leave visible: bool [B, N].

    Images with fewer than `min_visible` of them are drawn again.
    """
    patch = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=1)  # [N, 2]

    def draw() -> tuple[np.ndarray, np.ndarray]:
        corners = rng.integers(limit - sizes, size=(batch_size, *sizes.shape))
        offset = patch - corners[:, :, None]  # [B, 1 + M, N, 2]
        inside = ((offset >= 0) & (offset < sizes[:, None])).all(axis=-1)  # [B, 1 + M, N]
        return corners, inside[:, 0] & ~inside[:, 1:].any(axis=1)

    corners, visible = draw()
    for _ in range(MAX_DRAWS):
        short = visible.sum(axis=1) < min_visible
        if not short.any():
            return corners, visible
        new_corners, new_visible = draw()
        corners = np.where(short[:, None, None], new_corners, corners)
        visible = np.where(short[:, None], new_visible, visible)
    raise UserError(f"--context-tokens {min_visible}: hardly any mask leaves so many; lower it")


def _to_indices(
    rank: np.ndarray, K: int, corners: np.ndarray, sizes: np.ndarray, grid: tuple[int, int]
) -> Masks:
    """The K patches of lowest rank [B, N], and the patches of the target blocks, both sorted."""
    height, width = sizes[1]
    within = np.arange(height)[:, None] * grid[1] + np.arange(width)  # [h, w]
    first = corners[:, 1:, 0] * grid[1] + corners[:, 1:, 1]  # [B, M]
    context = np.sort(np.argsort(rank, axis=1)[:, :K], axis=1)
    return {
        "context_index": context.astype(np.int32),
        "target_index": (first[..., None] + within.reshape(-1)).astype(np.int32),
    }
