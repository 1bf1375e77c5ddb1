"""Fields that stand for others: what comes out, which one wins, what is refused."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import load_config_file

from jepa_jax.config import resolve
from jepa_jax.config.derived import ImageFacts
from jepa_jax.config.files import load_config
from jepa_jax.data.facts import image_facts
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.train import read_configuration

FACTS = ImageFacts(3000, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def photos(*overrides, facts=FACTS):
    overrides = [f"--config.{override}" for override in ("data.path=photos", *overrides)]
    return resolve(load_config("configs/photos.py", overrides), lambda _: facts)


def test_epochs_warm_up_and_normalisation_follow_from_the_images():
    config = photos("images_seen=400000")
    assert config.epochs == 134  # 133.3 of 3,000
    assert config.optimizer.warmup_epochs == pytest.approx(13.4)
    assert (config.data.mean, config.data.std) == FACTS[1:]


def test_a_size_gives_both_networks_and_a_shape_beside_it_takes_precedence():
    config = photos("model.size=s", "model.depth=6", "objective.predictor.depth=2")
    model, predictor = config.model, config.objective.predictor
    assert (model.embed_dim, model.depth, model.num_heads) == (384, 6, 6)
    assert (predictor.embed_dim, predictor.depth, predictor.num_heads) == (384, 2, 6)


@pytest.mark.parametrize(
    ("pixels", "patch_size", "expected"),
    [("96,96", 12, 19), ("224,224", 16, 59), ("96,192", 16, 22)],
)
def test_context_tokens_are_a_share_of_the_grid(pixels, patch_size, expected):
    config = photos(f"data.image_size={pixels}", f"model.patch_size={patch_size}")
    assert config.objective.masks.context_tokens == expected


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("epochs=7", lambda c: c.epochs == 7 and c.optimizer.warmup_epochs == pytest.approx(0.7)),
        ("optimizer.warmup_epochs=3", lambda c: c.optimizer.warmup_epochs == 3),
        ("objective.masks.context_tokens=16", lambda c: c.objective.masks.context_tokens == 16),
        (
            "objective.ema.start_momentum=0.9",
            lambda c: (c.objective.ema.start_momentum, c.objective.ema.kept_share) == (0.9, None),
        ),
        ("data.mean=0.1,0.2,0.3", lambda c: (c.data.mean[0], c.data.std) == (0.1, FACTS.std)),
    ],
)
def test_the_command_line_sets_what_a_file_derives(override, value):
    assert value(photos(override))


def test_the_command_line_derives_what_a_file_sets():
    overrides = ("images_seen=50000", "model.size=ti", "optimizer.warmup_share=0.5")
    file = load_config("configs/fashion_mnist.py", [f"--config.{o}" for o in overrides])
    config = resolve(file, lambda _: ImageFacts(10_000, *FACTS[1:]))
    assert (config.epochs, config.optimizer.warmup_epochs) == (5, 2.5)
    assert (config.model.embed_dim, config.model.patch_size) == (192, 4)
    assert config.objective.predictor.embed_dim == 384


def test_images_are_not_looked_at_where_nothing_follows_from_them():
    def measure(_):
        raise AssertionError

    resolve(load_config_file("fashion_mnist"), measure)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("images_seen", 0, r"^config\.images_seen = 0: must be at least 1$"),
        ("images_seen", "many", r"^config\.images_seen = 'many': must be of type int$"),
        (
            "model.size",
            "xl",
            r"^config\.model\.size = 'xl': must be one of mini, ti, s, b, l, h, g",
        ),
        ("optimizer.warmup_share", 1.0, r"^config\.optimizer\.warmup_share = 1\.0: must lie in"),
        ("objective.masks.context_share", 1.5, r"^config\.objective\.masks\.context_share = 1\.5"),
        ("objective.ema.kept_share", 0.0, r"^config\.objective\.ema\.kept_share = 0\.0"),
        ("objective.ema.final_momentum", 0.9, r"^config\.objective\.ema\.final_momentum = 0\.9"),
    ],
)
def test_a_value_that_can_not_be_is_refused_with_its_field(field, value, message):
    with pytest.raises(UserError, match=message):
        photos(f"{field}={value}")


def test_both_of_a_pair_in_one_file_are_refused():
    config = load_config_file("fashion_mnist")
    config.images_seen = 1000
    with pytest.raises(UserError, match=r"^config\.images_seen: stands for epochs; set only one"):
        resolve(config)


def test_a_command_that_does_not_look_at_the_images_says_what_to_set():
    with pytest.raises(UserError, match=r"^config\.epochs: follows from the training images"):
        resolve(load_config("configs/photos.py", ["--config.data.path=photos"]))


def test_mean_and_deviation_are_those_of_the_pixels(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (12, 3))
    (tmp_path / "train").mkdir()
    for i, colour in enumerate(colours):  # of one colour each, so that cropping changes nothing
        image = np.broadcast_to(colour, (20 + i, 30, 3)).astype(np.uint8)
        tf.io.write_file(str(tmp_path / "train" / f"{i}.png"), tf.io.encode_png(image))
    config = read_configuration(
        "configs/photos.py", None, [f"--config.data.path={tmp_path}", "--config.images_seen=120"]
    )
    assert config.epochs == 10
    np.testing.assert_allclose(config.data.mean, (colours / 255).mean(0), atol=1e-4)
    np.testing.assert_allclose(config.data.std, (colours / 255).std(0), atol=1e-4)
    assert image_facts(config.data).num_images == 12
    # A bad image, which training replaces, is left out of the mean.
    (tmp_path / "train" / "3.png").write_bytes(b"no image")
    facts = image_facts(config.data)
    assert facts.num_images == 12
    np.testing.assert_allclose(facts.mean, np.delete(colours, 3, 0).mean(0) / 255, atol=1e-4)
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(StoppedRunError, match=r"a bad image: .*: empty"):
        image_facts(config.data)
