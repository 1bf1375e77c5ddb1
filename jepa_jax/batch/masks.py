"""Masks as an objective declares them: their arithmetic, without any draw of theirs.

`data/masks.py` draws them. Here is what can be known beforehand: the sizes of blocks, the shapes of
the index arrays, and whether a setting can be met at all.
"""

import dataclasses
import functools

import numpy as np

from jepa_jax.config.prediction import MaskConfig
from jepa_jax.errors import UserError

# One number on this lattice of [0, 1) gives a block's scale and its aspect ratio, as published.
# A lattice makes the sizes' distribution a table: exact, and the same wherever it is read.
LATTICE = 1 << 16
_TRIALS = 1 << 14  # draws that `check_feasible` looks at


@dataclasses.dataclass(frozen=True)
class MultiBlock:
    """Multi-block masks (Assran et al., 2023, section 3) on a grid of patches.

    In a batch: context_index int32 [B, K] and target_index int32 [B, M, T], sorted and unique
    within a block; T is one of a few, drawn per step.
    """

    config: MaskConfig
    grid: tuple[int, int]  # rows, columns

    @functools.cached_property
    def context_size_table(self) -> np.ndarray:
        """int32 [LATTICE, 2]: height and width of the context block per lattice point."""
        return self._size_table(self.config.context_scale, (1.0, 1.0))

    @functools.cached_property
    def target_size_table(self) -> np.ndarray:
        """int32 [LATTICE, 2]: height and width of the target blocks per lattice point."""
        return self._size_table(self.config.target_scale, self.config.target_aspect_ratio)

    def target_lengths(self) -> dict[int, float]:
        """Patches per target block T -> share of the steps that have it."""
        lengths, counts = np.unique(self.target_size_table.prod(axis=1), return_counts=True)
        return {int(n): count / LATTICE for n, count in zip(lengths, counts, strict=True)}

    def variants(self, batch_size: int) -> tuple[tuple[dict[str, tuple[int, ...]], float], ...]:
        """Shapes of the index arrays, each with its share of the steps; by growing T."""
        B, K, M = batch_size, self.config.context_tokens, self.config.num_targets
        return tuple(
            ({"context_index": (B, K), "target_index": (B, M, T)}, share)
            for T, share in self.target_lengths().items()
        )

    def _size_table(
        self, scale: tuple[float, float], aspect_ratio: tuple[float, float]
    ) -> np.ndarray:
        u = np.arange(LATTICE) / LATTICE
        area = np.floor(self.grid[0] * self.grid[1] * (scale[0] + u * (scale[1] - scale[0])))
        ratio = aspect_ratio[0] + u * (aspect_ratio[1] - aspect_ratio[0])
        size = np.stack([np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))], axis=1)
        # The reference never lets a block span the grid.
        largest = np.array(self.grid) - (1 if self.config.published else 0)
        return np.minimum(size, largest).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class RandomPatches:
    """A uniformly random subset of the patches is seen, the others are masked (He et al., 2022).

    In a batch: visible_index int32 [B, K] and masked_index int32 [B, N - K], sorted and unique.
    """

    num_patches: int  # N
    num_visible: int  # K

    def variants(self, batch_size: int) -> tuple[tuple[dict[str, tuple[int, ...]], float], ...]:
        """Shapes of the index arrays; there is one."""
        B, N, K = batch_size, self.num_patches, self.num_visible
        return (({"visible_index": (B, K), "masked_index": (B, N - K)}, 1.0),)


@dataclasses.dataclass(frozen=True)
class MaskedBlocks:
    """Exactly T patches are masked, in blocks as far as they fit (BEiT: Bao et al., 2022, 2.3).

    In a batch: masked_index int32 [B, T], sorted and unique.
    """

    grid: tuple[int, int]  # rows, columns
    num_masked: int  # T
    min_patches: int  # of a block
    aspect_ratio: tuple[float, float]  # height / width

    def variants(self, batch_size: int) -> tuple[tuple[dict[str, tuple[int, ...]], float], ...]:
        """Shapes of the index array; there is one."""
        return (({"masked_index": (batch_size, self.num_masked)}, 1.0),)


def check_feasible(blocks: MultiBlock) -> float:
    """Refuses multi-block masks that can't be met, or only by throwing most draws away.

    Returns:
      The share of draws that leave at least `context_tokens` visible patches, estimated.

    Raises:
      UserError: under half of the draws do, or the largest target leaves too few patches.
    """
    masks, grid = blocks.config, blocks.grid
    K, num_patches = masks.context_tokens, grid[0] * grid[1]
    shape = f"a {grid[0]} x {grid[1]} grid"
    if blocks.target_size_table.min() < 1:
        raise UserError(
            f"config.objective.masks.target_scale = {masks.target_scale}: some target blocks have "
            f"no patch on {shape}; raise it"
        )
    counts = _visible_counts(blocks)
    share = float(np.mean(counts >= K))
    largest_target = max(blocks.target_lengths())
    left = num_patches if masks.allow_overlap else num_patches - largest_target
    # The largest K that half of the draws can meet, also by the draws of the fallback.
    largest = min(int(np.sort(counts)[len(counts) // 2]), left)
    if share < 0.5 or left < K:
        advice = f"the largest that works is {largest}"
        if largest < 1:
            advice = (
                "no value works: the targets cover the grid, so lower objective.masks.target_scale"
            )
        raise UserError(
            f"config.objective.masks.context_tokens = {K}: {share:.1%} of the mask draws on "
            f"{shape} leave that many visible patches, and at least half must; {advice}"
        )
    return share


def usual_context(blocks: MultiBlock) -> int:
    """The visible patches that half of the draws leave, before K of them are chosen."""
    return int(np.median(_visible_counts(blocks)))


@functools.cache  # of a run: whether its masks can be met, and how much they leave
def _visible_counts(blocks: MultiBlock) -> np.ndarray:
    """Visible patches of independent draws, before K of them are chosen: int [_TRIALS]."""
    masks, (rows, columns) = blocks.config, blocks.grid
    rng = np.random.default_rng(0)
    points = rng.integers(LATTICE, size=(2, _TRIALS))
    context, target = blocks.context_size_table[points[0]], blocks.target_size_table[points[1]]
    sizes = np.concatenate([context[:, None], np.repeat(target[:, None], masks.num_targets, 1)], 1)
    limits = np.array([rows, columns]) - sizes + (0 if masks.published else 1)  # [n, 1 + M, 2]
    corners = np.floor(rng.random(sizes.shape) * limits).astype(int)

    def inside(block: int) -> np.ndarray:  # [n, rows, columns]
        first, end = corners[:, block], corners[:, block] + sizes[:, block]
        row, column = np.arange(rows), np.arange(columns)
        in_rows = (row >= first[:, :1]) & (row < end[:, :1])  # [n, rows]
        in_columns = (column >= first[:, 1:]) & (column < end[:, 1:])  # [n, columns]
        return in_rows[:, :, None] & in_columns[:, None, :]

    visible = inside(0)
    if not masks.allow_overlap:
        for block in range(1, 1 + masks.num_targets):
            visible &= ~inside(block)
    return visible.sum(axis=(1, 2))
