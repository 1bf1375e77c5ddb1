"""Random numbers that are a pure function of integers, vectorised over examples.

`tf.random.stateless_uniform` takes one seed per call, so a batch in which every example has its own
seed costs one call per example. Here the seeds are a tensor: SplitMix64 (Steele, Lea & Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014) is a dozen integer operations on it.
`benchmarks/masks.py` measures the difference.
"""

import tensorflow as tf

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: SplitMix64's increment


def _mix(x: tf.Tensor) -> tf.Tensor:
    """SplitMix64's finaliser: a bijection of uint64 in which every input bit reaches every output
    bit."""

    def xor_shift(x: tf.Tensor, bits: int) -> tf.Tensor:
        return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(bits, tf.uint64)))

    x = xor_shift(x, 30) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    x = xor_shift(x, 27) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return xor_shift(x, 31)


def make_key(*parts: int | tf.Tensor) -> tf.Tensor:
    """Hashes integers to a key.

    Args:
      parts: non-negative integers or integer tensors, which broadcast against each other. Different
        tuples of the same length give independent streams.

    Returns:
      uint64 of the parts' broadcast shape.
    """
    key = tf.zeros([], tf.uint64)
    for part in parts:
        key = _mix(key + tf.cast(part, tf.uint64) + tf.constant(_GOLDEN, tf.uint64))
    return key


def uniform(key: tf.Tensor, num: int, offset: int | tf.Tensor = 0) -> tf.Tensor:
    """Numbers `offset` to `offset + num - 1` of each key's stream.

    Args:
      key: uint64 of any shape.
      num: numbers to draw per key.
      offset: numbers to skip.

    Returns:
      float64 [*key.shape, num], uniform in [0, 1).
    """
    counter = tf.cast(tf.range(1, num + 1), tf.uint64) + tf.cast(offset, tf.uint64)  # [num]
    bits = _mix(key[..., None] + counter * tf.constant(_GOLDEN, tf.uint64))
    # The 53 high bits: all that a float64 in [0, 1) can hold.
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(11, tf.uint64)), tf.float64) * 2.0**-53


def randint(key: tf.Tensor, limit: tf.Tensor, offset: int | tf.Tensor = 0) -> tf.Tensor:
    """Integers of each key's stream, uniform below a limit of each number's own.

    Args:
      key: uint64 of any shape.
      limit: int32 [num]; the j-th number is drawn from 0 .. limit[j] - 1.
      offset: numbers of the stream to skip.

    Returns:
      int32 [*key.shape, num].
    """
    u = uniform(key, limit.shape[0], offset)
    return tf.cast(tf.floor(u * tf.cast(limit, tf.float64)), tf.int32)
