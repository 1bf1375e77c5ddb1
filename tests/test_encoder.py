"""`load_encoder`: a pure function, its layers, its preprocessing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_model import as_float64, numpy_encoder, numpy_positions

import jepa_jax
from jepa_jax.batch.pixels import normalize
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import array_source


@pytest.fixture(scope="module")
def loaded(small):
    return jepa_jax.load_encoder(small.folder)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, 28, 28, 3)).astype(np.float32)


@pytest.mark.parametrize("network", ["target_encoder", "encoder"])
def test_features_are_those_of_a_plain_implementation(small, images, network):
    encode, params = jepa_jax.load_encoder(small.folder, network=network)
    assert encode.network == network
    expected = [
        numpy_encoder(
            as_float64(getattr(small, network)),
            image.astype(np.float64),
            np.arange(16),
            numpy_positions((4, 4), 16),
            grid=(4, 4),
            patch_size=7,
            num_heads=2,
        )
        for image in images
    ]
    np.testing.assert_allclose(jax.jit(encode)(params, images), expected, atol=1e-5)


def test_a_single_image_is_a_batch_of_one_without_the_axis(loaded, images):
    encode, params = loaded
    whole = encode(params, images)
    assert whole.shape == (3, 16, 16)
    np.testing.assert_allclose(encode(params, images[1]), whole[1], atol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(encode, in_axes=(None, 0))(params, jnp.asarray(images)), whole, atol=1e-6
    )


def test_gradients_reach_parameters_and_images(loaded, images):
    """Against a finite difference along a random direction, of both arguments."""
    encode, params = loaded
    rng = np.random.default_rng(2)

    def energy(params, images):
        return jnp.mean(jnp.square(encode(params, images)[:, :3, :5]))

    arguments = (params, jnp.asarray(images))
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), arguments)
    gradient = jax.jit(jax.grad(energy, argnums=(0, 1)))(*arguments)
    inner = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    jitted = jax.jit(energy)
    ahead, behind = (
        jitted(*jax.tree.map(lambda x, d, h=h: x + h * d, arguments, direction))
        for h in (1e-3, -1e-3)
    )
    np.testing.assert_allclose((ahead - behind) / 2e-3, inner, rtol=2e-2)
    for part in gradient:
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(part))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_layers_are_what_a_shallower_model_gives(loaded, images, scan_layers):
    """Cut after the first block, with the same final LayerNorm."""
    encode, params = loaded
    config = encode.config
    compute = dataclasses.replace(config.compute, scan_layers=scan_layers)
    config = dataclasses.replace(config, compute=compute)
    encode = dataclasses.replace(encode, config=config)
    both = encode(params, images, layers=(0, -1))
    assert both.shape == (2, 3, 16, 16)
    np.testing.assert_allclose(both[1], encode(params, images), atol=1e-6)

    cut = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=1))
    blocks = jax.tree.map(lambda leaf: leaf[:1], params["transformer"]["blocks"])
    cut_params = params | {"transformer": params["transformer"] | {"blocks": blocks}}
    shallow = dataclasses.replace(encode, config=cut)(cut_params, images)
    np.testing.assert_allclose(both[0], shallow, atol=1e-6)
    assert encode(params, images[0], layers=(1,)).shape == (1, 16, 16)


def one_level(data):
    """The probes' loader rounds to 256 levels, after each pass of its filter."""
    return 1.01 / 255 / min(data.std)


@pytest.mark.parametrize("size", [(40, 50), (20, 20), (28, 28)])
def test_preprocessing_is_that_of_the_probes(loaded, size):
    """TensorFlow's crop and resize, as the evaluation pipeline uses them."""
    encode, _ = loaded
    data = dataclasses.replace(encode.config.data, eval_crop=1.0)
    encode = dataclasses.replace(encode, config=dataclasses.replace(encode.config, data=data))
    raw = np.random.default_rng(3).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    source = array_source(raw, None, (), data.image_size)
    (pixels,) = eval_batches(data, source, index=np.arange(4), batch_size=4)
    expected = normalize(pixels, data.mean, data.std)
    np.testing.assert_allclose(encode.preprocess(raw), expected, atol=one_level(data))
    np.testing.assert_allclose(encode.preprocess(raw[2]), expected[2], atol=one_level(data))


def test_the_margin_is_cut_off_before_resizing(loaded):
    """Where the probes shrink the crop, theirs is the same to the last pixel."""
    encode, _ = loaded
    data = dataclasses.replace(encode.config.data, eval_crop=0.75)
    encode = dataclasses.replace(encode, config=dataclasses.replace(encode.config, data=data))
    raw = np.random.default_rng(3).integers(0, 256, (2, 61, 80, 3), dtype=np.uint8)
    (pixels,) = eval_batches(
        data, array_source(raw, None, (), (28, 28)), index=np.arange(2), batch_size=2
    )
    expected = normalize(pixels, data.mean, data.std)
    np.testing.assert_allclose(encode.preprocess(raw), expected, atol=one_level(data))


@pytest.mark.parametrize(
    ("shape", "dtype", "layers", "message"),
    [
        (
            (28, 30, 3),
            np.float32,
            None,
            r"28 x 30 pixels: both must be multiples of the patch size",
        ),
        ((2, 28, 28, 4), np.float32, None, r"must be \[H, W, 3\] or \[B, H, W, 3\]"),
        ((28, 28, 3), np.uint8, None, r"uint8: must be normalised first"),
        ((28, 28, 3), np.float32, (2,), r"layers = \(2,\): must be of -2..1"),
        ((28, 28, 3), np.float32, (), r"layers = \(\): must be of"),
        ((28, 28, 3), np.float32, (1, 0), r"layers = \(1, 0\): must ascend"),
    ],
)
def test_what_can_not_be_encoded_is_refused(loaded, shape, dtype, layers, message):
    encode, params = loaded
    # Past the checks of types that only the tests have, to those that every user has.
    call = getattr(type(encode).__call__, "__wrapped__", type(encode).__call__)
    with pytest.raises(ValueError, match=message):
        call(encode, params, np.zeros(shape, dtype), layers=layers)


def test_only_raw_images_are_preprocessed(loaded):
    encode, _ = loaded
    with pytest.raises(ValueError, match=r"float32 \(28, 28, 3\): must be uint8"):
        encode.preprocess(np.zeros((28, 28, 3), np.float32))


def test_the_package_imports_jax_only_for_the_encoder():
    with pytest.raises(AttributeError, match=r"no attribute 'load_decoder'"):
        jepa_jax.load_decoder  # noqa: B018


def test_a_published_shape_is_made_by_its_name_at_its_random_initialisation():
    assert "vit_b16" in jepa_jax.list_models()
    encode, params = jepa_jax.create_encoder("vit_ti16", image_size=(32, 48), seed=3)
    features = encode(params, encode.preprocess(np.zeros((2, 40, 60, 3), np.uint8)))
    assert features.shape == (2, 6, 192)
    assert np.isfinite(features).all()
    blocks = params["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert blocks.shape == (12, 192, 768)
    assert np.std(blocks) == pytest.approx(0.02, rel=0.02)
    other = jepa_jax.create_encoder("vit_ti16", image_size=32, seed=4)[1]
    assert not np.array_equal(other["patch_embed"]["kernel"], params["patch_embed"]["kernel"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "vit_x16"}, r"model 'vit_x16': must be one of vit_ti16, vit_s16"),
        ({"name": "vit_s16", "image_size": 100}, r"must be a positive multiple of .*patch_size"),
        ({"name": "vit_s16", "dtype": "float16"}, r"dtype = 'float16': must be one of float32"),
    ],
)
def test_a_shape_that_there_is_not_is_refused_as_a_value_error(arguments, says):
    with pytest.raises(ValueError, match=says):
        jepa_jax.create_encoder(**arguments)
