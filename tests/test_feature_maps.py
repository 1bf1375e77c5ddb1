"""Maps of patch features and neighbours, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.batch.masks import MultiBlock
from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source, open_source
from jepa_jax.objectives.objective import Clock
from jepa_jax.objectives.registry import make_objective
from jepa_jax.reporting.feature_maps import Level, component_maps, cosine_maps, encode_levels
from jepa_jax.reporting.neighbors import nearest
from jepa_jax.reporting.predictor_maps import guess_blocks, read_networks

RNG = np.random.default_rng(0)


def test_the_nearest_are_those_of_the_highest_cosine():
    queries, references = RNG.normal(size=(3, 5)), RNG.normal(size=(20, 5))
    index, cosine = nearest(queries, 10 * references, 4)
    for row, query in enumerate(queries):
        cosines = [query @ other / np.sqrt(query @ query * (other @ other)) for other in references]
        assert index[row].tolist() == np.argsort(cosines)[::-1][:4].tolist()
        np.testing.assert_allclose(cosine[row], sorted(cosines, reverse=True)[:4])


def test_a_cosine_map_is_about_one_patch_without_its_position_s_mean():
    tokens = RNG.normal(size=(4, 6, 8))
    maps = cosine_maps(Level(np.empty(0), tokens + 5.0, (2, 3)), 1, 2)
    centred = tokens - np.mean(tokens, axis=0)
    assert maps.shape == (4, 2, 3)
    for image in range(4):
        chosen = centred[image, 5]
        for patch in range(6):
            other = centred[image, patch]
            expected = chosen @ other / np.linalg.norm(chosen) / np.linalg.norm(other)
            assert maps[image, patch // 3, patch % 3] == pytest.approx(expected)


def test_images_are_read_at_each_resolution_and_colours_mean_the_same_at_all(tiny):
    """The encoder gives each patch's mean colour, so that components are its directions."""
    tiny.data.image_size, tiny.model.patch_size = (32, 32), 8
    pixels = RNG.integers(0, 256, (5, 4, 4, 3)).repeat(16, 1).repeat(16, 2).astype(np.uint8)

    def encode(weights, images):
        n, height, width, _ = images.shape
        x = images.reshape(n, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))
        return x.reshape(n, -1, 3)

    source = array_source(pixels, None, (), (32, 32))
    levels = encode_levels(encode, None, resolve(tiny), source, np.arange(5))
    assert [level.grid for level in levels] == [(4, 4), (6, 6), (8, 8)]
    assert [level.pixels.shape[1:3] for level in levels] == [(32, 32), (48, 48), (64, 64)]
    maps = component_maps(levels)
    assert maps[1].shape == (5, 6, 6, 3)
    # Twice the side shows each patch of the first level as two by two.
    fine = maps[2].reshape(5, 4, 2, 4, 2, 3)
    np.testing.assert_allclose(fine.mean(axis=(2, 4)), maps[0], atol=0.05)


def test_what_is_predicted_is_what_the_loss_compares(small):
    config = small.config
    objective = make_objective(config)
    networks = read_networks(small.folder, objective)
    for a, b in zip(
        jax.tree.leaves(networks.objective_state.target),
        jax.tree.leaves(small.target_encoder),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    masks = objective.needs.masks
    assert isinstance(masks, MultiBlock)
    batch = {
        "image": RNG.integers(0, 256, (3, 28, 28, 3)).astype(np.uint8),
        "context_index": np.array([[0, 3, 7, 15]] * 3, np.int32),
        "target_index": np.array([[[1, 2], [9, 10]]] * 3, np.int32),
    }
    batch, key = jax.tree.map(jnp.asarray, batch), jax.random.key(0)
    loss, _ = jax.jit(lambda *given: objective.loss(*given, Clock(0, 10.0)))(*networks, batch, key)
    predictions, targets = jax.jit(objective.predict)(
        *networks, batch["image"], batch["context_index"], batch["target_index"]
    )
    assert predictions.shape == targets.shape == (3, 2, 2, 16)
    difference = np.asarray(predictions, np.float64) - np.asarray(targets, np.float64)
    assert np.mean(difference**2) == pytest.approx(float(loss), rel=1e-5)


def test_the_nearest_patches_to_a_perfect_guess_are_the_patches_themselves(small):
    """Test images are the training images, and the predictor is replaced by the target."""
    objective = make_objective(small.config)
    networks = read_networks(small.folder, objective)

    def perfect(*arguments):
        _, targets = objective.predict(*arguments)
        return targets, targets

    source = open_source(small.config.data, "train")
    guesses = guess_blocks(
        objective._replace(predict=perfect),
        networks,
        small.config,
        train=source,
        test=source,
        number=4,
        references=20,
    )
    np.testing.assert_allclose(guesses.cosine, 1.0, atol=1e-5)
    assert guesses.control.mean() < 0.999
    assert guesses.cosine.shape == guesses.block_index.shape
    assert guesses.nearest_image.shape == (4, 5)
    assert guesses.nearest_image.max() < len(guesses.reference_pixels) == 20
    assert guesses.nearest_patch.max() < 16


def test_other_objectives_predict_nothing(small, tiny):
    tiny.objective = {"name": "vicreg"}
    objective = make_objective(resolve(tiny))
    assert objective.predict is None
    assert read_networks(small.folder, objective) is None
