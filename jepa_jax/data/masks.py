"""Draws masks: multi-block ones (Assran et al., 2023, section 3), exact in shape and unbiased.

The sizes of the blocks are drawn once per step, the same for every example and host, so that all
examples of a step have the same static shapes; the blocks' positions are drawn per example. The
context is exactly `context_tokens` of the patches that remain visible: nothing is padded.

Everything is a function of integers. Sizes depend on (seed, step); an example's positions on
(seed, epoch, example index) and the sizes; so any host can redraw any example's masks by itself.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from jepa_jax.batch.masks import LATTICE, MaskedBlocks, MultiBlock, RandomPatches
from jepa_jax.config import MaskConfig
from jepa_jax.data import stateless_random

# Draws per example before the fallback. A setting that under half of the draws can meet is refused.
MAX_DRAWS = 100
# First part of the random keys, so that streams never meet.
_SIZES, _CORNERS, _CHOICE, _PATCHES, _BLOCKS = 1, 2, 3, 6, 14
_BLOCK_DRAWS = 40  # tries per example; BEiT gives up after ten in a row that do not fit


@dataclasses.dataclass(frozen=True)
class MaskSampler:
    """Draws multi-block masks."""

    blocks: MultiBlock
    seed: int

    @property
    def masks(self) -> MaskConfig:
        return self.blocks.config

    @property
    def grid(self) -> tuple[int, int]:
        return self.blocks.grid

    def block_sizes(self, step: tf.Tensor) -> tf.Tensor:
        """int32 [1 + M, 2]: height and width of the step's context block and target blocks."""
        key = stateless_random.make_key(_SIZES, self.seed, step)
        point = stateless_random.randint(key, tf.constant([LATTICE, LATTICE]))
        context = tf.gather(self.blocks.context_size_table, point[0])  # [2]
        target = tf.gather(self.blocks.target_size_table, point[1])  # [2]
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
        # A side at a time, then their outer product: fewer numbers by the length of a side.
        within = []
        for axis, extent in enumerate(self.grid):
            offset = np.arange(extent) - corners[:, :, axis, None]  # [B, 1 + M, extent]
            within.append((offset >= 0) & (offset < sizes[:, axis, None]))
        inside = within[0][..., :, None] & within[1][..., None, :]  # [B, 1 + M, rows, columns]
        inside = tf.reshape(inside, [-1, 1 + self.masks.num_targets, self.grid[0] * self.grid[1]])
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


def draw_random_patches(
    spec: RandomPatches, *, seed: int, epoch: tf.Tensor, index: tf.Tensor
) -> dict[str, tf.Tensor]:
    """A uniformly random subset of the patches of each example, and the rest.

    Args:
      epoch: int64 scalar, or [B].
      index: int64 [B], each example's number in the data set.

    Returns:
      visible_index int32 [B, K], masked_index int32 [B, N - K]; sorted.
    """
    key = stateless_random.make_key(_PATCHES, seed, epoch, index)
    order = tf.argsort(stateless_random.uniform(key, spec.num_patches), axis=1)  # [B, N]
    visible, masked = order[:, : spec.num_visible], order[:, spec.num_visible :]
    return {"visible_index": tf.sort(visible, axis=1), "masked_index": tf.sort(masked, axis=1)}


def draw_masked_blocks(
    spec: MaskedBlocks, *, seed: int, epoch: tf.Tensor, index: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Blocks of patches, one after another, until exactly T patches of each example are masked.

    A block's area is uniform between `min_patches` and what is still to be masked, its aspect ratio
    log-uniform, its corner uniform over all that fit. One that does not fit into the grid, masks
    nothing new, or too much, is dropped. What is left when the draws are used up, fewer patches
    than a block has, is masked patch by patch, uniformly: so T is exact, where BEiT masks fewer.

    Args:
      epoch: int64 scalar, or [B].
      index: int64 [B], each example's number in the data set.

    Returns:
      masked_index int32 [B, T], sorted.
    """
    rows, columns = spec.grid
    key = stateless_random.make_key(_BLOCKS, seed, epoch, index)  # [B]
    lowest, highest = np.log(spec.aspect_ratio)

    def add(draw: tf.Tensor, masked: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        u = stateless_random.uniform(key, 4, offset=4 * draw)  # [B, 4]
        left = spec.num_masked - tf.math.count_nonzero(masked, axis=[1, 2])  # [B]
        area = spec.min_patches + u[:, 0] * (tf.cast(left, tf.float64) - spec.min_patches)
        ratio = tf.exp(lowest + u[:, 1] * (highest - lowest))
        height = tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32)
        width = tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32)
        top = tf.cast(tf.floor(u[:, 2] * tf.cast(rows - height + 1, tf.float64)), tf.int32)
        first = tf.cast(tf.floor(u[:, 3] * tf.cast(columns - width + 1, tf.float64)), tf.int32)
        row, column = tf.range(rows)[None], tf.range(columns)[None]
        in_rows = (row >= top[:, None]) & (row < (top + height)[:, None])  # [B, rows]
        in_columns = (column >= first[:, None]) & (column < (first + width)[:, None])
        new = in_rows[:, :, None] & in_columns[:, None, :] & ~masked
        count = tf.math.count_nonzero(new, axis=[1, 2])
        fits = (height <= rows) & (width <= columns) & (count <= left)
        return draw + 1, masked | (new & fits[:, None, None])

    _, masked = tf.while_loop(
        lambda draw, _: draw < _BLOCK_DRAWS,
        add,
        (tf.constant(0), tf.zeros([tf.shape(index)[0], rows, columns], tf.bool)),
    )
    masked = tf.reshape(masked, [-1, rows * columns])
    rank = stateless_random.uniform(key, rows * columns, offset=4 * _BLOCK_DRAWS)  # [B, N]
    _, chosen = tf.math.top_k(tf.where(masked, rank + 1.0, rank), k=spec.num_masked)
    return {"masked_index": tf.sort(chosen, axis=1)}
