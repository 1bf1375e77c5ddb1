"""Microseconds per image to draw multi-block masks, in three ways, in turns within one run.

    python -m benchmarks.masks

Batches of 128 images on a 14 x 14 grid with the published scales:
- whole batch: `MaskSampler.draw` in tf.data, where each example of the batch has its own seed;
- tf per example: the same operations, mapped over single examples and batched afterwards, with
  `tf.random.stateless_uniform`, which takes one seed per call;
- python: one example after another in Python and NumPy, on one core, as a collator would.

So the second line shows what it saves to draw for a whole batch at once, which needs random
numbers whose seeds are a tensor. The third shows the price of a loop in the interpreter, which
besides could not run in parallel with other input work. Medians of several turns; the time that
TensorFlow takes to trace and start the pipelines is left out.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from jepa_jax.batch.masks import MultiBlock
from jepa_jax.config import MaskConfig
from jepa_jax.data.masks import MaskSampler

GRID, BATCH, STEPS, ROUNDS = (14, 14), 128, 40, 5
MASKS = MaskConfig(context_tokens=51)  # the rest is the paper's by default
BLOCKS = MultiBlock(MASKS, GRID)


@dataclasses.dataclass(frozen=True)
class PerExampleSampler(MaskSampler):
    """Draws an example's corners with one call of TensorFlow's own stateless generator."""

    def corners(self, sizes, epoch, index, draw):
        limits = tf.reshape(tf.constant(self.grid) - sizes + 1, [-1])
        seed = tf.stack([epoch * 1000 + tf.cast(draw, tf.int64), index[0]])
        u = tf.random.stateless_uniform([1, 10], seed, dtype=tf.float64)
        flat = tf.cast(u * tf.cast(limits, tf.float64), tf.int32)
        return tf.reshape(flat, [1, 5, 2])

    def _choose(self, visible, epoch, index):
        u = tf.random.stateless_uniform(
            visible.shape, tf.stack([epoch, index[0]]), dtype=tf.float64
        )
        rank = tf.where(visible, u, -np.inf)
        return tf.sort(tf.math.top_k(rank, k=MASKS.context_tokens)[1], axis=1)


def ours() -> tf.data.Dataset:
    sampler = MaskSampler(BLOCKS, seed=0)
    zero = tf.constant(0, tf.int64)
    return tf.data.Dataset.range(STEPS).map(
        lambda s: sampler.draw(s, zero, s * BATCH + tf.range(BATCH, dtype=tf.int64)),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def per_example() -> tf.data.Dataset:
    sampler = PerExampleSampler(BLOCKS, seed=0)
    zero = tf.constant(0, tf.int64)
    dataset = tf.data.Dataset.range(STEPS * BATCH).map(
        lambda i: sampler.draw(i // BATCH, zero, i[None]), num_parallel_calls=tf.data.AUTOTUNE
    )
    return dataset.batch(BATCH)


def python() -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    context_sizes, target_sizes = BLOCKS.context_size_table, BLOCKS.target_size_table
    for _ in range(STEPS):
        context_size = context_sizes[rng.integers(len(context_sizes))]
        target_size = target_sizes[rng.integers(len(target_sizes))]
        contexts, targets = [], []
        for _ in range(BATCH):
            while True:
                blocks = []
                for size in [context_size, *[target_size] * MASKS.num_targets]:
                    top, left = (rng.integers(n - s + 1) for n, s in zip(GRID, size, strict=True))
                    block = np.zeros(GRID, bool)
                    block[top : top + size[0], left : left + size[1]] = True
                    blocks.append(block)
                visible = np.flatnonzero(blocks[0] & ~np.any(blocks[1:], axis=0))
                if len(visible) >= MASKS.context_tokens:
                    break
            contexts.append(np.sort(rng.choice(visible, MASKS.context_tokens, replace=False)))
            targets.append([np.flatnonzero(block) for block in blocks[1:]])
        yield {"context_index": np.array(contexts), "target_index": np.array(targets)}


def main() -> None:
    # Built once: TensorFlow's tracing is not what is compared.
    tensorflow = {"whole batch": ours(), "tf per example": per_example()}
    ways = {name: lambda dataset=dataset: dataset for name, dataset in tensorflow.items()}
    ways["python"] = python
    seconds = {name: [] for name in ways}
    for turn in range(1 + ROUNDS):
        for name, way in ways.items():
            batches = iter(way())
            next(batches)  # the clock starts once the input pipeline has
            start = time.perf_counter()
            for _ in batches:
                pass
            if turn > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(s) * 1e6 / (STEPS - 1) / BATCH for name, s in seconds.items()}
    for name, microseconds in median.items():
        ratio = microseconds / median["whole batch"]
        print(f"{name:<16}{microseconds:8.1f} us/image{ratio:8.1f} x")


if __name__ == "__main__":
    main()
