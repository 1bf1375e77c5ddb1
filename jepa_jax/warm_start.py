"""Starting a run from weights that exist, instead of at random: `jepa_jax.train --init PATH`."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from jepa_jax.config import Config, ModelConfig, to_dict
from jepa_jax.config.sizes import heads_of_width
from jepa_jax.encoder import architecture_of, is_huggingface, read_huggingface
from jepa_jax.errors import UserError
from jepa_jax.interop.official import official_items, open_official
from jepa_jax.interop.vit_mae import is_vit_mae
from jepa_jax.models.positions import interpolate_positions
from jepa_jax.objectives.objective import Objective, at_path, replace_at_path
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.items import read_item
from jepa_jax.training.state import TrainState

log = logging.getLogger(__name__)

# Drop path and the like may differ; these are what the weights were trained for.
_SHAPE = tuple(
    field.name for field in dataclasses.fields(ModelConfig) if field.name != "drop_path_rate"
)


class Weights(NamedTuple):
    """Networks to start from.

    Attributes:
      config: with which they were trained, as far as it is known.
      networks: name -> tree of arrays: encoders, and other parts such as "predictor".
      encoders: names of those networks that are encoders, the first of which is probed.
    """

    path: pathlib.Path
    config: Config
    networks: dict[str, Any]
    encoders: tuple[str, ...]


def read_weights(path: pathlib.Path, model: ModelConfig) -> Weights:
    """Reads a workdir, one checkpoint, a Hugging Face folder, .safetensors, or a reference file.

    Args:
      model: of the run. Where neither a file nor its width tells the attention heads, it has as
        many as this.

    Raises:
      UserError: it is none of these, or damaged.
    """
    if path.is_file() or is_huggingface(path):
        return _foreign(path, model)
    folder = checkpoint.find(path, checkpoint.network_items)
    config = checkpoint.read_config(folder)
    objective = make_objective(config)
    networks: dict[str, Any] = {}
    params = jax.eval_shape(objective.init, jax.random.key(0))
    if (folder / "params").is_dir():
        networks |= read_item(folder / "params", params)
    for name in objective.encoders:
        if name not in networks and (folder / name).is_dir():
            networks[name] = checkpoint.restore_encoder(folder, name, objective)
    return _checked(path, config, networks, objective)


def _foreign(path: pathlib.Path, model: ModelConfig) -> Weights:
    num_heads = None if heads_of_width(model.embed_dim) else model.num_heads
    if is_vit_mae(path):
        raise UserError(
            f"--init {path}: a ViTMAE; make a workdir of it first: python -m jepa_jax.convert "
            "hf-to-orbax"
        )
    if path.is_dir() or path.suffix == ".safetensors":
        config, network, params = read_huggingface(path, num_heads=num_heads)
        return _checked(path, config, {network: params}, make_objective(config))
    official = open_official(
        path,
        to_dict(architecture_of("h", 14, (224, 224))),  # the tensors' shapes overrule it
        num_heads=num_heads,
        base_is_given=False,
        allow_partial=False,
        network=None,
    )
    networks: dict[str, Any] = {}
    for name, tree in official_items(official, lambda _: None):
        if name in ("params", "encoder", "target_encoder"):
            arrays = jax.tree.map(lambda lazy: lazy.read(), tree)
            networks |= arrays if name == "params" else {name: arrays}
    return _checked(path, official.config, networks, make_objective(official.config))


def _checked(
    path: pathlib.Path, config: Config, networks: dict[str, Any], objective: Objective
) -> Weights:
    encoders = tuple(name for name in objective.encoders if name in networks)
    if not encoders:
        raise UserError(f"--init {path}: holds no encoder")
    return Weights(path, config, networks, encoders)


def starting_from(
    weights: Weights, config: Config, objective: Objective
) -> Callable[[TrainState], TrainState]:
    """A function that puts the weights into a run's state before its first step.

    Each encoder starts as `init.network`, or its own counterpart, or else as the encoder that there
    is; any other part of the parameters, as the predictor, where it has the same shape, and else at
    random, which is logged, as is another normalisation of the images. They may have another size.

    Raises:
      UserError: the encoders differ in shape, with the fields that would make them equal.
    """
    theirs, ours = to_dict(weights.config)["model"], to_dict(config)["model"]
    different = [name for name in _SHAPE if theirs[name] != ours[name]]
    if different:
        flags = " ".join(f"--config.model.{name}={theirs[name]}" for name in different)
        raise UserError(
            f"--init {weights.path}: its encoder has another shape than this run's; start with "
            f"{flags}"
        )
    network = config.init.network
    if network is not None and network not in weights.encoders:
        raise UserError(
            f"config.init.network = {network!r}: must be one of {', '.join(weights.encoders)}, "
            f"the encoders in {weights.path}, or None"
        )
    params = jax.eval_shape(objective.init, jax.random.key(0))
    parts = {
        name: weights.networks[name]
        for name in params
        if name not in weights.encoders
        and name in weights.networks
        and _shapes(weights.networks[name]) == _shapes(params[name])
        and _heads(weights.config, name) == _heads(config, name)
    }
    encoder_parts = {path[1] for path in objective.encoders.values() if path[0] == "params"}
    for name in params.keys() - parts.keys() - encoder_parts:
        why = "has another shape there" if name in weights.networks else "is not there"
        log.info("--init %s: the %s %s, and starts at random", weights.path, name, why)

    saw, sees = (
        [[round(number, 2) for number in numbers] for numbers in (data.mean, data.std)]
        for data in (weights.config.data, config.data)
    )
    if saw != sees:
        log.warning(
            "warning: --init %s: its encoder saw images normalised otherwise than this run's; to "
            "keep to that: --config.data.mean=%s --config.data.std=%s",
            weights.path,
            *(",".join(map(str, numbers)) for numbers in saw),
        )

    def put(state: TrainState) -> TrainState:
        for name, path in objective.encoders.items():
            source = network or (name if name in weights.encoders else weights.encoders[0])
            tree = _on_grid(weights.networks[source], weights.config.grid, config.grid)
            state = replace_at_path(state, path, _placed(tree, at_path(state, path)))
            log.info("%s starts as the %s of %s", name, source, weights.path)
        for name, tree in parts.items():
            placed = _placed(tree, state.params[name])
            state = replace_at_path(state, ("params", name), placed)
            log.info("%s starts as that of %s", name, weights.path)
        return state

    return put


def _on_grid(tree: Any, grid: tuple[int, int], new_grid: tuple[int, int]) -> Any:
    """The same encoder; learned positions are stretched over another grid of patches."""
    if "pos_embed" not in tree:
        return tree
    return {**tree, "pos_embed": interpolate_positions(tree["pos_embed"], grid, new_grid)}


def _placed(tree: Any, like: Any) -> Any:
    """The tree's numbers, sharded as `like` is."""

    def place(array: Any, leaf: jax.Array) -> jax.Array:
        array = np.asarray(array, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return jax.tree.map(place, flax.core.unfreeze(tree), like)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: tuple(leaf.shape), flax.core.unfreeze(tree))


def _heads(config: Config, part: str) -> Any:
    """The attention heads of a part, which its arrays do not tell."""
    return getattr(getattr(config.objective, part, None), "num_heads", None)
