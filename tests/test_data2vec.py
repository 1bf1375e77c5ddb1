"""data2vec against float64 NumPy: targets, masked student, loss; and the blocks that are masked."""

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from conftest import load_config_file
from numpy_model import as_float64, numpy_positions, numpy_transformer
from views import Evaluated

from jepa_jax.batch.masks import MaskedBlocks
from jepa_jax.config import resolve
from jepa_jax.data.masks import draw_masked_blocks
from jepa_jax.errors import UserError
from jepa_jax.objectives.ema import EmaState
from jepa_jax.objectives.objective import Clock

B, N, D = 3, 16, 16
MASKED = np.array([[0, 3, 5, 11, 12], [1, 2, 6, 7, 15], [0, 4, 8, 9, 14]])


def config_of(**objective):
    config = load_config_file("fashion_mnist_data2vec")
    config.model.update({"patch_size": 7, "embed_dim": D, "depth": 3, "num_heads": 2})
    config.objective.update({"beta": 0.5, "mask_ratio": 5 / 16, **objective})
    return resolve(config)


def standardized(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def embedded(params, image):
    """[N, D], without positions."""
    patches = image.reshape(4, 7, 4, 7, 3).transpose(0, 2, 1, 3, 4).reshape(N, -1)
    return patches @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"]


@pytest.mark.parametrize("norm", ["average", "blocks"])
def test_masked_patches_predict_the_average_of_the_last_blocks_of_the_whole_image(norm):
    images = np.random.default_rng(0).normal(size=(B, 28, 28, 3))
    batch = {
        "image": jnp.asarray(images, jnp.float32),
        "masked_index": jnp.asarray(MASKED, jnp.int32),
    }
    config = config_of(target_norm=norm)  # the last two of three blocks
    run = Evaluated(
        config, batch, lambda other: EmaState(jnp.int32(0), other["encoder"]), Clock(3, 500.0)
    )
    positions, teacher = numpy_positions((4, 4), D), as_float64(run.other["encoder"])
    targets = []
    for image, masked in zip(images, MASKED, strict=True):
        blocks = []
        tokens = embedded(teacher, image) + positions
        numpy_transformer(tokens, teacher["transformer"], 2, blocks=blocks)
        if norm == "average":
            target = standardized((blocks[1] + blocks[2]) / 2)
        else:
            target = (standardized(blocks[1]) + standardized(blocks[2])) / 2
        targets.append(target[masked])

    def by_hand(params):
        losses = []
        for image, masked, target in zip(images, MASKED, targets, strict=True):
            tokens = embedded(params["encoder"], image)
            tokens[masked] = params["mask_token"]
            tokens = numpy_transformer(tokens + positions, params["encoder"]["transformer"], 2)
            predicted = tokens[masked] @ params["head"]["kernel"] + params["head"]["bias"]
            for distance in np.abs(predicted - target).ravel():
                losses.append(distance**2 / 2 / 0.5 if distance <= 0.5 else distance - 0.25)
        return np.mean(losses)

    run.check(by_hand, path=("head", "kernel"))
    run.check(by_hand, path=("mask_token",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 0.01}, r"mask_ratio = 0\.01: must hide at least one of the 4 x 4"),
        ({"top_blocks": 4}, r"top_blocks = 4: must be at most config\.model\.depth = 3"),
    ],
)
def test_a_mask_or_an_average_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config_of(**changes)


def draw(spec, number, *, seed=1, epoch=2, start=0):
    index = tf.range(start, start + number, dtype=tf.int64)
    drawn = draw_masked_blocks(spec, seed=seed, epoch=tf.constant(epoch, tf.int64), index=index)
    return drawn["masked_index"].numpy()


def test_exactly_so_many_patches_are_masked_in_blocks():
    spec = MaskedBlocks((14, 14), num_masked=120, min_patches=16, aspect_ratio=(0.3, 1 / 0.3))
    masked = draw(spec, 2000)
    assert masked.shape == (2000, 120)
    assert (np.diff(masked) > 0).all()
    assert masked.min() >= 0
    assert masked.max() < 196
    grid = np.zeros((2000, 196), bool)
    np.put_along_axis(grid, masked, True, axis=1)
    grid = grid.reshape(-1, 14, 14)
    # Most neighbours of a masked patch are masked: of as many single patches 61 % would be.
    together = (grid[:, 1:] & grid[:, :-1]).sum() / grid[:, 1:].sum()
    assert together > 0.75
    share = grid.mean(axis=0)
    assert share[6:8, 6:8].min() > share[0, 0] > 0.05  # corners lie in fewer blocks
    for mirrored in (share[::-1], share[:, ::-1], share.T):  # no side is preferred
        np.testing.assert_allclose(mirrored, share, atol=0.07)


def test_one_block_that_is_as_large_as_the_mask_is_a_rectangle():
    """Aspect ratio 1 and 9 patches: a square of 3 x 3, uniform over the corners that fit."""
    spec = MaskedBlocks((5, 6), num_masked=9, min_patches=9, aspect_ratio=(1.0, 1.0))
    masked = draw(spec, 3000)
    corners = masked[:, 0]
    for row, corner in zip(masked, corners, strict=True):
        expected = corner + (6 * np.arange(3)[:, None] + np.arange(3)).ravel()
        np.testing.assert_array_equal(row, expected)
    number, count = np.unique(corners, return_counts=True)
    assert len(number) == 3 * 4
    np.testing.assert_allclose(count / 3000, 1 / 12, atol=0.03)


def test_an_example_s_blocks_depend_on_seed_epoch_and_example_alone():
    spec = MaskedBlocks((6, 6), num_masked=15, min_patches=4, aspect_ratio=(0.5, 2.0))
    both = draw(spec, 9)
    np.testing.assert_array_equal(draw(spec, 1, start=8)[0], both[8])
    assert any((draw(spec, 9, **other) != both).any() for other in ({"seed": 2}, {"epoch": 3}))


def test_blocks_larger_than_all_that_is_masked_are_refused():
    config_of(min_block_patches=5)  # 5 of 16 are masked
    with pytest.raises(UserError, match=r"objective\.min_block_patches = 6: must be at most 5"):
        config_of(min_block_patches=6)
