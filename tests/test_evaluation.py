"""Features, probes, diagnostics and pictures, against scikit-learn, NumPy and known answers."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import load_config_file
from sklearn.neighbors import NearestNeighbors

from jepa_jax.config import ProbeConfig, probe_data, resolve, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.errors import UserError
from jepa_jax.evaluation.features import pooled_features, raw_pixels
from jepa_jax.evaluation.probes import LabelledFeatures, knn_accuracy, probe
from jepa_jax.reporting.pictures import (
    curves_picture,
    displayable,
    principal_colours,
)
from jepa_jax.training.diagnostics import effective_rank, mean_cosine, position_share
from jepa_jax.training.metrics import MetricsWriter, read_metrics


def clusters(n, seed, noise=0.5):
    """Three classes, around points that are the same for each seed."""
    centres = np.random.default_rng(0).normal(size=(3, 8))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3)
    features = centres[labels] + noise * rng.normal(size=(n, 8))
    # Features on very different scales, so that standardisation matters.
    return LabelledFeatures((features * 10.0 ** np.arange(8)).astype(np.float32), labels)


def probe_config(protocol="knn", **fields) -> ProbeConfig:
    config = resolve_probe(load_config(f"configs/probe/{protocol}.py", []))
    return dataclasses.replace(config, **fields)


def test_knn_equals_a_vote_by_hand():
    train, test = clusters(300, 1, noise=1.0), clusters(200, 2, noise=1.0)
    result = probe(probe_config(candidates=(5.0,)), train, test)
    mean, std = train.features.mean(0), train.features.std(0)
    neighbours = NearestNeighbors(n_neighbors=5).fit((train.features - mean) / std)
    index = neighbours.kneighbors((test.features - mean) / std, return_distance=False)
    votes = np.stack([np.bincount(v, minlength=3) for v in train.labels[index]])
    assert result["accuracy"] == pytest.approx(np.mean(votes.argmax(1) == test.labels), abs=0.006)
    assert knn_accuracy(train, test, neighbors=5) == result["accuracy"]


def test_the_linear_probe_finds_linear_classes():
    train, test = clusters(600, 1), clusters(200, 2)
    config = probe_config(protocol="linear", candidates=(0.01, 1.0))
    assert probe(config, train, test)["accuracy"] > 0.95
    shuffled = LabelledFeatures(train.features, np.random.default_rng(0).permutation(train.labels))
    assert probe(config, shuffled, test)["accuracy"] < 0.6


def test_the_hyperparameter_is_chosen_without_the_test_images():
    train = clusters(300, 1, noise=1.5)
    config = probe_config(candidates=(1.0, 9.0, 25.0))
    results = [probe(config, train, clusters(60, seed, noise=1.5)) for seed in (2, 3)]
    assert results[0]["validation"] == results[1]["validation"]
    assert results[0]["chosen"] == results[1]["chosen"]
    validation = results[0]["validation"]
    assert validation[results[0]["chosen"]] == max(validation.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": (1.0, 500.0)}, "only 240 images to be neighbours"),
        ({"validation_fraction": 0.001}, "needs at least one on either side"),
    ],
)
def test_too_few_images_for_a_probe_give_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        probe(probe_config(**fields), clusters(300, 1), clusters(60, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": ()}, "must be one or more values above 0"),
        ({"candidates": (1.5,)}, "must be whole numbers of neighbours"),
        ({"validation_fraction": 1.0}, "must be between 0 and 1"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"protocol": "svm"}, "must be one of knn, linear"),
        ({"layers": (0,)}, "must be one or more blocks below 0, ascending"),
    ],
)
def test_bad_probe_configs_give_one_line(fields, message):
    config = load_config("configs/probe/knn.py", []) | fields
    with pytest.raises(UserError, match=message):
        resolve_probe(config)


def test_a_probe_may_use_other_data_than_the_training():
    trained = resolve(load_config_file("fashion_mnist"))
    data = probe_data(probe_config(data={"image_size": (56, 56)}), trained)
    assert data == dataclasses.replace(trained.data, image_size=(56, 56))
    with pytest.raises(UserError, match=r"config\.data\.size: no such field"):
        probe_data(probe_config(data={"size": 3}), trained)
    with pytest.raises(UserError, match=r"multiple of config.model.patch_size"):
        probe_data(probe_config(data={"image_size": (30, 30)}), trained)


def test_pooling_gives_every_image_once_whatever_the_batches():
    images = np.random.default_rng(0).normal(size=(10, 4, 4, 3)).astype(np.float32)
    shapes = []

    def pool(target, batch):
        shapes.append(batch.shape)
        return jnp.asarray(batch.mean(axis=(1, 2)) * target)

    features = pooled_features(pool, 2.0, [images[:4], images[4:8], images[8:]])
    np.testing.assert_allclose(features, 2 * images.mean(axis=(1, 2)), rtol=1e-6)
    assert set(shapes) == {(4, 4, 4, 3)}


def test_grey_pixels_count_once():
    colour = np.random.default_rng(0).normal(size=(5, 2, 2, 3)).astype(np.float32)
    assert raw_pixels(colour).shape == (5, 12)
    grey = colour[..., :1].repeat(3, axis=-1)
    np.testing.assert_array_equal(raw_pixels(grey), grey[..., 0].reshape(5, 4))


def test_position_share_is_the_variance_between_positions_that_all_images_share():
    tokens = np.random.default_rng(0).normal(size=(6, 4, 3)) + np.arange(4)[None, :, None]
    total = sum(np.mean((tokens[..., d] - tokens[..., d].mean()) ** 2) for d in range(3))
    shared = 0.0
    for d in range(3):
        means = [np.mean([tokens[b, n, d] for b in range(6)]) for n in range(4)]
        shared += np.mean((np.array(means) - np.mean(means)) ** 2)
    ours = position_share(jnp.asarray(tokens, jnp.float32))
    np.testing.assert_allclose(ours, shared / total, rtol=1e-5)
    alike = jnp.broadcast_to(jnp.asarray(tokens[:1], jnp.float32), (6, 4, 3))
    np.testing.assert_allclose(position_share(alike), 1.0, rtol=1e-5)


def test_effective_rank_is_the_exponential_of_the_entropy():
    features = np.random.default_rng(0).normal(size=(40, 12)) * np.linspace(0.1, 3, 12)
    values = np.linalg.svd(features, compute_uv=False)
    expected = np.exp(scipy.special.entr(values / values.sum()).sum())
    assert effective_rank(jnp.asarray(features, jnp.float32)) == pytest.approx(expected, rel=1e-4)
    assert effective_rank(jnp.eye(8)) == pytest.approx(8, rel=1e-4)
    assert effective_rank(jnp.ones((8, 5))) == pytest.approx(1, rel=1e-3)


def test_mean_cosine_is_over_pairs_of_different_images():
    features = np.random.default_rng(0).normal(size=(9, 4)) + 0.5
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(9) for j in range(9) if i != j]
    ours = mean_cosine(jnp.asarray(features, jnp.float32))
    assert ours == pytest.approx(np.mean(pairs), abs=1e-5)


def test_metrics_of_steps_to_come_are_dropped_on_resuming(tmp_path):
    writer = MetricsWriter(tmp_path, start_step=0)
    for step in (10, 20, 30):
        writer.write(step, {"loss": step / 10})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # a crash in mid-line
    writer = MetricsWriter(tmp_path, start_step=20)
    writer.write(25, {"loss": 0.5})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 25, "loss": 0.5},
    ]


@pytest.mark.parametrize("damage", [b'{"step": 20, "lo', b"[]", b"\xff\xfe", b'{"loss": 1.0}'])
def test_a_damaged_line_of_metrics_costs_that_line_alone_and_is_kept_aside(
    tmp_path, caplog, damage
):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.5}).encode() for step in (10, 20, 30)]
    before = b"\n".join([lines[0], damage, lines[2], b""])
    path.write_bytes(before)
    assert [row["step"] for row in read_metrics(path)] == [10, 30]
    MetricsWriter(tmp_path, start_step=30).close()
    assert path.read_bytes() == b"\n".join([lines[0], lines[2], b""])
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    assert "left out: line 2; as it was: metrics.jsonl.damaged" in caplog.text


def test_principal_colours_lie_in_0_to_1_and_ignore_positions():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(6, 9, 16)).astype(np.float32)
    colours = principal_colours(tokens)
    assert colours.shape == (6, 9, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    shifted = principal_colours(tokens + 5 * rng.normal(size=(9, 16)).astype(np.float32))
    np.testing.assert_allclose(colours, shifted, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (3, [0, 1, 2]), (13, [0, 1, 2])])
def test_images_of_any_channels_are_displayed_as_colours(dtype, channels, shown):
    most = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, most + 1, (2, 4, 4, channels), dtype)
    np.testing.assert_allclose(displayable(pixels), pixels[..., shown] / most, atol=1e-6)


def test_curves_are_drawn_also_of_few_metrics(tmp_path, tiny):
    config = resolve(tiny)
    curves_picture(tmp_path / "curves.png", config, [{"step": 1, "loss": 1.0}])
    assert (tmp_path / "curves.png").stat().st_size > 1000
