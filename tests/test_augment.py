"""Augmentations: pixels against float64 statements, draws against SplitMix64 and statistics."""

import colorsys
import dataclasses
import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import tensorflow as tf
from augment_by_hand import draws, expected, order_of
from PIL import Image, ImageEnhance, ImageOps

from jepa_jax.config import AugmentationConfig
from jepa_jax.data import augment as module
from jepa_jax.data import crops, masks
from jepa_jax.data.augment import augment

NO_STRENGTH = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
EVERYTHING = AugmentationConfig(flip=0.5, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.3)


def jitter_of(**strengths):
    return AugmentationConfig(jitter=1.0, **(NO_STRENGTH | strengths))


# Each change alone and always, those of the jitter also so strong that values are clipped.
ALONE = {
    "flip": AugmentationConfig(flip=1.0),
    "brightness": jitter_of(brightness=0.8),
    "contrast": jitter_of(contrast=0.8),
    "saturation": jitter_of(saturation=0.8),
    "hue": jitter_of(hue=0.5),
    "grayscale": AugmentationConfig(grayscale=1.0),
    "blur": AugmentationConfig(blur=1.0),
    "solarize": AugmentationConfig(solarize=1.0, solarize_threshold=0.3),
}


def random_images(n, height=6, width=9, channels=3):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (n, height, width, channels)).astype(np.float32)


def run(images, augmentation, *, seed=3, epoch=5, first=0, view=1):
    """Augments images that are the examples `first`, `first + 1`, ..."""
    return augment(
        tf.constant(images),
        augmentation,
        seed=seed,
        epoch=tf.constant(epoch, tf.int64),
        index=tf.range(first, first + len(images), dtype=tf.int64),
        view=view,
    ).numpy()


def assert_as_stated(images, augmentation, ours=None):
    ours = run(images, augmentation) if ours is None else ours
    for index, (image, result) in enumerate(zip(images, ours, strict=True)):
        stated = expected(image, augmentation, draws(3, 5, index, 1))
        np.testing.assert_allclose(result, stated, rtol=0, atol=1e-3, err_msg=str(index))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ALONE)
def test_each_change_alone_gives_the_stated_pixels(name, channels):
    images = random_images(12, channels=channels)
    ours = run(images, ALONE[name])
    assert_as_stated(images, ALONE[name], ours)
    if channels == 1 and name in ("saturation", "hue", "grayscale"):
        np.testing.assert_array_equal(ours, images)  # a gray image has no colour to change
    else:
        assert (ours != images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("channels", [3, 1])
def test_the_jitter_makes_its_changes_in_the_drawn_order(channels):
    """Strengths at which values are clipped, so that no two orders agree."""
    images = random_images(64, height=4, width=4, channels=channels)
    strong = AugmentationConfig(jitter=1.0, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.3)
    assert_as_stated(images, strong)
    assert len({order_of(draws(3, 5, index, 1)[2]) for index in range(64)}) > 20


@pytest.mark.parametrize("shape", [(64, 6, 9, 3), (64, 6, 9, 1), (6, 45, 61, 3)])
def test_all_changes_together_give_the_stated_pixels(shape):
    assert_as_stated(random_images(*shape), EVERYTHING)


def test_an_image_of_one_pixel_has_nothing_to_blur():
    images = random_images(8, height=1, width=1)
    sharp = dataclasses.replace(EVERYTHING, blur=0.0)
    np.testing.assert_array_equal(run(images, EVERYTHING), run(images, sharp))
    assert_as_stated(images, sharp)


def test_edges_of_colour_space_survive_a_turn_of_hue():
    """Gray has no hue and black no saturation; the primaries lie where the circle is pieced."""
    corners = np.array(list(itertools.product((0, 128, 255), repeat=3)), np.float32)
    images = np.broadcast_to(corners.reshape(3, 9, 3), (40, 3, 9, 3))
    ours = run(images, ALONE["hue"])
    assert_as_stated(images, ALONE["hue"], ours)
    grays = (corners == corners[:, :1]).all(axis=1).reshape(3, 9)
    np.testing.assert_allclose(ours[:, grays], images[:, grays], atol=1e-4)


def test_pillow_agrees_to_its_rounding():
    """Pillow computes in bytes: one level from its truncation, one from that of the gray image."""
    images = np.floor(random_images(8, height=16, width=16))
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for number, (name, enhancer) in enumerate(enhancers.items()):
        for index, result in enumerate(run(images, ALONE[name])):
            factor = 1 + 0.8 * (2 * draws(3, 5, index, 1)[7 + number] - 1)
            picture = Image.fromarray(images[index].astype(np.uint8))
            theirs = np.asarray(enhancer(picture).enhance(factor), np.float64)
            assert abs(result - theirs).max() < 2, name
    for index, result in enumerate(run(images, AugmentationConfig(grayscale=1.0))):
        theirs = Image.fromarray(images[index].astype(np.uint8)).convert("L")
        assert abs(result - np.asarray(theirs, np.float64)[..., None]).max() < 1


def test_a_pixel_at_the_threshold_is_solarized():
    ramp = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1)
    ours = run(ramp, AugmentationConfig(solarize=1.0, solarize_threshold=51 / 255))
    picture = Image.fromarray(ramp[0, ..., 0].astype(np.uint8))
    np.testing.assert_array_equal(ours[0, ..., 0], ImageOps.solarize(picture, threshold=51))


@pytest.mark.parametrize(
    ("size", "width"), [((224, 300), 23), ((96, 96), 9), ((50, 41), 5), ((28, 28), 3), ((2, 3), 3)]
)
def test_the_blurs_kernel_is_a_tenth_of_the_shorter_side(size, width):
    """Odd, and three pixels at least. A wide Gaussian, cut off, spreads one pixel to a square."""
    image = np.zeros((1, *size, 1), np.float32)
    image[0, size[0] // 2, size[1] // 2] = 255
    ours = run(image, AugmentationConfig(blur=1.0, blur_sigma=(50.0, 50.0)))[0, ..., 0]
    assert np.count_nonzero(ours.any(axis=0)) == min(width, size[1])
    assert np.count_nonzero(ours.any(axis=1)) == min(width, size[0])


def test_a_blur_keeps_a_plain_image_and_the_range():
    plain = np.full((50, 24, 24, 3), 255, np.float32)
    ours = run(plain, AugmentationConfig(blur=1.0))
    np.testing.assert_allclose(ours, 255, atol=1e-3)
    assert ours.max() <= 255


@pytest.mark.parametrize("name", ALONE)
def test_a_change_is_made_as_often_as_declared(name):
    n, share = 3000, 0.3
    field = (
        name
        if name in AugmentationConfig.__dataclass_fields__ and name not in NO_STRENGTH
        else "jitter"
    )
    changes = dataclasses.replace(ALONE[name], **{field: share}, blur_sigma=(0.5, 2.0))
    images = np.broadcast_to(random_images(1, 2, 3), (n, 2, 3, 3))
    changed = (run(images, changes) != images).any(axis=(1, 2, 3)).mean()
    assert abs(changed - share) < 4 * np.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize(
    ("name", "strength", "low", "high"),
    [
        ("brightness", 0.4, 0.6, 1.4),
        ("brightness", 1.5, 0.0, 2.5),  # a factor is not negative
        ("contrast", 0.4, 0.6, 1.4),
        ("contrast", 1.5, 0.0, 2.5),
        ("saturation", 0.2, 0.8, 1.2),
        ("hue", 0.1, -0.1, 0.1),
        ("hue", 0.5, -0.5, 0.5),
        ("blur_sigma", None, 0.5, 2.0),
    ],
)
def test_parameters_are_uniform_in_their_range(name, strength, low, high):
    """Each is read back from pixels of which nothing is clipped."""
    n = 2000
    image = np.full((5, 5, 3), (90, 80, 80), np.float32)
    if name == "contrast":
        image[0, 0], image[2, 2] = 70, 100
    if name == "blur_sigma":
        image[:] = 0
        image[2, 2] = 255
        changes = AugmentationConfig(blur=1.0, blur_sigma=(low, high))
    else:
        changes = jitter_of(**{name: strength})
    ours = run(np.broadcast_to(image, (n, 5, 5, 3)), changes).astype(np.float64)
    if name == "brightness":
        values = ours[:, 0, 0, 1] / 80
    elif name == "contrast":
        values = (ours[:, 2, 2, 0] - ours[:, 0, 0, 0]) / 30
    elif name == "saturation":
        values = (ours[:, 0, 0, 0] - ours[:, 0, 0, 1]) / 10
    elif name == "hue":
        values = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in ours[:, 0, 0] / 255])
        values = (values + 0.5) % 1 - 0.5
    else:  # the weight of a neighbour is exp(-1 / (2 sigma^2)) of the middle's
        values = np.sqrt(-0.5 / np.log(ours[:, 2, 1, 0] / ours[:, 2, 2, 0]))
    assert scipy.stats.kstest((values - low) / (high - low), "uniform").pvalue > 0.01


def in_a_pipeline(images, index, batch_size, epoch=5):
    """Augments examples as the input pipeline does: mapped, in a graph, with AutoGraph off."""

    @tf.autograph.experimental.do_not_convert
    def stage(images, index):
        epochs = tf.constant(epoch, tf.int64)
        return augment(images, EVERYTHING, seed=3, epoch=epochs, index=index, view=1)

    dataset = tf.data.Dataset.from_tensor_slices((images, index)).batch(batch_size).map(stage)
    assert dataset.element_spec == tf.TensorSpec((None, *images.shape[1:]), tf.float32)
    return np.concatenate(list(dataset.as_numpy_iterator()))


@pytest.mark.parametrize("channels", [3, 1])
def test_an_examples_result_is_the_same_bits_in_any_batch(channels):
    images = random_images(16, 23, 27, channels)
    index = np.arange(16) * 1000
    whole = in_a_pipeline(images, index, 16)
    for batch_size in (1, 3):
        np.testing.assert_array_equal(in_a_pipeline(images, index, batch_size), whole)
    order = np.random.default_rng(1).permutation(16)[:11]
    np.testing.assert_array_equal(in_a_pipeline(images[order], index[order], 4), whole[order])


def test_a_pipeline_computes_what_a_plain_call_does():
    images = random_images(16)
    np.testing.assert_allclose(
        in_a_pipeline(images, np.arange(16), 16), run(images, EVERYTHING), rtol=0, atol=1e-3
    )


def test_every_part_of_the_key_changes_the_draws():
    """All factors of brightness differ, and have no correlation."""
    images = np.full((2000, 1, 1, 3), 100, np.float32)
    base = run(images, ALONE["brightness"])[:, 0, 0, 0]
    np.testing.assert_array_equal(base, run(images, ALONE["brightness"])[:, 0, 0, 0])
    for part in ({"seed": 4}, {"epoch": 6}, {"first": 2000}, {"view": 0}):
        other = run(images, ALONE["brightness"], **part)[:, 0, 0, 0]
        assert (other != base).mean() > 0.99
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / np.sqrt(len(images))
    assert len(np.unique(base)) > 1950  # also from example to example
    assert abs(np.corrcoef(base[1:], base[:-1])[0, 1]) < 4 / np.sqrt(len(images))


def test_each_example_may_have_its_own_epoch():
    images = random_images(8)
    epochs = [5, 6] * 4
    mixed = run(images, EVERYTHING, epoch=epochs)
    for epoch in (5, 6):
        rows = np.equal(epochs, epoch)
        whole = run(images, EVERYTHING, epoch=epoch)
        np.testing.assert_array_equal(mixed[rows], whole[rows])


def test_a_change_does_not_redraw_the_others():
    images = random_images(32)
    flipped = run(images, AugmentationConfig(flip=0.5))
    both = run(images, AugmentationConfig(flip=0.5, solarize=1.0))
    np.testing.assert_allclose(both, np.where(flipped < 127.5, flipped, 255 - flipped), atol=1e-4)


def test_streams_are_none_of_masks_or_crops():
    parts = {masks._SIZES, masks._CORNERS, masks._CHOICE, crops._CROP, module._AUGMENT}
    assert len(parts) == 5


@pytest.mark.parametrize("channels", [3, 1])
def test_no_change_returns_the_same_bits(channels):
    images = random_images(4, channels=channels)
    images.ravel()[:3] = 0.0, -0.0, 255.0
    for nothing in (AugmentationConfig(), jitter_of()):
        assert run(images, nothing).tobytes() == images.tobytes()


def test_what_never_happens_is_not_in_the_graph():
    def branches(changes):
        @tf.function(autograph=False)
        def stage(images, index):
            return augment(images, changes, seed=0, epoch=0, index=index, view=0)

        images = tf.TensorSpec((None, 8, 8, 3), tf.float32)
        graph = stage.get_concrete_function(images, tf.TensorSpec((None,), tf.int64)).graph
        return sum(op.type.endswith("If") for op in graph.get_operations())

    assert branches(AugmentationConfig()) == 0
    for name, changes in ALONE.items():
        assert branches(changes) == 1, name
    assert branches(EVERYTHING) == 5
