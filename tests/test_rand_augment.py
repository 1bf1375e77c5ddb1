"""RandAugment: each operation against Pillow, and what is drawn."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from jepa_jax.config import AugmentationConfig, RandAugmentConfig
from jepa_jax.data.augment import augment
from jepa_jax.data.pipeline import graph
from jepa_jax.data.rand_augment import OPERATIONS, rand_augment

STRENGTHS = np.array([0.35, 0.9, 0.9, 0.0], np.float32)
SIGNS = np.array([1, -1, 1, 1], np.float32)
HEIGHT, WIDTH = 20, 26


def smooth_images(n, channels=3):
    """Not noise, of which half a grid point makes another image; and not of all values."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    phase = np.random.default_rng(0).uniform(0, 6, (n, 1, 1, channels))
    waves = np.sin(0.3 * x[None, ..., None] + phase) * np.cos(0.2 * y[None, ..., None] - phase)
    return np.round(120 + 100 * waves).astype(np.uint8)


def solarize_add(image, more):
    x = np.asarray(image).astype(int)
    return Image.fromarray(np.where(x < 128, np.minimum(x + more, 255), x).astype(np.uint8))


def affine(image, matrix):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR,
        fillcolor=(128,) * 3,
    )  # fmt: skip


# By Pillow: (image, strength in 0..1, sign) -> image.
PILLOW = {
    "autocontrast": lambda im, m, s: ImageOps.autocontrast(im),
    "equalize": lambda im, m, s: ImageOps.equalize(im),
    "invert": lambda im, m, s: ImageOps.invert(im),
    "rotate": lambda im, m, s: im.rotate(
        30 * m * s, Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    ),
    "posterize": lambda im, m, s: ImageOps.posterize(im, 4 - math.floor(4 * m)),
    "solarize": lambda im, m, s: ImageOps.solarize(im, 256 - math.floor(256 * m)),
    "solarize_add": lambda im, m, s: solarize_add(im, math.floor(110 * m)),
    "color": lambda im, m, s: ImageEnhance.Color(im).enhance(1 + 0.9 * m * s),
    "contrast": lambda im, m, s: ImageEnhance.Contrast(im).enhance(1 + 0.9 * m * s),
    "brightness": lambda im, m, s: ImageEnhance.Brightness(im).enhance(1 + 0.9 * m * s),
    "sharpness": lambda im, m, s: ImageEnhance.Sharpness(im).enhance(1 + 0.9 * m * s),
    "shear_x": lambda im, m, s: affine(im, (1, 0.3 * m * s, 0, 0, 1, 0)),
    "shear_y": lambda im, m, s: affine(im, (1, 0, 0, 0.3 * m * s, 1, 0)),
    "translate_x": lambda im, m, s: affine(im, (1, 0, 0.45 * m * s * WIDTH, 0, 1, 0)),
    "translate_y": lambda im, m, s: affine(im, (1, 0, 0, 0, 1, 0.45 * m * s * HEIGHT)),
}
GEOMETRIC = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
BLENDED = {"color", "contrast", "brightness", "sharpness"}  # truncated: one off where they tie


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pillow_s(name):
    images = smooth_images(4)
    ours = OPERATIONS[name](
        tf.constant(images, tf.float32), tf.constant(STRENGTHS), tf.constant(SIGNS)
    ).numpy()
    theirs = np.stack([
        np.asarray(PILLOW[name](Image.fromarray(im), round(float(m), 6), float(s)))
        for im, m, s in zip(images, STRENGTHS, SIGNS, strict=True)
    ]).astype(int)  # fmt: skip
    assert np.any(theirs[1] != images[1])
    assert ours.min() >= 0
    assert ours.max() <= 255
    np.testing.assert_array_equal(ours, np.round(ours))
    off = np.abs(ours - theirs)
    if name in GEOMETRIC:
        # At the image's border Pillow repeats it and TensorFlow blends it with the gray outside.
        border = np.zeros_like(off, bool)
        for at, there in enumerate(theirs):
            outside = np.all(there == 128, axis=-1)
            grown = outside.copy()
            for axis in (0, 1):
                for shift in (-2, -1, 1, 2):
                    grown |= np.roll(outside, shift, axis)
            border[at] = grown[..., None]
        border[:, [0, 1, -2, -1]] = border[:, :, [0, 1, -2, -1]] = True
        assert (off[~border] <= 1.01).all()
        assert border.mean() < 0.7
    else:
        assert off.max() <= (1 if name in BLENDED else 0)
        assert (off > 0).mean() < 0.01


def run(images, *, first=0, magnitude_std=0.5, num_ops=2):
    config = RandAugmentConfig(num_ops=num_ops, magnitude_std=magnitude_std)
    index = tf.range(first, first + len(images), dtype=tf.int64)
    x = tf.constant(images, tf.float32)
    return rand_augment(x, config, seed=0, epoch=1, index=index, view=0).numpy()


def test_an_example_s_operations_have_nothing_to_do_with_its_batch():
    images = smooth_images(6)
    whole = run(images)
    np.testing.assert_array_equal(whole[4:], run(images[4:], first=4))
    assert np.any(whole != run(images, first=1))


def test_half_of_the_operations_are_carried_out_and_all_fifteen_occur():
    image = np.repeat(smooth_images(1), 600, axis=0)
    changed = run(image, magnitude_std=0.0, num_ops=1)
    same = np.all(changed == image, axis=(1, 2, 3))
    assert abs(same.mean() - 0.5) < 4 * np.sqrt(0.25 / 600)
    results = {x.tobytes() for x in changed}
    # Nothing; six without a sign; nine that go either way.
    assert len(results) == 1 + 6 + 2 * 9


def test_a_pipeline_of_the_augmentations_computes_what_a_plain_call_does():
    images = tf.constant(smooth_images(8), tf.float32)
    config = AugmentationConfig(rand_augment=RandAugmentConfig(num_ops=2), erase=0.5)

    def some(index):
        x = tf.ensure_shape(tf.gather(images, index), [4, HEIGHT, WIDTH, 3])
        return augment(x, config, seed=0, epoch=1, index=index, view=0)

    plain = np.concatenate([some(tf.range(i, i + 4, dtype=tf.int64)) for i in (0, 4)])
    batches = tf.data.Dataset.range(8).batch(4, drop_remainder=True).map(graph(some))
    np.testing.assert_array_equal(np.concatenate(list(batches.as_numpy_iterator())), plain)
    assert np.any(plain != images, axis=(1, 2, 3)).sum() > 4


def test_images_of_one_channel_are_changed_too():
    images = smooth_images(8, channels=1)
    changed = run(images, num_ops=6)
    assert changed.shape == images.shape
    assert np.any(changed != images, axis=(1, 2, 3)).sum() > 5
