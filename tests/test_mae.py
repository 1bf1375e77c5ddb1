"""The masked autoencoder against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from conftest import load_config_file, randomized

from jepa_jax.batch.masks import RandomPatches
from jepa_jax.config import resolve
from jepa_jax.data.masks import draw_random_patches
from jepa_jax.errors import UserError
from jepa_jax.models.predictor import make_predictor
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import Clock
from jepa_jax.objectives.registry import make_objective

PATCH = 7


def config_of(**objective):
    config = load_config_file("fashion_mnist_mae")
    config.data.image_size = (28, 21)  # a 4 x 3 grid
    config.model.update({"patch_size": PATCH, "embed_dim": 16, "depth": 1, "num_heads": 2})
    config.objective.decoder.update({"embed_dim": 8, "depth": 1, "num_heads": 2})
    config.objective.update(objective)
    return resolve(config)


@pytest.mark.parametrize("normalize_pixels", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
def test_the_loss_is_the_mean_square_over_the_masked_patches_pixels(normalize_pixels, class_token):
    config = config_of(normalize_pixels=normalize_pixels)
    model = dataclasses.replace(config.model, class_token=class_token)
    config = dataclasses.replace(config, model=model)
    objective, rng = make_objective(config), np.random.default_rng(0)
    params = randomized(objective)
    order = np.stack([rng.permutation(12) for _ in range(5)]).astype(np.int32)
    visible, masked = np.sort(order[:, :3]), np.sort(order[:, 3:])
    images = rng.normal(size=(5, 28, 21, 3)).astype(np.float32)
    batch = {"image": images, "visible_index": visible, "masked_index": masked}
    batch = jax.tree.map(jnp.asarray, batch)
    value, _ = objective.loss(params, (), batch, jax.random.key(0), Clock(0, 1.0))

    tokens = make_encoder(config).apply(
        {"params": params["encoder"]}, batch["image"], batch["visible_index"], with_class_token=True
    )
    assert tokens.shape == (5, 3 + class_token, 16)
    decoder = make_predictor(config, config.objective.decoder, output_dim=3 * PATCH**2)
    predictions = decoder.apply(
        {"params": params["decoder"]},
        tokens,
        batch["visible_index"],
        batch["masked_index"][:, None],
    )
    squares = []
    for image, patches, predicted in zip(images, masked, predictions[:, 0], strict=True):
        for patch, guess in zip(patches, predicted, strict=True):
            row, column = divmod(int(patch), 3)
            pixels = image[row * 7 : row * 7 + 7, column * 7 : column * 7 + 7].astype(np.float64)
            target = pixels.reshape(-1)  # row, column, channel
            if normalize_pixels:
                variance = np.sum((target - target.mean()) ** 2) / (target.size - 1)
                target = (target - target.mean()) / np.sqrt(variance + 1e-6)
            squares.append(np.mean((np.asarray(guess, np.float64) - target) ** 2))
    np.testing.assert_allclose(value, np.mean(squares), rtol=1e-5)


def test_a_quarter_of_the_patches_is_visible_and_each_as_often():
    spec = RandomPatches(num_patches=49, num_visible=12)
    index = tf.range(4000, dtype=tf.int64)
    drawn = draw_random_patches(spec, seed=1, epoch=tf.constant(2, tf.int64), index=index)
    visible, masked = drawn["visible_index"].numpy(), drawn["masked_index"].numpy()
    assert visible.shape == (4000, 12)
    assert masked.shape == (4000, 37)
    together = np.sort(np.concatenate([visible, masked], axis=1))
    np.testing.assert_array_equal(together, np.broadcast_to(np.arange(49), (4000, 49)))
    assert (np.diff(visible) > 0).all()
    assert (np.diff(masked) > 0).all()
    share = np.bincount(visible.ravel(), minlength=49) / 4000
    np.testing.assert_allclose(share, 12 / 49, atol=5 * np.sqrt(0.25 * 0.75 / 4000))


def test_an_example_s_patches_depend_on_seed_epoch_and_example_alone():
    spec = RandomPatches(num_patches=16, num_visible=4)

    def draw(seed, epoch, index):
        index = tf.constant(index, tf.int64)
        return draw_random_patches(
            spec, seed=seed, epoch=tf.constant(epoch, tf.int64), index=index
        )["visible_index"].numpy()

    both = draw(0, 0, [3, 8])
    np.testing.assert_array_equal(draw(0, 0, [8])[0], both[1])
    assert any(not np.array_equal(draw(*other, [3]), both[:1]) for other in ((1, 0), (0, 1)))


def test_the_encoder_never_sees_a_masked_pixel():
    config = config_of(normalize_pixels=False)
    objective = make_objective(config)
    params = randomized(objective)
    visible = jnp.asarray([[0, 5, 7]], jnp.int32)
    image = np.random.default_rng(2).normal(size=(1, 28, 21, 3)).astype(np.float32)
    changed = image.copy()
    changed[:, 0:7, 7:14] += 1.0  # patch 1
    encode = make_encoder(config).apply
    a, b = (
        encode({"params": params["encoder"]}, jnp.asarray(x), visible) for x in (image, changed)
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ratio", [0.0, 0.95])
def test_a_mask_that_leaves_or_hides_nothing_is_refused(ratio):
    with pytest.raises(UserError, match=rf"config.objective.mask_ratio = {ratio}: must leave"):
        config_of(mask_ratio=ratio)
