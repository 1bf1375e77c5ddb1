"""Crops: inside the image, of the right sizes, at uniform places."""

import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from jepa_jax.data.crops import centre_boxes, random_resized_crop


def draw(height, width, n=4000, scale=(0.3, 1.0), aspect_ratio=(3 / 4, 4 / 3), **keys):
    keys = {"seed": 0, "epoch": tf.constant(0, tf.int64), **keys}
    crop = random_resized_crop(scale=scale, aspect_ratio=aspect_ratio, **keys)
    draws = crop.draws(tf.range(n, dtype=tf.int64)).numpy()
    return crop.boxes(draws, np.full(n, height), np.full(n, width))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (28, 28), (375, 500), (64, 48)])
def test_boxes_lie_inside_the_image(size):
    top, left, height, width = draw(*size, n=500).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


def test_areas_and_shapes_are_drawn_as_configured():
    """In a wide range of which nothing is refused, both are uniform: area, and log of the ratio."""
    _, _, height, width = draw(1000, 1000, scale=(0.1, 0.4), aspect_ratio=(0.5, 2.0)).T
    area, ratio = height * width / 1e6, width / height
    assert scipy.stats.kstest((area - 0.1) / 0.3, "uniform").pvalue > 0.01
    position = np.log(ratio / 0.5) / np.log(4)
    assert scipy.stats.kstest(position, "uniform").pvalue > 0.01


def test_every_place_that_fits_is_equally_likely():
    top, left, height, width = draw(8, 8, n=20000, scale=(0.25, 0.25), aspect_ratio=(1.0, 1.0)).T
    assert (height == 4).all()
    assert (width == 4).all()
    assert scipy.stats.chisquare(np.bincount(top * 5 + left, minlength=25)).pvalue > 0.001


def test_every_pixel_is_reached_and_the_whole_image_can_be():
    """Also of an odd, oblong image: no row or column is left out, at any end."""
    boxes = draw(7, 10, scale=(0.1, 1.0))
    reached = np.zeros((7, 10), bool)
    for top, left, height, width in np.unique(boxes, axis=0):
        reached[top : top + height, left : left + width] = True
    assert reached.all()
    assert (draw(9, 9, n=10, scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0)) == [0, 0, 9, 9]).all()


def test_a_crop_that_cannot_fit_becomes_the_centre():
    """The largest whose shape is within the bounds, as torchvision's: of the bound that is met."""
    boxes = draw(10, 200, n=50, scale=(0.9, 1.0), aspect_ratio=(0.5, 0.5))
    assert (boxes == [0, 97, 10, 5]).all()
    assert (draw(10, 200, n=50, scale=(1.0, 1.0)) == [0, 93, 10, 13]).all()
    assert (draw(200, 10, n=50, scale=(1.0, 1.0)) == [93, 0, 13, 10]).all()


def torchvisions_crop(height, width, rng, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3)):
    """Written after torchvision's description of RandomResizedCrop, with its own random numbers."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*np.log(ratio)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(375, 500), (100, 30)])
def test_crops_have_torchvisions_distribution(size):
    rng = np.random.default_rng(0)
    theirs = np.array([torchvisions_crop(*size, rng) for _ in range(4000)])
    for name, a, b in zip(("top", "left", "height", "width"), draw(*size).T, theirs.T, strict=True):
        assert scipy.stats.ks_2samp(a, b).pvalue > 0.001, name


def test_a_crop_depends_on_seed_epoch_and_example_alone():
    first = draw(100, 100, n=64)
    np.testing.assert_array_equal(first, draw(100, 100, n=64))
    crop = random_resized_crop(
        scale=(0.3, 1.0), aspect_ratio=(3 / 4, 4 / 3), seed=0, epoch=tf.constant(0, tf.int64)
    )
    draws = crop.draws(tf.constant([17], tf.int64)).numpy()
    alone = crop.boxes(draws, np.array([100]), np.array([100]))
    np.testing.assert_array_equal(alone[0], first[17])
    assert (first != draw(100, 100, n=64, seed=1)).any()
    assert (first != draw(100, 100, n=64, epoch=tf.constant(1, tf.int64))).any()


@pytest.mark.parametrize(
    ("size", "aspect_ratio", "share", "box"),
    [
        ((28, 28), 1.0, 1.0, [0, 0, 28, 28]),
        ((375, 500), 1.0, 1.0, [0, 62, 375, 375]),
        ((500, 375), 1.0, 0.875, [86, 23, 328, 328]),
        ((100, 100), 2.0, 1.0, [25, 0, 50, 100]),
        ((1, 9), 1.0, 0.1, [0, 4, 1, 1]),
    ],
)
def test_centre_crops_are_centred(size, aspect_ratio, share, box):
    height, width = np.array([size[0]]), np.array([size[1]])
    ours = centre_boxes(height, width, aspect_ratio=aspect_ratio, share=share)
    assert ours.tolist() == [box]


def test_centre_crops_of_any_size_leave_equal_margins():
    """Or one pixel more at the bottom or on the right, where the rest is odd."""
    height, width = (side.ravel() for side in np.mgrid[1:40, 1:40])
    for share in (1.0, 0.875):
        ours = centre_boxes(height, width, aspect_ratio=1.0, share=share)
        top, left, crop_height, crop_width = ours.T
        np.testing.assert_array_equal(crop_height, crop_width)
        assert (abs(crop_height - share * np.minimum(height, width)) <= 0.5).all()
        for before, crop, side in ((top, crop_height, height), (left, crop_width, width)):
            assert np.isin(side - crop - 2 * before, (0, 1)).all()
