"""Multi-block masks (Assran et al., 2023, section 3), exact in shape and unbiased.

The sizes of the blocks are drawn once per step, the same for every example and host, so that all
examples of a step have the same static shapes; the blocks' positions are drawn per example. The
context is exactly `context_tokens` of the patches that remain visible: nothing is padded.

Everything is a function of integers. Sizes depend on (seed, step); an example's positions on
(seed, epoch, example index) and the sizes; so any host can redraw any example's masks by itself.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from jepa_jax.config import MaskConfig
from jepa_jax.data import stateless_random
from jepa_jax.errors import UserError

# One number on this lattice of [0, 1) gives a block's scale and its aspect ratio, as published.
# A lattice makes the sizes' distribution a table: exact, and the same wherever it is read.
LATTICE = 1 << 16
# Draws per example before the fallback. A setting that under half of the draws can meet is refused.
MAX_DRAWS = 100
# First part of the random keys, so that streams never meet.
_SIZES, _CORNERS, _CHOICE = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class MaskSampler:
    """Draws masks on one grid."""

    masks: MaskConfig
    grid: tuple[int, int]  # rows, columns
    seed: int

    @property
    def context_size_table(self) -> np.ndarray:
        """int32 [LATTICE, 2]: height and width of the context block per lattice point."""
        return _size_table(self.grid, self.masks.context_scale, (1.0, 1.0), self.masks.published)

    @property
    def target_size_table(self) -> np.ndarray:
        """int32 [LATTICE, 2]: height and width of the target blocks per lattice point."""
        masks = self.masks
        return _size_table(
            self.grid, masks.target_scale, masks.target_aspect_ratio, masks.published
        )

    def target_lengths(self) -> dict[int, float]:
        """Patches per target block T -> share of the steps that have it. Few: the step's shapes."""
        lengths, counts = np.unique(self.target_size_table.prod(axis=1), return_counts=True)
        return {int(n): count / LATTICE for n, count in zip(lengths, counts, strict=True)}

    def block_sizes(self, step: tf.Tensor) -> tf.Tensor:
        """int32 [1 + M, 2]: height and width of the step's context block and target blocks."""
        key = stateless_random.make_key(_SIZES, self.seed, step)
        point = stateless_random.randint(key, tf.constant([LATTICE, LATTICE]))
        context = tf.gather(self.context_size_table, point[0])  # [2]
        target = tf.gather(self.target_size_table, point[1])  # [2]
        return tf.concat([[context], tf.tile([target], [self.masks.num_targets, 1])], axis=0)

    def corners(
        self, sizes: tf.Tensor, epoch: tf.Tensor, index: tf.Tensor, draw: int | tf.Tensor
    ) -> tf.Tensor:
        """Top left corners of the blocks, uniform over all that fit.

        Args:
          sizes: int32 [1 + M, 2], from `block_sizes`.
          epoch: int64 scalar, or [B].
          index: int64 [B], the examples.
          draw: 0 for the first try, 1 for the first redraw, ...

        Returns:
          int32 [B, 1 + M, 2] rows and columns.
        """
        key = stateless_random.make_key(_CORNERS, self.seed, epoch, index)  # [B]
        limits = tf.reshape(tf.constant(self.grid) - sizes + 1, [-1])  # [(1 + M) * 2]
        if self.masks.published:  # its upper limit is exclusive: the last corner never occurs
            limits = limits - 1
        limits = tf.ensure_shape(limits, [2 * (1 + self.masks.num_targets)])
        flat = stateless_random.randint(key, limits, offset=draw * limits.shape[0])
        return tf.reshape(flat, [-1, 1 + self.masks.num_targets, 2])

    def visible(self, corners: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
        """bool [B, N]: patches in the context block and, without `allow_overlap`, in no target."""
        row, column = np.divmod(np.arange(self.grid[0] * self.grid[1]), self.grid[1])  # [N]
        offset = np.stack([row, column], axis=1) - corners[:, :, None]  # [B, 1 + M, N, 2]
        inside = tf.reduce_all((offset >= 0) & (offset < sizes[:, None]), axis=-1)  # [B, 1 + M, N]
        if self.masks.allow_overlap:
            return inside[:, 0]
        return inside[:, 0] & ~tf.reduce_any(inside[:, 1:], axis=1)

    def draw(self, step: tf.Tensor, epoch: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
        """The masks of a step's examples.

        Args:
          step: int64 scalar.
          epoch: int64 scalar, or [B].
          index: int64 [B], each example's number in the data set.

        Returns:
          context_index: int32 [B, K], sorted and unique within an example.
          target_index: int32 [B, M, T], sorted and unique within a block; T is the step's.
          mask_fallback: bool [B], true where no draw left K visible patches. There all targets
            share one position, and the context is drawn from everything outside them.
        """
        K = self.masks.context_tokens
        sizes = self.block_sizes(step)
        corners = self.corners(sizes, epoch, index, draw=0)

        def enough(corners: tf.Tensor) -> tf.Tensor:
            return tf.math.count_nonzero(self.visible(corners, sizes), axis=1) >= K

        def redraw(draw: tf.Tensor, corners: tf.Tensor, found: tf.Tensor):
            new = self.corners(sizes, epoch, index, draw)
            corners = tf.where(found[:, None, None], corners, new)
            return draw + 1, corners, found | enough(new)

        _, corners, found = tf.while_loop(
            lambda draw, _, found: ~tf.reduce_all(found) & (draw < MAX_DRAWS),
            redraw,
            (tf.constant(1), corners, enough(corners)),
        )
        visible = self.visible(corners, sizes)  # [B, N]

        stacked = tf.repeat(corners[:, 1:2], 1 + self.masks.num_targets, axis=1)
        whole_grid = tf.concat([[self.grid], sizes[1:]], axis=0)
        stacked_visible = self.visible(
            tf.concat([tf.zeros_like(stacked[:, :1]), stacked[:, 1:]], axis=1), whole_grid
        )
        corners = tf.where(found[:, None, None], corners, stacked)
        visible = tf.where(found[:, None], visible, stacked_visible)

        return {
            "context_index": self._choose(visible, epoch, index),
            "target_index": self._patches(corners[:, 1:], sizes[1]),
            "mask_fallback": ~found,
        }

    def _choose(self, visible: tf.Tensor, epoch: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """K of each example's visible patches: int32 [B, K], sorted."""
        num_patches = visible.shape[1]
        if self.masks.published:  # the first K in raster order
            rank = -tf.range(num_patches, dtype=tf.float64)[None]  # [1, N]
        else:  # a uniformly random subset
            key = stateless_random.make_key(_CHOICE, self.seed, epoch, index)
            rank = stateless_random.uniform(key, num_patches)  # [B, N]
        rank = tf.where(visible, rank, -np.inf)
        _, chosen = tf.math.top_k(rank, k=self.masks.context_tokens)  # [B, K]
        return tf.sort(chosen, axis=1)

    def _patches(self, corners: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """Patches of blocks of one size, in raster order: corners [B, M, 2] -> int32 [B, M, T]."""
        columns = self.grid[1]
        within = tf.range(size[0])[:, None] * columns + tf.range(size[1])[None, :]  # [h, w]
        first = corners[..., 0] * columns + corners[..., 1]  # [B, M]
        return first[..., None] + tf.reshape(within, [-1])


def visible_counts(sampler: MaskSampler, num_steps: int, batch_size: int) -> np.ndarray:
    """Visible patches of first draws, before K are chosen: int [num_steps, batch_size]."""

    @tf.function(autograph=False)
    def one_step(step: tf.Tensor) -> tf.Tensor:
        sizes = sampler.block_sizes(step)
        corners = sampler.corners(sizes, tf.constant(0, tf.int64), examples + step * batch_size, 0)
        return tf.math.count_nonzero(sampler.visible(corners, sizes), axis=1)

    examples = tf.range(batch_size, dtype=tf.int64)
    return np.stack([one_step(tf.constant(s, tf.int64)).numpy() for s in range(num_steps)])


def check_feasible(sampler: MaskSampler) -> float:
    """Refuses settings that can't be met, or only by throwing most draws away.

    Returns:
      The share of draws that leave at least `context_tokens` visible patches.

    Raises:
      UserError: under half of the draws do, or the largest target leaves too few patches.
    """
    K, num_patches = sampler.masks.context_tokens, sampler.grid[0] * sampler.grid[1]
    shape = f"a {sampler.grid[0]} x {sampler.grid[1]} grid"
    if sampler.target_size_table.min() < 1:
        raise UserError(
            f"config.masks.target_scale = {sampler.masks.target_scale}: some target blocks have no "
            f"patch on {shape}; raise it"
        )
    counts = visible_counts(sampler, num_steps=128, batch_size=128)
    share = float(np.mean(counts >= K))
    largest_target = max(sampler.target_lengths())
    left = num_patches if sampler.masks.allow_overlap else num_patches - largest_target
    # The largest K that half of the draws can meet, also by the draws of the fallback.
    largest = min(int(np.sort(counts, axis=None)[counts.size // 2]), left)
    if share < 0.5 or left < K:
        advice = f"the largest that works is {largest}"
        if largest < 1:
            advice = "no value works: the targets cover the grid, so lower masks.target_scale"
        raise UserError(
            f"config.masks.context_tokens = {K}: {share:.1%} of the mask draws on {shape} leave "
            f"that many visible patches, and at least half must; {advice}"
        )
    return share


def _size_table(
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    published: bool,
) -> np.ndarray:
    """Height and width of a block per lattice point: int32 [LATTICE, 2]."""
    u = np.arange(LATTICE) / LATTICE
    area = np.floor(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect_ratio[0] + u * (aspect_ratio[1] - aspect_ratio[0])
    size = np.stack([np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))], axis=1)
    # The published code never lets a block span the grid.
    return np.minimum(size, np.array(grid) - (1 if published else 0)).astype(np.int32)
