"""What a run is told to be before its first step: counts, and warnings with the field to change."""

import pytest
from conftest import load_config_file

from jepa_jax.config import resolve
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.outlook import outlook


def found(mapping, *, num_images=10_000, batches=156, left_out=None, from_scratch=True):
    config = resolve(mapping)
    return outlook(
        config,
        make_objective(config),
        num_images=num_images,
        class_sizes=(700, 300),
        left_out=left_out or {},
        steps_per_epoch=batches,
        from_scratch=from_scratch,
    )


@pytest.fixture
def mapping():
    return load_config_file("fashion_mnist")


def test_the_bundled_recipe_gives_no_warning_and_its_counts(mapping):
    result = found(mapping, left_out={"ending .heic": 12})
    assert result.warnings == ()
    assert result.facts[:3] == (
        "10,000 training images of 2 classes, 300 to 700 of each",
        "left out: 12 files, ending .heic",
        f"156 steps of 64 images an epoch (16 images sit out, other ones each time); "
        f"{mapping.epochs} epochs, {156 * mapping.epochs:,} steps in all",
    )


def test_a_frozen_target_is_warned_of_with_the_share_that_it_keeps(mapping):
    mapping.epochs = 20
    mapping.objective.ema = {"start_momentum": 0.996, "final_momentum": 1.0}
    (warning,) = (w for w in found(mapping, batches=23).warnings if "momentum" in w)
    # 460 steps: exp(-0.004 * 460 / 2) = .40, as the target of the photos kept
    assert warning.startswith("config.objective.ema.start_momentum = 0.996: 460 steps leave 40% of")
    assert "objective.ema.kept_share=0.001" in warning
    assert not found(mapping, batches=23, from_scratch=False).warnings


def test_too_few_steps_and_too_few_images_are_warned_of(mapping):
    mapping.objective.ema = {"kept_share": 1e-3}
    mapping.epochs = 10
    warnings = found(mapping, num_images=600, batches=9).warnings
    assert [w.partition(":")[0] for w in warnings] == [
        "config.epochs = 10",
        "config.data.path = None",
    ]
    assert "--init" in warnings[1]


def test_a_context_that_throws_most_patches_away_is_warned_of(mapping):
    mapping.data.image_size = (56, 56)  # 14 x 14 patches, of which 18 are kept
    mapping.objective.masks.context_tokens = 18
    (warning,) = found(mapping).warnings
    assert warning.startswith("config.objective.masks.context_tokens = 18: half of the mask draws")
    assert "objective.masks.context_share=0.3" in warning


@pytest.mark.parametrize("name", ["in1k_vith14_ep300", "in1k_vitb16_ep600", "in22k_vitg16_ep44"])
def test_the_published_recipes_give_no_warning(name):
    mapping = load_config_file(name)
    assert found(mapping, num_images=1_281_167, batches=625).warnings == ()
