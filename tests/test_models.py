import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from PIL import Image
from scipy.special import erf, softmax

from jepa_jax.config import resolve
from jepa_jax.models.patches import gather_tokens, patchify
from jepa_jax.models.positions import interpolate_positions, sincos_positions
from jepa_jax.models.predictor import Predictor, make_predictor
from jepa_jax.models.sizes import vit_size
from jepa_jax.models.transformer import Block, Transformer, rescale_by_depth
from jepa_jax.models.vision_transformer import VisionTransformer, make_encoder

GRID, PATCH, WIDTH, DEPTH, HEADS = (3, 4), 2, 16, 3, 2
PREDICTOR_WIDTH = 8
ENCODER = {
    "grid": GRID,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
}
CONTEXT = jnp.array([[0, 3, 5, 11], [1, 2, 6, 7]], jnp.int32)  # [B, K]
TARGETS = jnp.array([[[1, 2, 4], [2, 6, 9]], [[0, 4, 8], [8, 9, 10]]], jnp.int32)  # [B, M, T]


def random_params(module, *inputs, seed=0):
    """Parameters far from their initialisation, so that no part of the network hides another."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.2, 0.4, x.shape), jnp.float32), shapes)


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


# --- An independent statement of the architecture, in float64 NumPy --------------------------


def numpy_layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def numpy_transformer(x, p, num_heads):
    """x [N, D], one sequence: the loops below are over layers and heads."""
    depth, width = p["blocks"]["norm1"]["scale"].shape
    head_dim = width // num_heads
    for layer in range(depth):
        block = jax.tree.map(lambda leaf: leaf[layer], p["blocks"])  # noqa: B023
        y = numpy_layer_norm(x, block["norm1"])
        kernel = block["attention"]["qkv"]["kernel"].reshape(width, 3 * width)
        qkv = y @ kernel + block["attention"]["qkv"]["bias"].reshape(3 * width)
        heads = []
        for head in range(num_heads):
            query, key, value = (
                qkv[:, part * width + head * head_dim :][:, :head_dim] for part in range(3)
            )
            heads.append(softmax(query @ key.T / math.sqrt(head_dim), axis=-1) @ value)
        kernel = block["attention"]["proj"]["kernel"].reshape(width, width)
        x = x + np.concatenate(heads, axis=-1) @ kernel + block["attention"]["proj"]["bias"]
        y = numpy_layer_norm(x, block["norm2"])
        y = y @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"]
        y = y * (1 + erf(y / math.sqrt(2))) / 2
        x = x + y @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
    return numpy_layer_norm(x, p["norm"])


def numpy_positions(grid, width):
    """Element by element: sines then cosines of the column, then those of the row."""
    table = np.empty((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            token = table[row * grid[1] + column]
            for i in range(width // 4):
                frequency = 1 / 10000 ** (i / (width // 4))
                token[i] = math.sin(column * frequency)
                token[width // 4 + i] = math.cos(column * frequency)
                token[width // 2 + i] = math.sin(row * frequency)
                token[3 * width // 4 + i] = math.cos(row * frequency)
    return table


def numpy_encoder(p, image, index, positions, grid):
    """image [H, W, 3]; each patch is cut out by itself."""
    tokens = []
    for patch in index:
        row, column = divmod(int(patch), grid[1])
        pixels = image[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        embedded = pixels.reshape(-1) @ p["patch_embed"]["kernel"] + p["patch_embed"]["bias"]
        tokens.append(embedded + positions[patch])
    return numpy_transformer(np.stack(tokens), p["transformer"], HEADS)


def numpy_predictor(p, context, context_index, block, num_heads):
    """One image, one target block."""
    positions = numpy_positions(GRID, PREDICTOR_WIDTH)
    seen = context @ p["embed"]["kernel"] + p["embed"]["bias"] + positions[context_index]
    x = np.concatenate([seen, p["mask_token"] + positions[block]])
    x = numpy_transformer(x, p["transformer"], num_heads)[len(context_index) :]
    return x @ p["proj"]["kernel"] + p["proj"]["bias"]


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


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


# --- Sizes -----------------------------------------------------------------------------------


def transformer_size(width, depth, hidden):
    attention = 4 * width**2 + 4 * width  # qkv and proj, with biases
    mlp = 2 * width * hidden + hidden + width
    return depth * (attention + mlp + 4 * width) + 2 * width  # LayerNorms: two a block, one after


@pytest.mark.parametrize("pixels", [224, 448])
@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize(
    ("size", "width", "depth", "hidden", "predictor_depth"),
    [
        ("ti", 192, 12, 768, 6),
        ("s", 384, 12, 1536, 6),
        ("b", 768, 12, 3072, 6),
        ("l", 1024, 24, 4096, 12),
        ("h", 1280, 32, 5120, 12),
        ("g", 1408, 40, 6144, 16),
    ],
)
def test_all_published_sizes_have_their_shapes_and_numbers_of_parameters(
    size, width, depth, hidden, predictor_depth, patch, pixels
):
    side = pixels // patch
    encoder_fields, predictor_fields = vit_size(size)
    encoder = VisionTransformer(grid=(side, side), patch_size=patch, **encoder_fields)
    predictor = Predictor(grid=(side, side), output_dim=width, **predictor_fields)
    image = jax.ShapeDtypeStruct((2, pixels, pixels, 3), jnp.float32)
    context_index = jax.ShapeDtypeStruct((2, 60), jnp.int32)
    target_index = jax.ShapeDtypeStruct((2, 4, 30), jnp.int32)

    def init_with_output(image, context_index, target_index):
        key = jax.random.key(0)
        tokens, variables = encoder.init_with_output(key, image)
        context = encoder.apply(variables, image, context_index)
        prediction, predictor_variables = predictor.init_with_output(
            key, context, context_index, target_index
        )
        return (tokens, context, prediction), (variables, predictor_variables)

    outputs, variables = jax.eval_shape(init_with_output, image, context_index, target_index)
    assert [x.shape for x in outputs] == [
        (2, side * side, width),
        (2, 60, width),
        (2, 4, 30, width),
    ]
    counts = [sum(x.size for x in jax.tree.leaves(tree)) for tree in variables]
    narrow = 384
    assert counts == [
        (3 * patch**2 + 1) * width + transformer_size(width, depth, hidden),
        (width + 1) * narrow  # embed
        + narrow  # the mask vector
        + transformer_size(narrow, predictor_depth, 4 * narrow)
        + (narrow + 1) * width,  # proj
    ]


@pytest.mark.parametrize(
    ("size", "patch", "with_class_token_and_positions"),
    [  # timm's counts at 224 pixels without the classification head
        ("ti", 16, 5_524_416),
        ("s", 16, 21_665_664),
        ("b", 16, 85_798_656),
        ("l", 16, 303_301_632),
        ("h", 14, 630_764_800),
    ],
)
def test_encoders_have_the_literature_s_numbers_of_parameters(
    size, patch, with_class_token_and_positions
):
    fields, _ = vit_size(size)
    side = 224 // patch
    encoder = VisionTransformer(grid=(side, side), patch_size=patch, **fields)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    class_token_and_positions = (1 + 1 + side**2) * fields["embed_dim"]
    expected = with_class_token_and_positions - class_token_and_positions
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


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
            numpy_encoder(p, image, i, positions, GRID)
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
        [numpy_predictor(p, seen[b], CONTEXT[b], block, HEADS) for block in TARGETS[b]]
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


# --- Positions -------------------------------------------------------------------------------


def test_positions_are_sines_and_cosines_of_the_column_then_of_the_row():
    table = sincos_positions((3, 5), 16)
    np.testing.assert_allclose(table, numpy_positions((3, 5), 16), atol=1e-7)
    by_place = table.reshape(3, 5, 16)
    assert (by_place[:, :, :8] == by_place[:1, :, :8]).all()  # first half: the same in every row
    assert (by_place[:, :, 8:] == by_place[:, :1, 8:]).all()


def pillow_resize(table, grid, new_grid):
    """Each feature as a picture, enlarged by Pillow's bicubic filter."""
    channels = [
        np.asarray(Image.fromarray(channel).resize(new_grid[::-1], Image.Resampling.BICUBIC))
        for channel in np.moveaxis(table.reshape(*grid, -1), -1, 0)
    ]
    return np.stack(channels, axis=-1).reshape(new_grid[0] * new_grid[1], -1)


@pytest.mark.parametrize("new_grid", [(6, 8), (5, 11), (3, 9)])
def test_enlarged_positions_equal_pillow_s_bicubic_filter(new_grid):
    table = sincos_positions(GRID, WIDTH)
    ours = interpolate_positions(table, GRID, new_grid)
    np.testing.assert_allclose(ours, pillow_resize(table, GRID, new_grid), atol=1e-5)


def test_positions_at_the_model_s_own_grid_are_untouched():
    table = sincos_positions(GRID, WIDTH)
    np.testing.assert_array_equal(interpolate_positions(table, GRID, GRID), table)


@pytest.mark.parametrize("new_grid", [(16, 4), (4, 7), (28, 28)])
def test_a_ramp_of_positions_stays_that_ramp_away_from_the_edges(new_grid):
    grid = (8, 14)
    row, column = np.divmod(np.arange(8 * 14, dtype=np.float32), 14)
    ramps = np.stack([row, column], axis=1).astype(np.float32)  # [N, 2]
    ours = np.asarray(interpolate_positions(ramps, grid, new_grid)).reshape(*new_grid, 2)
    for axis in (0, 1):
        # Centres of the new patches, in the old ones' coordinates.
        centres = (np.arange(new_grid[axis]) + 0.5) * grid[axis] / new_grid[axis] - 0.5
        inside = (centres >= 1) & (centres <= grid[axis] - 2)  # all four neighbours exist
        assert inside.sum() >= 2
        along = np.moveaxis(ours[..., axis], axis, 0)[inside]
        np.testing.assert_allclose(
            along, np.broadcast_to(centres[inside, None], along.shape), atol=1e-5
        )


@pytest.mark.parametrize("new_grid", [(6, 9), (2, 3)])
def test_interpolation_commutes_with_reflection(new_grid):
    table = np.random.default_rng(4).normal(size=(12, 4)).astype(np.float32)
    mirrored = table.reshape(*GRID, 4)[::-1, ::-1].reshape(12, 4)
    ours = np.asarray(interpolate_positions(table, GRID, new_grid)).reshape(*new_grid, 4)
    theirs = np.asarray(interpolate_positions(mirrored, GRID, new_grid)).reshape(*new_grid, 4)
    np.testing.assert_allclose(theirs, ours[::-1, ::-1], atol=1e-6)


def test_an_image_of_another_size_is_encoded_at_interpolated_positions(params, encode):
    image = np.random.default_rng(5).normal(size=(1, 10, 16, 3))
    grid, index = (5, 8), np.array([[2, 17, 39]], np.int32)
    positions = pillow_resize(sincos_positions(GRID, WIDTH), GRID, grid)
    expected = numpy_encoder(as_float64(params), image[0], index[0], positions, grid)
    ours = encode(params, jnp.asarray(image, jnp.float32), index)
    np.testing.assert_allclose(ours[0], expected, rtol=1e-4, atol=1e-4)


# --- Stochastic depth ------------------------------------------------------------------------


def test_a_drop_path_rate_of_0_needs_no_random_key(params, images, encode):
    encoder = VisionTransformer(**ENCODER, drop_path_rate=0.0)
    training = jax.jit(lambda p, x: encoder.apply({"params": p}, x, deterministic=False))
    np.testing.assert_array_equal(training(params, images), encode(params, images))


def test_evaluation_ignores_the_drop_path_rate(params, images, encode):
    encoder = VisionTransformer(**ENCODER, drop_path_rate=0.5)
    evaluation = jax.jit(lambda p, x: encoder.apply({"params": p}, x))
    np.testing.assert_array_equal(evaluation(params, images), encode(params, images))


@pytest.fixture(scope="module")
def branches():
    """The scaled branches that 4000 examples kept at rates 0, 0.3, 0.6: float [B, 2, layers].

    All kernels are 0, so that a branch is the last bias on it: a vector of its own for each branch
    of each layer, from which the sum can be taken apart again.
    """
    depth, rate, width, examples = 3, 0.6, 8, 4000
    transformer = Transformer(depth=depth, num_heads=1, mlp_ratio=1.0, drop_path_rate=rate)
    x = jnp.zeros((examples, 1, width))
    params = jax.tree.map(jnp.zeros_like, random_params(transformer, x))
    params["blocks"]["attention"]["proj"]["bias"] = jnp.eye(width)[0:3]
    params["blocks"]["mlp"]["fc2"]["bias"] = jnp.eye(width)[3:6]
    params["norm"]["scale"] = jnp.ones(width)
    run = jax.jit(
        lambda key: transformer.apply(
            {"params": params}, x, deterministic=False, rngs={"drop_path": key}
        )
    )
    normalised = np.asarray(run(jax.random.key(0)), np.float64)[:, 0]  # [B, D]
    # The last LayerNorm shifts and scales; features 6 and 0 are known to be 0 and 1 before it,
    # because the first layer drops nothing.
    zero, one = normalised[:, 6:7], normalised[:, 0:1]
    kept = ((normalised - zero) / (one - zero))[:, :6]
    return kept.reshape(examples, 2, depth)


RATES = (0.0, 0.3, 0.6)  # linear from 0 to the last block's


def test_drop_path_rates_rise_linearly_from_0_to_the_given_rate(branches):
    dropped = (np.abs(branches) < 1e-3).mean(axis=0)  # [2, layers]
    # Five standard deviations of a share among 4000.
    np.testing.assert_allclose(dropped, [RATES, RATES], atol=5 * math.sqrt(0.25 / 4000))
    assert (dropped[:, 0] == 0).all()


def test_a_kept_branch_is_scaled_so_that_its_expectation_stays(branches):
    for layer, rate in enumerate(RATES):
        values = branches[:, :, layer]
        kept = values[np.abs(values) > 1e-3]
        np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-3)
    np.testing.assert_allclose(branches.mean(axis=0), 1.0, atol=0.1)


def test_branches_layers_and_examples_are_dropped_independently(branches):
    kept = (branches[:, :, 1:] > 1e-3).reshape(4000, 4)
    correlation = np.corrcoef(kept.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)
    assert len(np.unique(kept, axis=0)) == 16


def test_a_dropped_example_passes_its_block_unchanged():
    fields = {"num_heads": 2, "mlp_ratio": 2.0, "dtype": jnp.float32, "init_std": 0.02}
    block = Block(**fields, stochastic=True)
    x = jnp.asarray(np.random.default_rng(6).normal(size=(64, 3, 8)), jnp.float32)
    params = random_params(Block(**fields, stochastic=False), x, jnp.float32(0.5))
    run = jax.jit(
        lambda key: block.apply({"params": params}, x, jnp.float32(0.5), rngs={"drop_path": key})[0]
    )
    unchanged = (run(jax.random.key(1)) == x).all(axis=(1, 2))  # both branches dropped: a quarter
    assert 4 <= unchanged.sum() <= 30


# --- Initialisation --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def initial(images):
    """The parameters of an encoder and of a predictor, by their paths."""
    encoder = VisionTransformer(**ENCODER)
    predictor = Predictor(
        grid=GRID, output_dim=WIDTH, embed_dim=64, depth=2, num_heads=2, init_std=0.05
    )

    @jax.jit
    def init(key):
        context = jnp.zeros((*CONTEXT.shape, WIDTH))
        return {
            "encoder": encoder.init(key, images),
            "predictor": predictor.init(key, context, CONTEXT, TARGETS),
        }

    leaves, _ = jax.tree_util.tree_flatten_with_path(init(jax.random.key(0)))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def test_kernels_and_the_mask_vector_start_normal_with_the_given_deviation(initial):
    names = [name for name in initial if name.endswith(("kernel", "mask_token"))]
    assert len(names) == 1 + 4 + 2 + 4 + 1  # patch_embed; blocks; embed, proj; blocks; mask_token
    for name in names:
        values = initial[name].ravel()
        deviation = 0.02 if name.startswith("encoder") else 0.05  # 0.02: the published default
        error = 5 / math.sqrt(2 * values.size)  # of an estimated deviation, five times
        np.testing.assert_allclose(values.std(), deviation, rtol=error)
        assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)


def test_the_configured_deviation_reaches_both_networks(tiny):
    tiny.init.std = 0.07
    assert make_encoder(resolve(tiny)).init_std == make_predictor(resolve(tiny)).init_std == 0.07


def test_biases_start_at_0_and_layer_norm_scales_at_1(initial):
    for name, values in initial.items():
        if not name.endswith(("kernel", "mask_token")):
            assert (values == (1.0 if name.endswith("scale") else 0.0)).all()


def test_no_two_layers_start_alike(initial):
    for name, values in initial.items():
        if "blocks" in name and name.endswith("kernel"):
            layers = values.reshape(len(values), -1)
            assert np.abs(np.corrcoef(layers) - np.eye(len(layers))).max() < 0.4


def test_depth_rescale_divides_exactly_the_last_kernel_of_each_branch(params):
    transformer = params["transformer"]
    rescaled = jax.tree.map(np.asarray, rescale_by_depth(transformer))
    ratio = jax.tree.map(lambda new, old: new / np.asarray(old), rescaled, transformer)
    divisor = 1 / np.sqrt([2.0, 4.0, 6.0])  # layers 1, 2, 3
    for branch, dense in (("attention", "proj"), ("mlp", "fc2")):
        found = ratio["blocks"][branch][dense].pop("kernel").reshape(DEPTH, -1)
        np.testing.assert_allclose(found, np.broadcast_to(divisor[:, None], found.shape), rtol=1e-6)
    assert all((leaf == 1.0).all() for leaf in jax.tree.leaves(ratio))
