"""What the training and the evaluation pipeline share, and the latter itself."""

import atexit
import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from jepa_jax.config import DataConfig
from jepa_jax.data.crops import center_crop
from jepa_jax.data.sources import Source
from jepa_jax.errors import StoppedRunError

# No stage has Python control flow on tensors, so none needs AutoGraph to rewrite its source.
graph = tf.autograph.experimental.do_not_convert
# As many calls at a time as there are cores for this process (Linux tells).
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PARALLEL = {"num_parallel_calls": CORES, "deterministic": True}
_SURE = 1000  # images before a share of bad ones says anything


def fixed_options() -> tf.data.Options:
    """No tuning: the tuner sleeps, longer and longer, and an iterator that ends may wait for it.

    Seen with TensorFlow 2.21 once in ten times: up to half the iterator's life, 40 s after minutes.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def numpy_iterator(dataset: tf.data.Dataset) -> Iterator[Any]:
    """The elements in NumPy; ends by itself when Python does.

    Threads that call Python stop when the interpreter ends, and an iterator that is still there
    would wait for them, for ever.
    """
    held = _Held(dataset.as_numpy_iterator())
    _held.add(held)
    while held.iterator is not None:
        try:
            element = next(held.iterator)
        except StopIteration:
            return
        yield element


class _Held:
    def __init__(self, iterator: Iterator[Any]):
        self.iterator: Iterator[Any] | None = iterator


_held: weakref.WeakSet[_Held] = weakref.WeakSet()


@atexit.register
def _let_go() -> None:
    for held in _held:
        held.iterator = None


def calls_of(rows: int, source: Source) -> int:
    """How many images a call loads, of a batch of `rows`: a divisor, all calls being alike."""
    most = source.images_per_call or rows
    return max(n for n in range(1, min(most, rows) + 1) if rows % n == 0)


def first_problem(source: Source, index: np.ndarray) -> str | None:
    """What is wrong with the first bad one of some examples."""
    for i in index:
        problem = source.problem(int(i))
        if problem is not None:
            return f"{source.describe(int(i))}: {problem}"
    return None


def too_many_bad(bad: int, seen: int, share: float) -> bool:
    """Whether bad images are more than a run or a probe bears.

    Of fewer than 1,000 images as many may be bad as of 1,000, but no more than half.
    """
    return bad > max(share * seen, min(share * _SURE, seen / 2))


def eval_batches(
    data: DataConfig,
    source: Source,
    *,
    index: np.ndarray,
    batch_size: int,
    bad: list[int] | None = None,
) -> Iterator[np.ndarray]:
    """Centre-cropped images in the order of `index`.

    Args:
      bad: receives the examples whose images are bad; the next good images take their places, as in
        training.

    Yields:
      pixels [batch_size, H, W, C] of the source's type; the last one may be shorter.

    Raises:
      StoppedRunError: an image is bad, and there is no list for it, or all are; it is named.
    """
    per_call = calls_of(batch_size, source)
    aspect_ratio = data.image_size[1] / data.image_size[0]
    crop = center_crop(aspect_ratio=aspect_ratio, share=data.eval_crop)
    # All calls have one static shape: the last batch is filled up here, and cut below.
    num_batches = -(-len(index) // batch_size)
    filled = np.pad(index, (0, num_batches * batch_size - len(index)), mode="edge")
    dataset = tf.data.Dataset.from_tensor_slices(filled.astype(np.int64))
    dataset = dataset.batch(per_call, drop_remainder=True).map(
        graph(lambda i: (*source.load(i, crop, data.image_size), i)), **PARALLEL
    )
    if per_call < batch_size:
        dataset = dataset.rebatch(batch_size, drop_remainder=True)
    iterator = numpy_iterator(dataset.prefetch(2).with_options(fixed_options()))
    for start in range(0, len(index), batch_size):
        problem, images = None, np.empty(0)
        try:
            images, used, asked = next(iterator)
            found = asked[used != asked]
        except tf.errors.OpError as error:
            problem, found = error.message, index[start : start + batch_size]
        if problem or (len(found) and bad is None):
            named = first_problem(source, found) or problem
            raise StoppedRunError(
                f"a bad image: {named}; python -m jepa_jax.data check finds all of them"
            )
        if bad is not None:
            bad += found.tolist()
        yield images[: len(index) - start]
