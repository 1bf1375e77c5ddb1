"""Fine-tuning: the recipe, and two low-shot splits from a checkpoint to accuracies."""

import dataclasses

import numpy as np
import pytest
from conftest import load_config_file
from sklearn.metrics import top_k_accuracy_score

from jepa_jax.config import AugmentationConfig, RandAugmentConfig, resolve, to_dict
from jepa_jax.config.files import load_config
from jepa_jax.config.fine_tune import fine_tuning_run, resolve_fine_tune
from jepa_jax.data.sources import open_source, stratified
from jepa_jax.errors import UserError
from jepa_jax.evaluation.scores import top_k
from jepa_jax.fine_tune import fine_tune

FEW = {
    "low_shot": {"per_class": 16},
    "data": {"crop_scale": (0.5, 1.0)},
    "flip": 0.0,
    "rand_augment": None,
    "erase": 0.1,
    "epochs": 8,
    "batch_size": 32,
    "lr": 2e-2,
    "warmup_epochs": 1.0,
    "weight_decay": 0.05,
    "layer_decay": 0.9,
    "ema": 0.5,
}


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """One split; then two, in the same workdir."""
    workdir = tmp_path_factory.mktemp("fine_tuned")
    return [
        fine_tune(
            resolve_fine_tune({**FEW, "low_shot": {"per_class": 16, "splits": n}}),
            small.folder,
            workdir,
        )
        for n in (1, 2)
    ]


def test_two_splits_beat_chance_and_their_mean_and_deviation_are_told(runs):
    found = runs[1]
    assert found.scores.shape == (2, 2000, 10)
    labels = open_source(load_config_file_data(), "test").labels
    np.testing.assert_array_equal(found.labels, labels)
    for name, k in (("top1", 1), ("top5", 5)):
        expected = [top_k_accuracy_score(labels, scores, k=k) for scores in found.scores]
        np.testing.assert_allclose([split[name] for split in found.result["splits"]], expected)
        np.testing.assert_allclose(found.result[name], np.mean(expected))
        half = abs(expected[0] - expected[1]) / 2
        np.testing.assert_allclose(found.result[f"{name}_std"], np.sqrt(2) * half)
    # Chance is 0.1, with a standard deviation of 0.007 over 2,000 images.
    assert min(split["top1"] for split in found.result["splits"]) > 0.15
    assert [split["seed"] for split in found.result["splits"]] == [0, 1]
    assert found.result["network"] == "target_encoder"
    assert np.any(found.scores[0] != found.scores[1])


def test_a_second_call_goes_on_where_the_first_ended(runs):
    first, second = runs
    np.testing.assert_array_equal(first.scores[0], second.scores[0])
    assert first.result["top1_std"] is None


def load_config_file_data():
    return resolve(load_config_file("fashion_mnist")).data


def test_of_equal_scores_the_lower_class_is_the_higher_one():
    assert top_k(np.zeros((3, 4)), np.array([0, 1, 3]), 1) == 1 / 3
    assert top_k(np.zeros((3, 4)), np.array([0, 1, 3]), 2) == 2 / 3


def test_a_run_takes_over_the_checkpoint_s_shape_and_normalisation_and_the_split(small):
    config = resolve_fine_tune(
        load_config("configs/probe/fine_tune.py", ["--config.low_shot.splits=3"])
    )
    run = fine_tuning_run(
        config, small.config, weights="W", network="target_encoder", num_classes=10, split=2
    )
    assert run.model == small.config.model
    assert run.data.mean == small.config.data.mean
    assert to_dict(run.data.subset) == {"share": 0.01, "per_class": None, "files": None, "seed": 2}
    assert (run.seed, run.batch_size, run.epochs, run.data.crop_scale) == (2, 512, 50, (0.08, 1.0))
    optimizer = run.optimizer
    assert (optimizer.lr, optimizer.layer_decay, optimizer.weight_decay) == (3e-5, 0.75, 0.4)
    assert optimizer.final_weight_decay == 0.4
    assert run.objective.augmentation == AugmentationConfig(
        flip=0.5, rand_augment=RandAugmentConfig(num_ops=2, magnitude=9.0, magnitude_std=0.5)
    )
    assert (run.objective.label_smoothing, run.objective.mixup, run.objective.cutmix) == (0.1, 0, 0)


def test_the_files_are_the_published_recipes():
    one = resolve_fine_tune(load_config("configs/probe/fine_tune.py", []))
    assert dataclasses.replace(one, low_shot=None) == resolve_fine_tune({})  # the defaults
    full = resolve_fine_tune(load_config("configs/probe/fine_tune_full.py", []))
    assert full == dataclasses.replace(
        one, low_shot=None, batch_size=528, lr=1e-4, weight_decay=0.04, mixup=0.8, cutmix=1.0,
        drop_path_rate=0.25,     )  # fmt: skip


def test_what_does_not_fit_is_refused(small, tmp_path):
    with pytest.raises(UserError, match="sets share, per_class; must set exactly one"):
        resolve_fine_tune({"low_shot": {"share": 0.1, "per_class": 1}})
    config = resolve_fine_tune({"low_shot": {"per_class": 5}})
    with pytest.raises(UserError, match=r"batch_size = 512: the data set has only 50 images"):
        fine_tune(config, small.folder, tmp_path)
    with pytest.raises(UserError, match="predictor"):
        fine_tune(config, small.folder, tmp_path, network="predictor")


def test_the_training_images_are_those_of_the_split(runs, small):
    config = resolve_fine_tune(FEW)
    run = fine_tuning_run(
        config, small.config, weights="W", network="target_encoder", num_classes=10, split=1
    )
    whole, part = open_source(small.config.data, "train"), open_source(run.data, "train")
    index = stratified(whole.labels, per_class=16, seed=1)
    np.testing.assert_array_equal(part.labels, whole.labels[index])
    assert part.describe(0) == whole.describe(int(index[0]))
