"""The encoder and the predictor: their forward and backward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from numpy_model import (
    as_float64,
    numpy_encoder,
    numpy_positions,
    numpy_predictor,
    pillow_resize,
    random_params,
)

from jepa_jax.models.patches import gather_tokens, patchify
from jepa_jax.models.positions import sincos_positions
from jepa_jax.models.predictor import Predictor
from jepa_jax.models.transformer import Transformer
from jepa_jax.models.vision_transformer import VisionTransformer

GRID, PATCH, WIDTH, DEPTH, HEADS = (3, 4), 2, 16, 3, 2
PREDICTOR_WIDTH = 8
ENCODER = {
    "grid": GRID,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
}
SIZES = {"patch_size": PATCH, "num_heads": HEADS}
CONTEXT = jnp.array([[0, 3, 5, 11], [1, 2, 6, 7]], jnp.int32)  # [B, K]
TARGETS = jnp.array([[[1, 2, 4], [2, 6, 9]], [[0, 4, 8], [8, 9, 10]]], jnp.int32)  # [B, M, T]


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params(images):
    return random_params(VisionTransformer(**ENCODER), images)


@pytest.fixture(scope="module")
def encode():
    """The encoder, compiled once for each pattern of its inputs."""
    encoder = VisionTransformer(**ENCODER)
    return jax.jit(
        lambda params, images, index=None: encoder.apply({"params": params}, images, index)
    )


def equations(jaxpr):
    """All equations of a jaxpr, those of inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
            if isinstance(inner, core.Jaxpr):
                yield from equations(inner)


def count(jaxpr, name):
    return sum(equation.primitive.name == name for equation in equations(jaxpr.jaxpr))


# --- The forward pass ------------------------------------------------------------------------


def test_encoder_equals_an_independent_numpy_forward(params, images, encode):
    p, pixels = as_float64((params, images))
    positions = numpy_positions(GRID, WIDTH)
    everything = np.arange(GRID[0] * GRID[1])
    for index, ours in (
        (np.stack([everything] * 2), encode(params, images)),
        (CONTEXT, encode(params, images, CONTEXT)),
    ):
        expected = [
            numpy_encoder(p, image, i, positions, grid=GRID, **SIZES)
            for image, i in zip(pixels, index, strict=True)
        ]
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def predictor_case():
    """Predictor as a compiled function, with its parameters and its context."""
    predictor = Predictor(
        grid=GRID, output_dim=WIDTH, embed_dim=PREDICTOR_WIDTH, depth=2, num_heads=HEADS
    )
    context = np.random.default_rng(2).normal(size=(*CONTEXT.shape, WIDTH))
    context = jnp.asarray(context, jnp.float32)
    params = random_params(predictor, context, CONTEXT, TARGETS)
    predict = jax.jit(
        lambda params, context, targets: predictor.apply(
            {"params": params}, context, CONTEXT, targets
        )
    )
    return predict, params, context


def test_predictor_equals_an_independent_numpy_forward(predictor_case):
    predict, params, context = predictor_case
    p, seen = as_float64((params, context))
    expected = [
        [
            numpy_predictor(p, seen[b], CONTEXT[b], block, grid=GRID, num_heads=HEADS)
            for block in TARGETS[b]
        ]
        for b in range(2)
    ]
    np.testing.assert_allclose(predict(params, context, TARGETS), expected, rtol=1e-5, atol=1e-5)


def test_target_blocks_are_predicted_independently_of_each_other(predictor_case):
    predict, params, context = predictor_case
    moved = np.array(TARGETS)
    moved[:, 1] = [[0, 5, 6], [1, 2, 3]]
    before, after = predict(params, context, TARGETS), predict(params, context, moved)
    np.testing.assert_allclose(after[:, 0], before[:, 0], rtol=1e-6, atol=1e-6)
    assert np.abs(after[:, 1] - before[:, 1]).max() > 0.1


def test_encoding_every_patch_by_index_equals_encoding_the_image(params, images, encode):
    everything = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))
    np.testing.assert_allclose(
        encode(params, images, everything), encode(params, images), rtol=1e-6, atol=1e-6
    )


def test_visible_tokens_do_not_depend_on_the_pixels_of_hidden_patches(params, images, encode):
    hidden = np.ones((2, 12), bool)
    np.put_along_axis(hidden, CONTEXT, False, axis=1)
    pixels = hidden.reshape(2, *GRID).repeat(PATCH, axis=1).repeat(PATCH, axis=2)
    spoilt = jnp.where(pixels[..., None], jnp.nan, images)
    np.testing.assert_array_equal(encode(params, spoilt, CONTEXT), encode(params, images, CONTEXT))


def test_patchify_cuts_in_raster_order_with_channels_last():
    images = np.arange(2 * 6 * 8 * 3, dtype=np.float32).reshape(2, 6, 8, 3)
    patches = patchify(jnp.asarray(images), 2)
    assert patches.shape == (2, 12, 12)
    np.testing.assert_array_equal(patches[1, 6], images[1, 2:4, 4:6].reshape(-1))  # row 1, column 2


def test_gather_tokens_takes_each_image_s_own_selection():
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 5)), jnp.float32)
    expected = np.stack([np.asarray(tokens)[b][CONTEXT[b]] for b in range(2)])
    np.testing.assert_array_equal(gather_tokens(tokens, jnp.asarray(CONTEXT)), expected)


# --- What is compiled ------------------------------------------------------------------------


def loss_of(encoder):
    weights = np.random.default_rng(3).normal(size=(*CONTEXT.shape, encoder.embed_dim))

    def loss(params, images):
        tokens = encoder.apply({"params": params}, images, CONTEXT)
        return jnp.sum(tokens * jnp.asarray(weights, jnp.float32))

    return loss


@pytest.fixture(scope="module")
def value_and_gradient(params, images):
    """Of the blocks in a loop with nothing recomputed, to which the others must be equal."""
    return jax.jit(jax.value_and_grad(loss_of(VisionTransformer(**ENCODER))))(params, images)


@pytest.mark.parametrize(
    ("scan_layers", "remat"),
    [(False, "none"), (True, "dots"), (True, "full"), (False, "full")],
)
def test_scanning_and_recomputing_change_no_output_and_no_gradient(
    params, images, value_and_gradient, scan_layers, remat
):
    encoder = VisionTransformer(**ENCODER, scan_layers=scan_layers, remat=remat)
    result = jax.jit(jax.value_and_grad(loss_of(encoder)))(params, images)
    jax.tree.map(
        lambda ours, expected: np.testing.assert_allclose(
            ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
        ),
        result,
        value_and_gradient,
    )


@pytest.mark.parametrize(
    ("scan_layers", "remat"), [(True, "none"), (True, "dots"), (False, "full")]
)
def test_a_selection_s_output_is_that_of_all_tokens_then_selected(scan_layers, remat):
    rng = np.random.default_rng(8)
    x, weights = jnp.float32(rng.normal(size=(2, 7, 16))), jnp.float32(rng.normal(size=(2, 3, 16)))
    transformer = Transformer(depth=3, num_heads=2, scan_layers=scan_layers, remat=remat)
    params = random_params(transformer, x)

    def by_last_block(params, x):
        tokens = transformer.apply({"params": params}, x, select=lambda tokens: tokens[:, 4:])
        return jnp.sum(tokens * weights)

    def afterwards(params, x):
        return jnp.sum(transformer.apply({"params": params}, x)[:, 4:] * weights)

    results = [
        jax.jit(jax.value_and_grad(f, (0, 1)))(params, x) for f in (by_last_block, afterwards)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
        *results,
    )


def test_blocks_are_a_loop_only_if_asked(params, images):
    for scan_layers, loops in ((True, {1}), (False, {DEPTH})):
        encoder = VisionTransformer(**ENCODER, scan_layers=scan_layers)
        jaxpr = jax.make_jaxpr(loss_of(encoder))(params, images)
        scans = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "scan"]
        assert {scan.params["unroll"] for scan in scans} == loops


def test_recomputing_dots_spares_the_projections_and_full_spares_nothing(params, images):
    def products(remat):  # matrix products of the gradient, a layer
        encoder = VisionTransformer(**ENCODER, remat=remat)
        jaxpr = jax.make_jaxpr(jax.grad(loss_of(encoder)))(params, images)
        return count(jaxpr, "dot_general")

    # Six a layer: qkv, scores, mixing, proj, fc1, fc2. Those of the scores and the mixing have
    # batch dimensions; a layer's last product is never needed again.
    assert products("none") < products("dots") <= products("none") + 2
    assert products("none") + 4 <= products("full") <= products("none") + 6


def test_gradient_of_the_encoder_has_no_scatter(params, images):
    loss = loss_of(VisionTransformer(**ENCODER))
    for argument, scatters in ((0, 0), (1, 1)):  # the pixels' gradient would have one
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=argument))(params, images)
        names = [equation.primitive.name for equation in equations(jaxpr.jaxpr)]
        assert sum(name.startswith("scatter") for name in names) == scatters


def test_patches_are_gathered_as_unique_and_sorted(params, images):
    jaxpr = jax.make_jaxpr(loss_of(VisionTransformer(**ENCODER)))(params, images)
    gathers = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "gather"]
    (of_pixels,) = [e for e in gathers if e.invars[0].aval.shape == (2, 12, PATCH * PATCH * 3)]
    assert of_pixels.params["unique_indices"]
    assert of_pixels.params["indices_are_sorted"]
    assert of_pixels.params["mode"] == jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS


def test_bfloat16_products_keep_float32_parameters_and_statistics(images):
    encoder = VisionTransformer(**ENCODER, dtype=jnp.bfloat16)
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    params = random_params(encoder, images)
    jaxpr = jax.make_jaxpr(lambda p, x: encoder.apply({"params": p}, x))(params, images)
    assert jaxpr.out_avals[0].dtype == jnp.float32

    def dtypes(name):
        found = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == name]
        assert found
        return {str(variable.aval.dtype) for e in found for variable in e.invars}

    # exp, reduce_max and reduce_sum: the softmax; rsqrt and reduce_sum: LayerNorm.
    for name in ("exp", "reduce_max", "rsqrt", "reduce_sum"):
        assert dtypes(name) == {"float32"}
    assert dtypes("dot_general") == {"bfloat16"}
    # What runs past the branches is carried from block to block in float32.
    (loop,) = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "scan"]
    assert {str(v.aval.dtype) for v in loop.outvars if v.aval.shape[1:] == (12, 16)} == {"float32"}


def test_an_image_of_another_size_is_encoded_at_interpolated_positions(params, encode):
    image = np.random.default_rng(5).normal(size=(1, 10, 16, 3))
    grid, index = (5, 8), np.array([[2, 17, 39]], np.int32)
    positions = pillow_resize(sincos_positions(GRID, WIDTH), GRID, grid)
    expected = numpy_encoder(as_float64(params), image[0], index[0], positions, grid=grid, **SIZES)
    ours = encode(params, jnp.asarray(image, jnp.float32), index)
    np.testing.assert_allclose(ours[0], expected, rtol=1e-4, atol=1e-4)


def test_a_drop_path_rate_of_0_needs_no_random_key(params, images, encode):
    encoder = VisionTransformer(**ENCODER, drop_path_rate=0.0)
    training = jax.jit(lambda p, x: encoder.apply({"params": p}, x, deterministic=False))
    np.testing.assert_array_equal(training(params, images), encode(params, images))


def test_evaluation_ignores_the_drop_path_rate(params, images, encode):
    encoder = VisionTransformer(**ENCODER, drop_path_rate=0.5)
    evaluation = jax.jit(lambda p, x: encoder.apply({"params": p}, x))
    np.testing.assert_array_equal(evaluation(params, images), encode(params, images))
