"""The random numbers behind crops and masks, against SplitMix64's definition and statistics."""

import numpy as np
import scipy.stats
import tensorflow as tf

from jepa_jax.data import stateless_random


def splitmix64(seed: int, count: int) -> list[int]:
    """The published algorithm in Python's integers."""
    mask, numbers = (1 << 64) - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(z ^ (z >> 31))
    return numbers


# The first numbers of seed 1234567, as listed at rosettacode.org and in several libraries' tests.
VECTOR = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_the_independent_statement_gives_the_published_numbers():
    assert splitmix64(1234567, 5) == VECTOR


def test_a_keys_stream_is_splitmix64():
    u = stateless_random.uniform(tf.constant(1234567, tf.uint64), 5)
    np.testing.assert_array_equal(u, [(n >> 11) * 2.0**-53 for n in VECTOR])


def test_each_key_of_a_batch_has_its_own_stream():
    keys = tf.constant([[1, 2], [3, (1 << 64) - 1]], tf.uint64)
    u = stateless_random.uniform(keys, 3).numpy()
    for place in np.ndindex(2, 2):
        stream = splitmix64(int(keys.numpy()[place]), 3)
        np.testing.assert_array_equal(u[place], [(n >> 11) * 2.0**-53 for n in stream])


def test_an_offset_skips_numbers():
    key = stateless_random.make_key(1, 2)
    whole = stateless_random.uniform(key, 10).numpy()
    for offset in (6, tf.constant(6)):
        np.testing.assert_array_equal(stateless_random.uniform(key, 4, offset), whole[6:])
    limits = tf.constant([1000] * 10)
    np.testing.assert_array_equal(
        stateless_random.randint(key, limits[:4], offset=6),
        stateless_random.randint(key, limits)[6:],
    )


def test_the_parts_of_a_key_broadcast():
    """A scalar epoch serves a batch of examples, whatever the integers' type."""
    example = tf.constant([3, 4, 5], tf.int64)
    keys = stateless_random.make_key(1, tf.constant(2, tf.int32), example)
    assert keys.shape == (3,)
    alone = [stateless_random.make_key(1, 2, n) for n in (3, 4, 5)]
    assert all(key.shape == () for key in alone)
    np.testing.assert_array_equal(keys, alone)
    table = stateless_random.make_key(example[:, None], example)
    assert table.shape == (3, 3)
    assert len(np.unique(table)) == 9  # the order of the parts matters
    assert stateless_random.uniform(table, 2).shape == (3, 3, 2)
    assert stateless_random.randint(alone[0], tf.constant([5, 6])).shape == (2,)


def test_numbers_are_uniform():
    keys = stateless_random.make_key(5, 0, tf.range(2000, dtype=tf.int64))
    u = stateless_random.uniform(keys, 50).numpy().ravel()
    assert 0 <= u.min() < u.max() < 1
    assert scipy.stats.kstest(u, "uniform").pvalue > 0.01
    assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / u.size)


def test_streams_of_neighbouring_keys_are_unrelated():
    """Neighbours in any part: seed, epoch or example."""
    for parts in ((1, 7, 7), (2, 7, 7), (1, 8, 7), (1, 7, 8), (7, 7, 1)):
        if parts == (1, 7, 7):
            base = stateless_random.uniform(stateless_random.make_key(*parts), 5000).numpy()
            continue
        other = stateless_random.uniform(stateless_random.make_key(*parts), 5000).numpy()
        for shift in (0, 1):  # SplitMix64's streams could also be shifts of each other
            correlation = np.corrcoef(base[shift:], other[: 5000 - shift])[0, 1]
            assert abs(correlation) < 4 / np.sqrt(5000)


def test_integers_are_uniform_below_each_limit():
    keys = stateless_random.make_key(9, tf.range(20000, dtype=tf.int64))
    limits = [1, 2, 7, 10]
    drawn = stateless_random.randint(keys, tf.constant(limits)).numpy()
    assert drawn.dtype == np.int32
    for column, limit in enumerate(limits):
        counts = np.bincount(drawn[:, column], minlength=limit)
        assert len(counts) == limit
        assert limit == 1 or scipy.stats.chisquare(counts).pvalue > 0.001


def test_a_key_is_64_well_mixed_bits():
    keys = stateless_random.make_key(0, tf.range(4096, dtype=tf.int64)).numpy()
    assert keys.dtype == np.uint64
    assert len(np.unique(keys)) == 4096
    bits = np.unpackbits(keys.view(np.uint8)).reshape(4096, 64)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(4096)
