"""Random erasing: the boxes' areas and aspects, the noise in them, and determinism."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from jepa_jax.config import AugmentationConfig
from jepa_jax.data.augment import augment
from jepa_jax.data.erasing import erase

SIZE = 64
EMPTY = 1000.0  # no noise is as bright


def run(n, probability, *, first=0, epoch=2):
    index = tf.range(first, first + n, dtype=tf.int64)
    images = tf.fill([n, SIZE, SIZE, 2], EMPTY)
    return erase(images, probability, seed=1, epoch=epoch, index=index, view=0).numpy()


@pytest.fixture(scope="module")
def erased():
    return run(800, 0.6)


def sides(erased):
    """Heights, widths, tops and lefts of the boxes, which must be filled rectangles."""
    inside = np.all(erased != EMPTY, axis=-1)
    np.testing.assert_array_equal(inside, np.any(erased != EMPTY, axis=-1))
    inside = inside[inside.any(axis=(1, 2))]
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None])
    for side in (rows, columns):
        np.testing.assert_array_equal((np.diff(np.pad(side, [(0, 0), (1, 1)])) != 0).sum(1), 2)
    return rows.sum(1), columns.sum(1), rows.argmax(1), columns.argmax(1)


def drawn(n):
    """Zhong et al. (2020), algorithm 1, in NumPy: heights and widths of the first that fits."""
    rng, found = np.random.default_rng(0), []
    while len(found) < n:
        area = SIZE**2 * rng.uniform(0.02, 1 / 3)
        aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if h < SIZE and w < SIZE:
            found.append((h, w))
    return np.array(found).T


def test_as_many_as_the_probability_have_boxes_of_the_paper_s_areas_and_aspects(erased):
    h, w, top, left = sides(erased)
    assert abs(len(h) / 800 - 0.6) < 4 * np.sqrt(0.24 / 800)
    height, width = drawn(20_000)
    for ours, theirs in ((h * w, height * width), (h / w, height / width)):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3
    for start, length in ((top, h), (left, w)):  # uniform among the places where it fits
        share = (start + 0.5) / (SIZE - length + 1)
        assert scipy.stats.kstest(share, "uniform").pvalue > 1e-3


def test_each_pixel_is_normal_noise_of_its_own(erased):
    noise = erased[erased != EMPTY] / 255
    assert 0 <= noise.min() < noise.max() <= 1
    normal = np.clip(scipy.stats.norm.rvs(0.5, 0.25, 200_000, random_state=0), 0, 1)
    for quantile in np.linspace(0.05, 0.95, 7):
        assert abs(np.quantile(noise, quantile) - np.quantile(normal, quantile)) < 0.005
    pixels = erased[np.all(erased != EMPTY, axis=-1)]  # [pixels, 2]
    assert abs(np.corrcoef(pixels.T)[0, 1]) < 0.01
    assert abs(np.corrcoef(pixels[1:, 0], pixels[:-1, 0])[0, 1]) < 0.01


def test_an_example_s_box_follows_from_its_number_and_epoch(erased):
    np.testing.assert_array_equal(run(5, 0.6, first=300), erased[300:305])
    assert np.any(run(20, 0.6, epoch=3) != erased[:20])
    assert np.all(run(5, 0.0) == EMPTY)


def test_it_is_the_last_of_the_augmentations():
    images = tf.fill([4, 8, 8, 3], 10.0)
    index = tf.range(4, dtype=tf.int64)
    config = AugmentationConfig(erase=1.0, solarize=1.0, solarize_threshold=0.0)
    both = augment(images, config, seed=1, epoch=2, index=index, view=0).numpy()
    alone = erase(images, 1.0, seed=1, epoch=2, index=index, view=0).numpy()
    np.testing.assert_array_equal(both, np.where(alone == 10.0, 245.0, alone))
