"""Mixup and CutMix against NumPy: pixels, targets, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jepa_jax.objectives.mixing import mix

STEPS = 2000
IMAGES = np.random.default_rng(0).normal(size=(4, 12, 10, 3)).astype(np.float32)
TARGETS = np.eye(4, 5, dtype=np.float32)  # each image of another class


@pytest.fixture(scope="module", params=[(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def steps(request):
    """(alphas, images and targets of many steps)."""
    mixup, cutmix = request.param

    def one(key):
        return mix(jnp.asarray(IMAGES), jnp.asarray(TARGETS), mixup=mixup, cutmix=cutmix, key=key)

    keys = jax.random.split(jax.random.key(0), STEPS)
    return request.param, *map(np.asarray, jax.jit(jax.vmap(one))(keys))


def shares_of(targets):
    """[steps]: how much of its own label each image keeps; the rest is its neighbour's."""
    share = targets[:, 0, 0]
    expected = share[:, None, None] * TARGETS + (1 - share)[:, None, None] * np.roll(TARGETS, 1, 0)
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    return share


def boxes_of(images):
    """bool [steps, H, W]: pixels that are the neighbour's; the same for all images of a step."""
    other = np.roll(IMAGES, 1, axis=0)
    boxed = np.all(images == other, axis=(1, 4))
    assert np.all(boxed | np.all(images == IMAGES, axis=(1, 4)))
    return boxed


def area_of_rectangle(boxed):
    """[steps]: the share of the image in the boxes, which must be filled rectangles."""
    rows, columns = boxed.any(axis=2), boxed.any(axis=1)
    np.testing.assert_array_equal(boxed, rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):
        assert np.all((np.diff(side.astype(int), axis=1) == 1).sum(axis=1) <= 1)
    return boxed.mean(axis=(1, 2))


def drawn_area(rng, alpha, steps):
    """Yun et al. (2019), algorithm 1 of the supplement, in NumPy: areas after cutting off."""
    height, width = IMAGES.shape[1:3]
    area = 1 - rng.beta(alpha, alpha, steps)
    sides = []
    for pixels in (height, width):
        half = (pixels * np.sqrt(area)).astype(int) // 2
        centre = rng.integers(0, pixels, steps)
        low, high = np.clip(centre - half, 0, pixels), np.clip(centre + half, 0, pixels)
        sides.append((high - low) / pixels)
    return sides[0] * sides[1]


def test_pixels_and_targets_are_mixed_alike_with_the_shares_of_the_papers(steps):
    (mixup, cutmix), images, targets = steps
    share = shares_of(targets)
    rng = np.random.default_rng(1)
    is_box = np.array([np.all((x == IMAGES) | (x == np.roll(IMAGES, 1, 0))) for x in images])
    if mixup and cutmix:
        assert abs(is_box.mean() - 0.5) < 0.04  # four standard deviations
    else:
        assert is_box.mean() == bool(cutmix)
    if cutmix:
        area = area_of_rectangle(boxes_of(images[is_box]))
        np.testing.assert_allclose(1 - share[is_box], area, atol=1e-6)
        expected = drawn_area(rng, cutmix, 100_000)
        for quantile in (0.25, 0.5, 0.75):
            assert abs(np.quantile(area, quantile) - np.quantile(expected, quantile)) < 0.04
    if mixup:
        m = share[~is_box].astype(np.float64)
        blend = m[:, None, None, None, None] * IMAGES
        blend += (1 - m)[:, None, None, None, None] * np.roll(IMAGES, 1, 0)
        np.testing.assert_allclose(images[~is_box], blend, atol=1e-5)
        assert abs(m.mean() - 0.5) < 0.04
        np.testing.assert_allclose(m.var(), 1 / (4 * (2 * mixup + 1)), rtol=0.1)


def test_one_and_eight_devices_mix_alike():
    images = np.random.default_rng(0).normal(size=(16, 12, 10, 3)).astype(np.float32)
    targets = np.eye(16, dtype=np.float32)
    found = []
    for devices in (1, 8):
        mesh = jax.make_mesh(
            (devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,)
        )
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        one = jax.jit(
            lambda x, y: mix(x, y, mixup=0.8, cutmix=1.0, key=jax.random.key(4)),
            out_shardings=sharding,
        )
        found.append(one(*jax.device_put((images, targets), sharding)))
    assert len(found[1][0].sharding.device_set) == 8
    for one, eight in zip(*found, strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-6)
    assert np.any(np.asarray(found[0][0]) != images, axis=(1, 2, 3)).all()


def test_without_either_nothing_changes_and_a_key_always_mixes_the_same():
    images, targets = jnp.asarray(IMAGES), jnp.asarray(TARGETS)
    same = mix(images, targets, mixup=0.0, cutmix=0.0, key=jax.random.key(0))
    assert (same[0] is images, same[1] is targets) == (True, True)
    once, again, other = (
        np.asarray(mix(images, targets, mixup=0.8, cutmix=0.0, key=jax.random.key(k))[0])
        for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)
