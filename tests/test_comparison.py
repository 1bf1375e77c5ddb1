"""A comparison with controls: what is reduced, what is said while it works, and at the end."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import randomized
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from jepa_jax.config import resolve, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import array_source
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation import comparison, extraction, probes, reduction
from jepa_jax.evaluation.comparison import Representation, features_of, probe_each
from jepa_jax.evaluation.probes import LabelledFeatures, probe
from jepa_jax.evaluation.reduction import reduce
from jepa_jax.evaluation.table import judge, print_table, reduced_of
from jepa_jax.objectives.registry import make_objective


def wide(n=40, num_test=10, columns=1500):
    """Training images with columns of very different scales, and test images in their span."""
    rng = np.random.default_rng(0)
    train = rng.normal(size=(n, columns)) * 10 ** rng.uniform(-2, 2, columns) + 3
    weights = rng.dirichlet(np.ones(n), num_test)
    labelled = (
        LabelledFeatures(x.astype(np.float32), np.arange(len(x)) % 2)
        for x in (train, weights @ train)
    )
    return tuple(labelled)


def test_principal_components_keep_the_distances_of_all_standardised_columns():
    """With as many components as the training images can span, exactly, up to one factor."""
    train, test = wide()
    reduced_train, reduced_test = reduce(train, test)
    assert reduced_train.features.shape == (40, 39)
    assert reduced_test.features.shape == (10, 39)
    mean, std = (getattr(train.features.astype(np.float64), name)(0) for name in ("mean", "std"))
    expected = cdist((test.features - mean) / std, (train.features - mean) / std)
    ratio = cdist(reduced_test.features, reduced_train.features) / expected
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    assert reduced_train.features.var(axis=0).mean() == pytest.approx(1, rel=0.05)


def test_components_are_those_of_the_training_images_alone_and_always_the_same():
    train, test = wide(n=300)
    other = LabelledFeatures(100 * test.features[::-1] + 7, test.labels)
    first, second = reduce(train, test)[0], reduce(train, other)[0]
    assert first.features.shape == (300, 256)
    np.testing.assert_array_equal(first.features, second.features)


def test_components_are_found_on_some_images_where_there_are_many(monkeypatch):
    """In any chunks, and in the order of the images."""
    train, test = wide(n=60)
    monkeypatch.setattr(reduction, "_FIT_IMAGES", 20)
    whole = reduce(train, test)
    monkeypatch.setattr(reduction, "_CHUNK", 7)
    for one, other in zip(whole, reduce(train, test), strict=True):
        assert one.features.shape == (len(one.labels), 19)
        np.testing.assert_allclose(one.features, other.features, atol=1e-4)


def test_a_probe_leaves_the_scale_of_standardised_features_alone():
    """By a vote by hand, where the second column is noise that standardising would blow up."""
    rng = np.random.default_rng(0)

    def draw(n):
        labels = np.arange(n) % 2
        columns = (labels + 0.2 * rng.normal(size=n), *(0.01 * rng.normal(size=(20, n))))
        return LabelledFeatures(np.stack(columns, 1).astype(np.float32), labels, standardised=True)

    train, test = draw(100), draw(60)
    config = dataclasses.replace(
        resolve_probe(load_config("configs/probe/knn.py", [])), candidates=(5.0,)
    )
    neighbours = NearestNeighbors(n_neighbors=5).fit(train.features)
    index = neighbours.kneighbors(test.features, return_distance=False)
    expected = np.mean((train.labels[index].mean(1) > 0.5) == test.labels)
    assert probe(config, train, test)["accuracy"] == pytest.approx(expected)
    again = [dataclasses.replace(split, standardised=False) for split in (train, test)]
    assert probe(config, *again)["accuracy"] < expected


@pytest.mark.parametrize(
    ("channels", "reduced"), [(3, {"columns": 28 * 28 * 3, "components": 21}), (1, None)]
)
def test_images_are_read_once_and_only_wide_pixels_reduced(monkeypatch, tiny, channels, reduced):
    config = resolve(tiny)
    objective = make_objective(config)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 28, 28, channels), np.uint8)
    labels = np.arange(30, dtype=np.int64) % 3
    sources = {
        "train": array_source(pixels[:22], labels[:22], ("a", "b", "c"), (28, 28)),
        "test": array_source(pixels[22:], labels[22:], ("a", "b", "c"), (28, 28)),
    }
    reads = []

    def counted(data, source, **options):
        reads.append(source)
        return eval_batches(data, source, **options)

    monkeypatch.setattr(comparison, "open_source", lambda data, split: sources[split])
    monkeypatch.setattr(extraction, "eval_batches", counted)
    encoders = {
        name: jax.device_put(randomized(objective, i)["encoder"], jax.devices()[0])
        for i, name in enumerate("ab")
    }  # as a checkpoint is restored
    found = features_of(config.data, objective, encoders, batch_size=8, pixels=True)
    assert reads == [sources["train"], sources["test"]]
    assert list(found) == ["a", "b", "raw_pixels"]
    for split, part in (("train", slice(22)), ("test", slice(22, None))):
        images = (pixels[part] / 255 - config.data.mean) / config.data.std
        images = images.astype(np.float32)
        for name, weights in encoders.items():
            labelled = getattr(found[name], split)
            expected = jax.jit(objective.encode)(weights, images).mean(axis=1)
            np.testing.assert_allclose(labelled.rows.all(), expected, atol=1e-4)
            np.testing.assert_array_equal(labelled.labels, labels[part])
    assert found["a"].reduced is None
    assert found["raw_pixels"].reduced == reduced
    if reduced is None:  # the bundled images are such
        expected = images[..., 0].reshape(8, -1)
        np.testing.assert_allclose(found["raw_pixels"].test.rows.all(), expected, atol=1e-4)
    without = features_of(config.data, objective, encoders, batch_size=8, pixels=False)
    assert list(without) == ["a", "b"]


def test_training_images_of_one_class_are_no_data_for_a_probe(monkeypatch, tiny):
    """Of either protocol; told before any image is encoded."""
    config = resolve(tiny)
    pixels = np.zeros((12, 28, 28, 3), np.uint8)
    source = array_source(pixels, np.full(12, 1), ("ant", "bee"), (28, 28))
    monkeypatch.setattr(comparison, "open_source", lambda data, split: source)
    monkeypatch.setattr(extraction, "eval_batches", None)
    with pytest.raises(UserError, match=r"all training images are of one class, bee;"):
        features_of(config.data, make_objective(config), {}, batch_size=8, pixels=True)


@pytest.mark.parametrize("bad_share", [0.2, 0.0])
def test_bad_images_are_left_out_with_their_labels_up_to_their_share(tiny, tmp_path, bad_share):
    for split in ("train", "test"):
        for i in range(10):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((28, 28, 3), 20 * i, np.uint8)).save(path)
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"no image")
    tiny.data.update({"source": "folder", "path": str(tmp_path), "bad_share": bad_share})
    config = resolve(tiny)
    asked = (config.data, make_objective(config), {})
    if not bad_share:
        with pytest.raises(StoppedRunError, match=r"1 of 10 train images are bad, more than"):
            features_of(*asked, batch_size=4, pixels=True)
        return
    pixels = features_of(*asked, batch_size=4, pixels=True)["raw_pixels"]
    np.testing.assert_array_equal(pixels.train.labels, [0] * 5 + [1] * 4)
    assert len(pixels.train.features) == 9
    assert len(np.unique(pixels.train.features, axis=0)) == 9  # nor does its neighbour come twice
    np.testing.assert_array_equal(pixels.test.labels, [0] * 5 + [1] * 5)


def test_each_probe_says_what_it_is_at_and_how_long_it_took(monkeypatch, capsys):
    monkeypatch.setattr(probes, "_SLOW_SECONDS", 0.0)
    train, test = wide(columns=8)
    config = resolve_probe(load_config("configs/probe/linear.py", ["--config.candidates=(0.01,)"]))
    result = probe_each(config, {"raw_pixels": Representation(train, test, 8)})
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "linear probe, raw pixels: C of 0.01 ..."
    assert said[1].startswith("linear probe, raw pixels: fitted with C = 0.01 in ")
    accuracy = result["raw_pixels"]["accuracy"]
    assert said[-1].startswith(f"linear probe, raw pixels: {accuracy:.3f} in ")


def test_the_table_says_what_was_reduced_and_how_sure_each_number_is(capsys):
    train, test = wide(columns=8)
    reduced = reduced_of(
        {
            "pretrained": Representation(train, test, 8),
            "raw_pixels": Representation(train, test, 27_648),
        }
    )
    rows = {
        "pretrained": {"accuracy": 0.5, "interval": (0.4, 0.6)},
        "raw_pixels": {"accuracy": 0.25, "interval": (0.125, 0.375)},
    }
    print_table({"knn": rows}, reduced=reduced, num_test=10)
    assert capsys.readouterr().err.splitlines()[1:] == [
        "test accuracy                      knn",
        "pretrained           0.500 0.400-0.600",
        "raw pixels           0.250 0.125-0.375",
        "raw pixels: 27,648 columns, reduced to 8 principal components of the training images",
        "",
    ]


@pytest.mark.parametrize(
    ("pretrained", "says"),
    [
        ((0.5, 0.6), "below its own random initialisation: by 0.100 (knn), by 0.050 (linear); one"),
        (
            (0.5, 0.7),
            "below its own random initialisation: by 0.100 (knn); one standard error is 0",
        ),
        ((0.7, 0.7), "pretrained: above its random initialisation, below raw pixels by 0.100 (knn"),
        ((0.6, 0.7), None),  # neither above nor below
        ((0.9, 0.9), None),
    ],
)
def test_an_encoder_below_a_control_gets_a_sentence(pretrained, says):
    accuracies = {
        protocol: {"pretrained": own, "random_init": random_init, "raw_pixels": 0.8}
        for protocol, own, random_init in zip(
            ("knn", "linear"), pretrained, (0.6, 0.65), strict=True
        )
    }
    sentence = judge(accuracies, 200)
    assert sentence is None if says is None else says in sentence


def test_the_standard_error_is_that_of_a_share_and_without_controls_nothing_is_said():
    sentence = judge({"knn": {"pretrained": 0.5, "random_init": 0.6}}, 100)
    assert "one standard error is 0.050" in sentence  # sqrt(0.5 * 0.5 / 100)
    assert judge({"knn": {"pretrained": 0.5}}, 100) is None
