"""`--init`: a run that starts from weights that exist, on other data, at another resolution."""

import json

import chex
import jax
import numpy as np
import pytest
from conftest import load_config_file, run_module

from jepa_jax import convert
from jepa_jax.config import resolve
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.setup import set_up
from jepa_jax.warm_start import read_weights, starting_from


def begun(weights, mapping):
    """The state before the first step of a run of this configuration."""
    config = resolve(mapping)
    objective = make_objective(config)
    put = starting_from(weights, config, objective)
    state = set_up(config, objective, steps_per_epoch=2).create()
    return jax.device_get(state), jax.device_get(put(state))


def test_every_network_of_a_checkpoint_starts_as_its_own_counterpart(small, tiny):
    before, after = begun(read_weights(small.folder, small.config.model), tiny)
    chex.assert_trees_all_equal(after.params["encoder"], small.encoder)
    chex.assert_trees_all_equal(after.objective_state.target, small.target_encoder)
    theirs = read_weights(small.folder, small.config.model).networks["predictor"]
    chex.assert_trees_all_equal(after.params["predictor"], jax.device_get(theirs))
    chex.assert_trees_all_equal(after.optimizer_state, before.optimizer_state)
    assert (after.step, after.objective_state.step) == (0, 0)
    placed = jax.tree.leaves(before.params)
    assert all(np.any(x != y) for x, y in zip(placed, jax.tree.leaves(after.params), strict=True))


def test_all_encoders_may_start_as_the_one_that_is_named(small, tiny):
    weights = read_weights(small.folder, small.config.model)
    tiny.init.network = "target_encoder"
    _, after = begun(weights, tiny)
    chex.assert_trees_all_equal(after.params["encoder"], small.target_encoder)
    chex.assert_trees_all_equal(after.objective_state.target, small.target_encoder)
    tiny.init.network = "teacher"
    with pytest.raises(UserError, match=r"init\.network = 'teacher': must be one of target_enc"):
        begun(weights, tiny)


def test_the_images_may_have_another_size(small, tiny):
    tiny.data.image_size = (56, 28)
    _, after = begun(read_weights(small.folder, small.config.model), tiny)
    chex.assert_trees_all_equal(after.params["encoder"], small.encoder)


def test_learned_positions_are_stretched_over_the_new_grid(small, tiny):
    weights = read_weights(small.folder, small.config.model)
    model = {**tiny.model.to_dict(), "positions": "learned"}
    tiny.model = model
    config, (rows, columns) = resolve(tiny), resolve(tiny).grid
    table = np.arange(rows, dtype=np.float32).repeat(columns)[:, None] * np.ones((1, 16))
    networks = {name: {**tree, "pos_embed": table} for name, tree in weights.networks.items()}
    weights = weights._replace(config=config, networks=networks)
    tiny.data.image_size = (28 * 2, 28)
    _, after = begun(weights, tiny)
    stretched = after.params["encoder"]["pos_embed"].reshape(2 * rows, columns, 16)
    inner = stretched[3:-3, 0, 0]  # of a straight line, but for the border
    np.testing.assert_allclose(inner, (np.arange(2 * rows) / 2 - 0.25)[3:-3], atol=1e-3)


def test_another_predictor_starts_at_random_and_the_log_says_so(small, tiny, caplog):
    tiny.objective.predictor.depth = 2
    caplog.set_level("INFO")
    before, after = begun(read_weights(small.folder, small.config.model), tiny)
    chex.assert_trees_all_equal(after.params["predictor"], before.params["predictor"])
    assert "the predictor has another shape there, and starts at random" in caplog.text


def test_another_objective_takes_the_encoder(small, tiny):
    config = load_config_file("fashion_mnist_vicreg")
    config.model, config.objective.expander_dim = tiny.model, 24
    before, after = begun(read_weights(small.folder, small.config.model), config)
    chex.assert_trees_all_equal(after.params["encoder"], small.encoder)
    chex.assert_trees_all_equal(after.params["expander"], before.params["expander"])


@pytest.mark.parametrize("kind", ["huggingface", "official"])
def test_other_libraries_checkpoints_are_read_as_they_are(small, tiny, tmp_path, kind):
    if kind == "huggingface":
        path = tmp_path / "folder"
        convert.orbax_to_hf(small.folder, path, network="target_encoder")
    else:
        path = tmp_path / "file.pth.tar"
        convert.orbax_to_official(small.folder, path, epoch=None)
    _, after = begun(read_weights(path, small.config.model), tiny)
    of_context = small.encoder if kind == "official" else small.target_encoder
    chex.assert_trees_all_equal(after.objective_state.target, small.target_encoder)
    chex.assert_trees_all_equal(after.params["encoder"], of_context)


def test_another_normalisation_of_the_images_is_told(small, tiny, caplog):
    weights = read_weights(small.folder, small.config.model)
    begun(weights, tiny)
    assert "normalised" not in caplog.text
    tiny.data.update({"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.25, 0.25)})
    begun(weights, tiny)
    assert "keep to that: --config.data.mean=0.29,0.29,0.29 --config.data.std=0.35," in caplog.text


def test_an_encoder_of_another_shape_is_refused_with_the_fields_to_set(small, tiny):
    tiny.model.update({"depth": 3, "embed_dim": 32})
    with pytest.raises(UserError) as error:
        begun(read_weights(small.folder, small.config.model), tiny)
    message = str(error.value)
    assert message.startswith(f"--init {small.folder}: its encoder has another shape")
    assert message.endswith("start with --config.model.embed_dim=16 --config.model.depth=2")
    assert "\n" not in message


def test_the_command_starts_from_a_path_and_resumes_without_it(small, tmp_path):
    config = [
        "--config=configs/fashion_mnist.py",
        "--config.epochs=1",
        "--config.batch_size=500",
        "--config.data.subset.per_class=100",
        "--config.model.patch_size=7",
        "--config.model.embed_dim=16",
        "--config.model.depth=2",
        "--config.objective.masks.context_tokens=4",
        "--config.objective.masks.target_scale=(0.25,0.25)",  # one step to compile
        "--config.objective.masks.target_aspect_ratio=(1.0,1.0)",
        "--config.logging.knn_every_steps=None",
    ]
    workdir = f"--workdir={tmp_path / 'run'}"
    refused = run_module("train", *config, workdir, f"--init={tmp_path / 'nothing'}")
    assert refused.returncode == 2
    assert not (tmp_path / "run").exists()
    heads = f"--config.model.num_heads={small.config.model.num_heads}"
    begun = run_module("train", *config, heads, workdir, f"--init={small.folder}")
    assert begun.returncode == 0, begun.stderr
    assert f"target_encoder starts as the target_encoder of {small.folder}" in begun.stderr
    saved = checkpoint.read_config(checkpoint.find(tmp_path / "run"))
    assert saved.init.weights == str(small.folder)
    again = run_module("train", *config, heads, workdir)
    assert again.returncode == 0, again.stderr
    late = run_module("train", *config, heads, workdir, f"--init={small.folder}")
    assert late.returncode == 0, late.stderr
    assert "has begun, and goes on from its own weights" in late.stderr
    assert json.loads(again.stdout.splitlines()[-1])["step"] == 2
