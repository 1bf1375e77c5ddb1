"""Masks drawn for tests, by the paper's settings unless told."""

import dataclasses

import numpy as np
import tensorflow as tf

from jepa_jax.batch.masks import MultiBlock
from jepa_jax.config import MaskConfig
from jepa_jax.data.masks import MaskSampler

PAPER = MaskConfig(
    context_tokens=51,
    context_scale=(0.85, 1.0),
    num_targets=4,
    target_scale=(0.15, 0.2),
    target_aspect_ratio=(0.75, 1.5),
    allow_overlap=False,
    published=False,
)

NAMES = ("context_index", "target_index")


def blocks_of(grid=(14, 14), **fields):
    return MultiBlock(dataclasses.replace(PAPER, **fields), grid)


def sampler_of(grid=(14, 14), seed=0, **fields):
    return MaskSampler(blocks_of(grid, **fields), seed)


def draw(sampler, *, num_steps=1, batch_size=64, epoch=0):
    """Masks of several steps, each of examples of its own: list of dicts of NumPy arrays."""

    @tf.function(autograph=False)
    def one(step):
        index = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        return sampler.draw(step, tf.constant(epoch, tf.int64), index)

    steps = tf.range(num_steps, dtype=tf.int64)
    return [{k: v.numpy() for k, v in one(step).items()} for step in steps]


def visible_counts(sampler, *, num_steps, batch_size):
    """Visible patches of first draws, before K are chosen: int [num_steps, batch_size]."""

    @tf.function(autograph=False)
    def one(step):
        index = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        sizes = sampler.block_sizes(step)
        corners = sampler.corners(sizes, tf.constant(0, tf.int64), index, 0)
        return tf.math.count_nonzero(sampler.visible(corners, sizes), axis=1)

    return np.stack([one(step).numpy() for step in tf.range(num_steps, dtype=tf.int64)])


def visible_by_hand(corners, sizes, grid):
    """Patches of the context block (first) outside of the others, by slices: bool [H, W]."""
    visible = np.zeros(grid, bool)
    for block, ((top, left), (height, width)) in enumerate(zip(corners, sizes, strict=True)):
        visible[top : top + height, left : left + width] = block == 0
    return visible
