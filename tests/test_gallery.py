"""What a run draws of itself, and its k-NN between training images."""

import dataclasses
import io
import logging
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import stream_of
from PIL import Image
from sklearn.linear_model import LogisticRegression
from tensorboardX.proto.event_pb2 import Event

from jepa_jax.config import resolve
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import array_source, open_source
from jepa_jax.evaluation.online import online_probes
from jepa_jax.objectives.objective import initial_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.reporting import gallery
from jepa_jax.reporting.gallery import make_gallery
from jepa_jax.training import checkpoint
from jepa_jax.training.loop import train
from jepa_jax.training.periods import Timer


def bars(number, labels=True):
    """Dark images with one bright bar, upright or lying: two classes that are easily told apart."""
    rng = np.random.default_rng(0)
    classes = np.arange(number) % 2
    images = rng.integers(0, 20, (number, 28, 28, 1), np.uint8)
    for image, upright in zip(images, classes, strict=True):
        at = rng.integers(0, 24)
        (image if upright else image.transpose(1, 0, 2))[:, at : at + 4] = 250
    names = ("lying", "upright") if labels else ()
    return array_source(images, classes if labels else None, names, (28, 28))


def tensorboard_pictures(workdir):
    """(step, name, pixels) of each; a record is its length, a checksum, itself, a checksum."""
    found = []
    for path in (workdir / "tensorboard").iterdir():
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                if value.HasField("image"):
                    png = io.BytesIO(value.image.encoded_image_string)
                    found.append((event.step, value.tag, np.asarray(Image.open(png))))
    return found


@pytest.fixture
def config(tiny):
    tiny.objective.masks.target_scale = (0.25, 0.25)
    tiny.objective.masks.target_aspect_ratio = (1.0, 1.0)
    tiny.epochs, tiny.logging.every_steps, tiny.logging.diagnostics_every_steps = 2, 1, 1
    return resolve(tiny)


@pytest.mark.parametrize("labels", [True, False])
def test_a_run_draws_masks_at_its_start_and_the_rest_when_it_saves(config, tmp_path, labels):
    source, objective = bars(40, labels), make_objective(config)
    stream = stream_of(config, source)
    draw = make_gallery(config, objective, source, stream, tmp_path)
    seen = []

    def watched(step, weights):
        drawn = draw(step, weights)
        seen.append((step, sorted(path.name for path in tmp_path.glob("*.png"))))
        return drawn

    train(config, tmp_path, objective=objective, stream=stream, draw=watched)
    assert seen == [
        (0, ["masks.png"]),
        (4, ["curves.png", "feature_pca.png", "masks.png"]),
    ]
    shown = tensorboard_pictures(tmp_path)
    assert sorted((step, name) for step, name, _ in shown) == [
        (0, "masks"),
        (4, "curves"),
        (4, "feature_pca"),
    ]
    for _, name, pixels in shown:
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size > 3000
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))


def test_a_picture_that_can_not_be_drawn_does_not_stop_the_run(
    config, tmp_path, monkeypatch, caplog
):
    def broken(*arguments):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(gallery, "curves_picture", broken)
    source, objective = bars(40), make_objective(config)
    stream = stream_of(config, source)
    draw = make_gallery(config, objective, source, stream, tmp_path)
    result = train(config, tmp_path, objective=objective, stream=stream, draw=draw)
    assert result["step"] == 4
    assert checkpoint.latest_step(tmp_path) == 4
    assert "a picture could not be drawn: RuntimeError: no fonts" in caplog.text


def test_a_run_also_saves_when_the_minutes_are_over(config, tmp_path, monkeypatch):
    """On a clock by which every reading comes six minutes after the one before."""
    source, objective = bars(40), make_objective(config)
    now = iter(range(0, 10**6, 360))

    class Ticking(Timer):
        def __init__(self, minutes):
            super().__init__(minutes, clock=lambda: float(next(now)))

    monkeypatch.setattr("jepa_jax.training.loop.Timer", Ticking)
    saved = []
    train(
        config,
        tmp_path,
        objective=objective,
        stream=stream_of(config, source),
        draw=lambda step, weights: saved.append(step) or [],
    )
    # Six minutes after the start nothing, after twelve step 2; then again; the end is saved anyway.
    assert saved == [0, 2, 4]


@pytest.mark.parametrize("number", [20, 60])
def test_online_probes_work_on_few_images(config, number):
    objective = make_objective(config)
    online = online_probes(config, objective, bars(number))
    values = online(initial_encoder(objective, 0), ["linear_accuracy", "knn_accuracy"])
    assert list(values) == ["linear_accuracy", "knn_accuracy"]
    queries = number // 5
    for value in values.values():
        assert value * queries == pytest.approx(round(value * queries))  # of that many
        assert 0.0 <= value <= 1.0


def test_the_online_linear_head_is_that_of_scikit_learn(config):
    """On the same held-out images, of features computed one by one."""
    objective, source = make_objective(config), bars(60)
    weights = initial_encoder(objective, 0)
    index = np.random.default_rng(config.seed).permutation(60)
    images = next(eval_batches(config.data, source, index=index, batch_size=60, bad=[]))
    tokens = np.asarray(objective.encode(weights, jnp.asarray(images)))  # [n, N, D]
    features = tokens.astype(np.float64).mean(axis=1)
    known, asked = features[:48], features[48:]
    known, asked = ((x - known.mean(axis=0)) / known.std(axis=0) for x in (known, asked))
    # Flipped labels of a third, so that some are told wrong.
    labels = np.where(np.arange(60) % 3 == 0, 1 - source.labels, source.labels)
    head = LogisticRegression(C=0.1, tol=1e-6, max_iter=5000).fit(known, labels[index[:48]])
    expected = head.score(asked, labels[index[48:]])
    online = online_probes(config, objective, dataclasses.replace(source, labels=labels))
    assert online(weights, ["linear_accuracy"]) == {"linear_accuracy": pytest.approx(expected)}
    assert 0.0 < expected < 1.0


def test_online_probes_leave_out_bad_images_which_do_not_stop_the_run(config, tmp_path):
    rng = np.random.default_rng(0)
    for split, kept in (("train", range(20)), ("good", [i for i in range(20) if i not in (3, 11)])):
        for i in kept:
            path = tmp_path / split / "ab"[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = 30 + 200 * (i % 2)
            pixels = np.full((28, 28, 3), shade, np.uint8) + rng.integers(0, 9, 3, np.uint8)
            Image.fromarray(pixels).save(path)
    for i in (3, 11):
        (tmp_path / "train" / "b" / f"{i:02}.png").write_bytes(b"no image")
    data = dataclasses.replace(config.data, source="folder", path=str(tmp_path))
    config = dataclasses.replace(config, data=data)
    objective = make_objective(config)
    online = online_probes(config, objective, open_source(data, "train"))
    weights, names = initial_encoder(objective, 0), ["knn_accuracy", "linear_accuracy"]
    for _ in range(2):
        assert online(weights, names) == dict.fromkeys(
            names, 1.0
        )  # black and white: their labels stay with them


def test_without_two_classes_there_is_no_online_knn_and_the_log_says_so(config, caplog):
    with caplog.at_level(logging.INFO):
        assert online_probes(config, make_objective(config), bars(20, labels=False)) is None
    assert "no online k-NN: the training images have no labels" in caplog.text
    black = np.zeros((20, 28, 28, 1), np.uint8)
    one_class = array_source(black, np.zeros(20, int), ("a",), (28, 28))
    assert online_probes(config, make_objective(config), one_class) is None
