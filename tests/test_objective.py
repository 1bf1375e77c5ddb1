import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ijepa_loss, load_config_file

from jepa_jax.config import EmaConfig, resolve
from jepa_jax.models.predictor import make_predictor
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.ema import momentum_at
from jepa_jax.objectives.ijepa import (
    gather_blocks,
    prediction_loss,
    target_tokens,
)
from jepa_jax.objectives.registry import make_objective
from jepa_jax.objectives.statistics import sigreg

# A 3 x 4 grid: [B, K] and [B, M, T].
CONTEXT = jnp.array([[0, 3, 5, 11], [1, 2, 6, 7]], jnp.int32)
TARGETS = jnp.array([[[1, 2, 4], [2, 6, 9]], [[0, 4, 8], [8, 9, 10]]], jnp.int32)


@pytest.fixture(scope="module")
def config():
    config = load_config_file("fashion_mnist")
    config.data.image_size = (12, 16)
    config.model.update({"embed_dim": 8, "depth": 2, "num_heads": 2})
    config.compute.scan_layers = True
    config.objective.predictor.update({"embed_dim": 8, "depth": 1, "num_heads": 2})
    config.objective.masks.context_tokens = 4
    return config


@pytest.fixture(scope="module")
def objective(config):
    return make_objective(resolve(config))


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.1, 0.4, x.shape), jnp.float32), tree)


@pytest.fixture(scope="module")
def params(objective):
    return random_like(jax.eval_shape(objective.init, jax.random.key(0)), seed=1)


@pytest.fixture(scope="module")
def target(objective, params):
    """Parameters of the target encoder, unlike those of the context encoder."""
    return random_like(params["encoder"], seed=2)


@pytest.fixture(scope="module")
def batch():
    image = np.random.default_rng(3).normal(size=(2, 12, 16, 3))
    return {
        "image": jnp.asarray(image, jnp.float32),
        "context_index": CONTEXT,
        "target_index": TARGETS,
    }


@pytest.fixture(scope="module")
def loss(objective):
    return jax.jit(lambda *arguments: ijepa_loss(objective)(*arguments, KEY))


KEY = jax.random.key(0)


def numpy_normalised(tokens):
    """LayerNorm without parameters, eps 1e-5, in float64."""
    tokens = np.asarray(tokens, np.float64)
    centred = tokens - tokens.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


@pytest.fixture
def differences():
    """Predictions [B, M, T, D] and targets whose differences lie on both sides of +-1."""
    rng = np.random.default_rng(4)
    predictions, targets = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    assert 0.2 < (np.abs(predictions - targets) < 1).mean() < 0.8
    return predictions, targets


def test_l2_is_the_mean_square(differences):
    predictions, targets = differences
    expected = np.mean((predictions.astype(np.float64) - targets) ** 2)
    ours = prediction_loss(jnp.asarray(predictions), jnp.asarray(targets), "l2")
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_smooth_l1_is_a_parabola_below_1_and_a_line_above(differences):
    predictions, targets = differences
    expected = np.mean(
        [
            0.5 * d * d if abs(d) < 1 else abs(d) - 0.5
            for d in (predictions.astype(np.float64) - targets).ravel()
        ]
    )
    ours = prediction_loss(jnp.asarray(predictions), jnp.asarray(targets), "smooth_l1")
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_losses_of_bfloat16_predictions_are_taken_in_float32(differences):
    predictions, targets = map(jnp.asarray, differences)
    rounded = predictions.astype(jnp.bfloat16)
    ours = prediction_loss(rounded, targets, "l2")
    assert ours.dtype == jnp.float32
    expected = np.mean((np.asarray(rounded, np.float64) - np.asarray(targets)) ** 2)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-2])  # at 1e-2 the eps counts for a tenth
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_target_tokens_are_normalised_in_float32_with_eps_1e_5(scale, dtype):
    tokens = np.random.default_rng(5).normal(0.5, 1.0, (2, 3, 64)) * scale
    tokens = jnp.asarray(tokens, dtype)
    ours = target_tokens(tokens)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, numpy_normalised(tokens.astype(jnp.float32)), atol=2e-5)


def test_batch_targets_have_no_mean_and_unit_deviation_at_each_position():
    tokens = np.random.default_rng(5).normal(0.5, 2.0, (6, 3, 8)).astype(np.float32)
    expected = np.empty_like(tokens, np.float64)
    for position in range(3):
        for feature in range(8):
            column = tokens[:, position, feature].astype(np.float64)
            deviation = np.sqrt(np.mean((column - column.mean()) ** 2) + 1e-5)
            expected[:, position, feature] = (column - column.mean()) / deviation
    np.testing.assert_allclose(target_tokens(jnp.asarray(tokens), "batch"), expected, atol=1e-5)


def changed(config, **settings):
    config = config.copy_and_resolve_references()
    config.objective.update(settings)
    return make_objective(resolve(config))


def test_batch_targets_forget_what_all_images_share(config, params, target, batch):
    """Images that are all alike leave nothing to predict: every target is 0."""
    objective = changed(config, target_norm="batch")
    alike = batch | {"image": jnp.broadcast_to(batch["image"][:1], batch["image"].shape)}
    params = params | {"predictor": jax.tree.map(jnp.zeros_like, params["predictor"])}
    value = jax.jit(lambda *a: ijepa_loss(objective)(*a, KEY))(params, target, alike)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    assert not objective.mean_over_examples


@pytest.mark.parametrize("name", ["variance_covariance", "sigreg"])
def test_the_regularizer_adds_its_terms_of_the_context_encoder_s_mean_token(
    config, params, target, batch, loss, name
):
    weights = {"variance_weight": 0.3, "covariance_weight": 0.7}
    if name == "sigreg":
        weights = {"weight": 0.4, "num_directions": 8}
    objective = changed(config, regularizer={"name": name, **weights})
    value = jax.jit(lambda *a: ijepa_loss(objective)(*a, KEY))(params, target, batch)
    without = loss(params, target, batch)
    encoder = make_encoder(resolve(config))
    context = encoder.apply(
        {"params": params["encoder"]}, batch["image"], batch["context_index"]
    )  # [B, K, D]
    pooled = np.asarray(context, np.float64).mean(1)
    if name == "sigreg":
        key = jax.random.fold_in(KEY, 1)
        added = 0.4 * sigreg(jnp.asarray(pooled, jnp.float32), key, num_directions=8) / 2
    else:
        covariance = np.cov(pooled.T)
        short = np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean()
        off_diagonal = covariance - np.diag(np.diag(covariance))
        added = 0.3 * short + 0.7 * (off_diagonal**2).sum() / pooled.shape[1]
    np.testing.assert_allclose(value - without, added, rtol=1e-4)
    assert not objective.mean_over_examples


@pytest.mark.parametrize("horizon", [60.0, 460.0, 3744.0])
@pytest.mark.parametrize("share", [0.5, 1e-3])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_target_keeps_the_share_of_its_start_that_is_asked_for(horizon, share, schedule):
    ema = EmaConfig(kept_share=share, schedule=schedule)
    momenta = np.asarray(momentum_at(ema, jnp.arange(int(horizon)), horizon), np.float64)
    np.testing.assert_allclose(np.prod(momenta), share, rtol=2e-3)
    assert (np.diff(momenta) >= 0).all()
    np.testing.assert_allclose(momentum_at(ema, int(horizon), horizon), 1.0)


def test_gather_blocks_takes_each_block_s_tokens():
    tokens = np.random.default_rng(6).normal(size=(2, 12, 5)).astype(np.float32)
    expected = [[tokens[b][TARGETS[b, m]] for m in range(2)] for b in range(2)]
    np.testing.assert_array_equal(gather_blocks(jnp.asarray(tokens), TARGETS), expected)


@pytest.mark.parametrize("kind", ["l2", "smooth_l1"])
def test_the_loss_is_that_of_the_three_networks_put_together(config, params, target, batch, kind):
    config = config.copy_and_resolve_references()
    config.objective.loss = kind
    config = resolve(config)
    encoder = make_encoder(config)
    predictor = make_predictor(config, config.objective.predictor, output_dim=8)

    @jax.jit
    def networks(params, target, batch):
        context = encoder.apply({"params": params["encoder"]}, batch["image"], CONTEXT)
        predictions = predictor.apply({"params": params["predictor"]}, context, CONTEXT, TARGETS)
        return encoder.apply({"params": target}, batch["image"]), predictions

    tokens, predictions = networks(params, target, batch)
    targets = numpy_normalised(tokens)[np.arange(2)[:, None, None], TARGETS]
    distance = np.abs(predictions - targets)
    expected = {
        "l2": np.mean(distance**2),
        "smooth_l1": np.mean(np.where(distance < 1, 0.5 * distance**2, distance - 0.5)),
    }
    ours = jax.jit(ijepa_loss(make_objective(config)))(params, target, batch, KEY)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected[kind], rtol=1e-5)


def test_target_encoder_receives_no_gradient_and_every_other_parameter_does(
    objective, params, target, batch
):
    gradient = jax.jit(jax.grad(ijepa_loss(objective), argnums=(0, 1)))
    of_params, of_target = gradient(params, target, batch, KEY)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(of_target))
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(of_params))


def test_gradient_of_the_loss_has_no_scatter(objective, params, target, batch):
    text = str(jax.make_jaxpr(jax.grad(ijepa_loss(objective)))(params, target, batch, KEY))
    assert "gather" in text
    assert "scatter" not in text.replace("GatherScatterMode", "")


def hide(image, patch, value):
    """`image` with one patch of its 3 x 4 grid overwritten."""
    row, column = divmod(patch, 4)
    return image.at[:, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].set(value)


def test_pixels_outside_the_context_count_only_through_the_targets(params, target, batch, loss):
    constant = jax.tree.map(jnp.copy, target)  # a target encoder that says the same of any image
    constant["transformer"]["norm"]["scale"] *= 0.0
    changed = batch | {"image": hide(batch["image"], 10, 3.0)}  # in neither context
    assert loss(params, constant, changed) == loss(params, constant, batch)
    assert loss(params, target, changed) != loss(params, target, batch)


def test_pixels_of_the_context_count_through_both(params, target, batch, loss):
    constant = jax.tree.map(jnp.copy, target)
    constant["transformer"]["norm"]["scale"] *= 0.0
    changed = batch | {"image": hide(batch["image"], 3, 3.0)}  # in the first image's context
    assert loss(params, constant, changed) != loss(params, constant, batch)


def test_a_block_s_loss_does_not_depend_on_the_other_blocks(params, target, batch, loss):
    alone = [
        loss(params, target, batch | {"target_index": TARGETS[:, block : block + 1]})
        for block in range(2)
    ]
    np.testing.assert_allclose(loss(params, target, batch), np.mean(alone), rtol=1e-6)


def test_stochastic_depth_is_drawn_from_the_key_given(config, params, target, batch):
    config = config.copy_and_resolve_references()
    config.model.drop_path_rate = 0.5
    loss = jax.jit(ijepa_loss(make_objective(resolve(config))))
    losses = [float(loss(params, target, batch, jax.random.key(seed))) for seed in (0, 1, 2, 3, 0)]
    assert losses[0] == losses[4]
    assert len(set(losses)) > 1


def test_encode_is_the_target_encoder_s_output_in_float32(config, objective, target, batch):
    encoder = make_encoder(resolve(config))
    expected = jax.jit(encoder.apply)({"params": target}, batch["image"])
    np.testing.assert_allclose(
        jax.jit(objective.encode)(target, batch["image"]), expected, atol=1e-6
    )
    config = config.copy_and_resolve_references()
    config.compute.dtype = "bfloat16"
    encode = make_objective(resolve(config)).encode
    assert jax.eval_shape(encode, target, batch["image"]).dtype == jnp.float32


def test_depth_rescale_changes_the_start_of_exactly_the_branches_last_kernels(config, objective):
    config = config.copy_and_resolve_references()
    config.init.depth_rescale = True
    rescaled = make_objective(resolve(config))
    plain, ours = jax.jit(lambda key: (objective.init(key), rescaled.init(key)))(KEY)
    ratios = {}
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(ours), strict=True
    ):
        if not (old == new).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            ratios[name] = (new / old).reshape(len(old), -1)
    depths = {"encoder": [2.0, 4.0], "predictor": [2.0]}
    assert ratios.keys() == {
        f"{network}/transformer/blocks/{kernel}/kernel"
        for network in depths
        for kernel in ("attention/proj", "mlp/fc2")
    }
    for name, ratio in ratios.items():
        expected = 1 / np.sqrt(depths[name.split("/")[0]])[:, None]
        np.testing.assert_allclose(ratio, np.broadcast_to(expected, ratio.shape), rtol=1e-5)
