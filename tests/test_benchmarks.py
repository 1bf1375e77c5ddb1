"""The step benchmark at its smallest: its numbers must fit together; tables and recipes."""

import functools

import jax
import numpy as np
import pytest
from conftest import REPOSITORY

from benchmarks import photos, small_recipes, train_step
from jepa_jax.batch.masks import check_feasible
from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.objectives.registry import make_objective

# Of the encoder and the predictor; ViT-Ti takes half a minute here.
D, DEPTH, P, P_DEPTH = 48, 3, 96, 4
ARGUMENTS = ["--size", "ti", "--image-size", "32", "--patch-size", "8", "--batch-size", "16"]


@pytest.fixture(scope="module")
def case():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)  # as its docstring says
        patch.setattr("sys.argv", ["train_step", *ARGUMENTS, "--dtype", "float32", "--fsdp", "2"])
        small = (
            {"embed_dim": D, "depth": DEPTH, "num_heads": 2},
            {"embed_dim": P, "depth": P_DEPTH, "num_heads": 4},
        )
        patch.setattr(train_step, "vit_size", {"ti": small}.__getitem__)
        return train_step.make_config(train_step.parse_arguments())


def test_made_up_batches_are_as_real_ones(case):
    config, target_tokens = case
    batch = train_step.make_batch(config, target_tokens)
    assert batch["image"].shape == (16, 32, 32, 3)
    assert batch["context_index"].shape == (16, 4)
    assert batch["target_index"].shape == (16, 4, 2)
    for name in ("context_index", "target_index"):
        assert (np.diff(batch[name]) > 0).all()
        assert batch[name].min() >= 0
        assert batch[name].max() < 16


def test_the_numbers_fit_together(case, monkeypatch):
    config, target_tokens = case
    for_less_time = functools.partial(train_step.measured_peak, seconds=0.2)
    monkeypatch.setattr(train_step, "measured_peak", for_less_time)
    result = train_step.measure(config, target_tokens, steps=3)
    times = result["step_seconds"]
    assert 0 < times["lowest"] <= times["median"] <= times["highest"]
    assert result["images_per_second"] == pytest.approx(16 / times["median"], rel=1e-2)
    # Encoder: 3 x 4 and 16 context and target tokens. Predictor: 3 x 4 x 6, and once more for the
    # last two tokens alone, but for keys and values.
    encoder = DEPTH * (24 * D**2 * (16 + 12) + 4 * D * (16**2 + 3 * 4**2))
    predictor = 3 * 4 * (P_DEPTH - 1) * (24 * P**2 * 6 + 4 * P * 6**2)
    predictor += 3 * 4 * (4 * P**2 * 6 + 20 * P**2 * 2 + 4 * P * 6 * 2)
    embedding = 2 * 3 * 8**2 * D * (16 + 3 * 4)  # patches of the target and the context pass
    projections = 3 * 2 * D * P * (4 + 4 * 2)  # into the predictor and out of it
    expected = encoder + predictor + embedding + projections
    assert result["gflop_per_image"] == pytest.approx(expected / 1e9, rel=0.02)
    rate = result["gflop_per_image"] * result["images_per_second"] / 1e3 / jax.device_count()
    assert result["tflop_per_second_per_device"] == pytest.approx(rate, rel=0.1, abs=1e-3)
    assert result["mfu_of_measured_peak"] == pytest.approx(
        rate / result["measured_peak_tflop_per_second"], rel=0.2, abs=1e-2
    )
    encoder, predictor = 12 * D**2 * DEPTH, 12 * P**2 * P_DEPTH  # parameters
    state = 4 * (3 * (encoder + predictor) + encoder) / 2  # halved by fsdp
    assert state < result["memory_bytes_by_compiler"] < 10 * state


def test_the_photos_table_takes_equal_classes_and_means_over_the_seeds(tmp_path):
    for split, each in (("train", 7), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / "all" / split / name).mkdir(parents=True)
            for number in range(each):
                (tmp_path / "all" / split / name / f"{number}.jpg").write_bytes(b"x")
    photos.take(tmp_path / "all", tmp_path / "some", 10)
    taken = sorted((tmp_path / "some" / "train").rglob("*.jpg"))
    assert len(taken) == 10
    assert len(list((tmp_path / "some" / "test").rglob("*.jpg"))) == 6
    assert all(path.read_bytes() == b"x" for path in taken)

    def row(seed, value):
        of = {"pretrained": value, "random_init": 0.25, "raw_pixels": 0.2}
        return {"images": 3000, "seed": seed, "knn": of, "linear": of}

    last = photos.table([row(0, 0.3), row(1, 0.5)]).splitlines()[-1]
    assert last == "| 3,000 | 2 | 0.400 | 0.250 | 0.200 | 0.400 | 0.250 | 0.200 |"


def test_every_small_recipe_is_a_valid_change_of_the_quickstart():
    for recipe in small_recipes.RECIPES.values():
        config = resolve(
            load_config("configs/quickstart.py", [f"--config.{change}" for change in recipe])
        )
        check_feasible(make_objective(config).needs.masks)
