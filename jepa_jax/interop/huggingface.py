"""Hugging Face's `IJepaModel`, and timm's vision transformers: safetensors, without PyTorch."""

import dataclasses
import itertools
import json
import logging
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import safetensors
import safetensors.numpy

from jepa_jax.config import Config
from jepa_jax.errors import UserError
from jepa_jax.interop.architecture import infer_config
from jepa_jax.interop.names import (
    HUGGINGFACE,
    HUGGINGFACE_5,
    NETWORKS,
    PUBLISHED,
    Style,
    Tensor,
    encoder_tensors,
    ijepa_settings,
)
from jepa_jax.interop.safetensors_files import INDEX, WEIGHTS, index_tensors, read_json
from jepa_jax.interop.tensors import OnBytes, TensorSource, check_names, fetch_tensors, read_network
from jepa_jax.models.positions import sincos_positions
from jepa_jax.models.transformer import LAYER_NORM_EPS
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.items import read_arrays

CONFIG = "config.json"
# Of one file. More than that, and the shards' sizes would be felt in memory.
_SHARD_BYTES = 500 << 20
log = logging.getLogger(__name__)


class HuggingFace(NamedTuple):
    """What a folder or a file holds, but for the numbers.

    Attributes:
      config: inferred.
      style: the names that it uses.
      tensors: by those names, less what may stand before all of them.
      network: which encoder it is.
      source: what to note of its origin.
    """

    config: Config
    style: Style
    tensors: TensorSource
    network: str
    source: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Of all that will be read."""
        return huggingface_bytes(self.config)


def open_huggingface(
    path: pathlib.Path,
    base: dict[str, Any],
    *,
    num_heads: int | None,
    base_is_given: bool,
    allow_partial: bool,
    network: str | None,
) -> HuggingFace:
    """Checks a folder, or one .safetensors file, but for the numbers.

    Args:
      base, num_heads, base_is_given: see `infer_config`.
      allow_partial: leave what is missing or misshapen at its random initialisation.
      network: which encoder it is; None: what the folder says, or else "encoder", since the public
        conversions, here and of timm, hold the context encoder.

    Raises:
      UserError: there is no vision transformer without class token, or not a whole one.
    """
    settings = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    given, stored = index_tensors(path)
    style = _style_of(given.shapes)
    if style is None:
        raise UserError(f"{path}: no vision transformer's names, but {', '.join(stored[:5])}, ...")
    for name in given.shapes:
        if name.endswith("cls_token"):
            raise UserError(f"{path}: {name}: has a class token, which is not supported here")
    heads, eps, image_size = None, LAYER_NORM_EPS, None
    if style is not PUBLISHED:
        image_size = _image_size(path, settings)
        heads, eps = check_settings(path, settings, model_type="ijepa", usual_eps=LAYER_NORM_EPS)
    config = infer_config(
        base,
        given.shapes,
        style,
        num_heads=num_heads or heads,
        base_is_given=base_is_given,
        image_size=image_size,
    )
    config = _with(config, positions="learned", layer_norm_eps=eps)
    lines = check_names(given, encoder_tensors(config, style), allow_partial=allow_partial)
    table = sincos_positions(config.grid, config.model.embed_dim)
    if np.array_equal(given.read(style.pos_embed)[0], table):
        config = _with(config, positions="sincos")
    said = settings.get("jepa_jax")
    said = said.get("network") if isinstance(said, dict) else None
    if network is None and said not in NETWORKS:
        log.info(
            "%s does not say which encoder it is; taken for the context encoder, as in the public "
            "conversions; --network target_encoder says otherwise",
            path,
        )
    network = network or (said if said in NETWORKS else "encoder")
    source: dict[str, Any] = {"format": "timm" if style is PUBLISHED else "huggingface"}
    source |= {"file": path.name, "network": network}
    source |= {"partial": {network: lines}} if lines else {}
    return HuggingFace(config, style, given, network, source)


def huggingface_bytes(config: Config) -> int:
    """Bytes of an encoder there.

    Raises:
      UserError: it is of another objective than ijepa.
    """
    ijepa_settings(config)
    tensors = encoder_tensors(_with(config, positions="learned"), HUGGINGFACE)
    return sum(4 * math.prod(tensor.shape) for tensor in tensors)


def huggingface_items(found: HuggingFace, progress: OnBytes) -> Iterator[tuple[str, Any]]:
    """The one item of our checkpoint that holds parameters; see `converted.write`."""
    objective, key = make_objective(found.config), jax.random.key(found.config.seed)
    initial = jax.eval_shape(objective.init, key)
    if "partial" in found.source:
        initial = jax.device_get(objective.init(key))
    arrays = flax.traverse_util.flatten_dict(initial["encoder"])
    tensors = encoder_tensors(found.config, found.style)
    yield found.network, read_network(found.tensors, tensors, arrays, progress)


def write_huggingface(
    folder: pathlib.Path, path: pathlib.Path, *, network: str, progress: OnBytes
) -> None:
    """Writes one encoder as `IJepaModel.from_pretrained` reads it.

    Args:
      folder: of one checkpoint.
      path: the folder to make.
      network: "target_encoder" or "encoder".
      progress: is called with the number of bytes, as they are converted.

    Raises:
      UserError: the checkpoint can't be read, or does not hold that network.
    """
    config = checkpoint.read_config(folder)
    like = jax.eval_shape(make_objective(config).init, jax.random.key(0))
    if (folder / network).is_dir():
        arrays = read_arrays(folder / network, like["encoder"])
    else:
        arrays = read_arrays(folder / "params", like, under=("encoder",))
    if config.model.positions == "sincos":  # there, positions are a tensor in either case
        table = sincos_positions(config.grid, config.model.embed_dim)
        arrays = itertools.chain(arrays, [(("pos_embed",), table)])
    path.mkdir()
    tensors = encoder_tensors(_with(config, positions="learned"), HUGGINGFACE)
    shards = _write_shards(fetch_tensors(arrays, tensors), path, network, progress)
    if len(shards) > 1:
        index = {name: file for file, names in shards.items() for name in names}
        weight_map = {"metadata": {"total_size": huggingface_bytes(config)}, "weight_map": index}
        (path / INDEX).write_text(json.dumps(weight_map, indent=2))
    for name, content in _settings(config, network).items():
        (path / name).write_text(json.dumps(content, indent=2) + "\n")


def _settings(config: Config, network: str) -> dict[str, dict[str, Any]]:
    """The files beside the weights: of the model, and of its preprocessing."""
    model, (height, width) = config.model, config.data.image_size
    return {
        CONFIG: {
            "architectures": ["IJepaModel"],
            "model_type": "ijepa",
            "hidden_size": model.embed_dim,
            "num_hidden_layers": model.depth,
            "num_attention_heads": model.num_heads,
            "intermediate_size": int(model.embed_dim * model.mlp_ratio),
            "hidden_act": "gelu",
            "layer_norm_eps": model.layer_norm_eps,
            "image_size": height if height == width else [height, width],
            "patch_size": model.patch_size,
            "num_channels": 3,
            "qkv_bias": True,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": config.init.std,
            "pooler_output_size": model.embed_dim,
            "dtype": "float32",
            "jepa_jax": {"network": network},
        },
        "preprocessor_config.json": {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(config.data.mean),
            "image_std": list(config.data.std),
        },
    }


def _style_of(names: Iterable[str]) -> Style | None:
    """The style in which a network's patch embedding and its first block are named."""
    for style in (PUBLISHED, HUGGINGFACE, HUGGINGFACE_5):
        if {f"{style.patch_embed}.weight", f"{style.block.format(0)}{style.fc1}.weight"} <= {
            *names
        }:
            return style
    return None


def _write_shards(
    tensors: Iterable[tuple[Tensor, np.ndarray]],
    path: pathlib.Path,
    network: str,
    progress: OnBytes,
) -> dict[str, list[str]]:
    """Writes tensors as they come; returns file name -> names of the tensors in it.

    A new file begins where the last would become larger than it should.
    """
    held: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}

    def write() -> None:
        metadata = {"format": "pt", "network": network}
        safetensors.numpy.save_file(pending, path / f"{len(held)}.part", metadata=metadata)
        held.append(list(pending))
        pending.clear()

    for tensor, array in tensors:
        if pending and sum(a.nbytes for a in pending.values()) + array.nbytes > _SHARD_BYTES:
            write()
        pending[tensor.name] = array
        progress(array.nbytes)
    write()
    count, files = len(held), [WEIGHTS]
    if count > 1:
        files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for i, file in enumerate(files):
        (path / f"{i}.part").rename(path / file)
    return dict(zip(files, held, strict=True))


def check_settings(
    path: pathlib.Path, settings: dict[str, Any], *, model_type: str, usual_eps: float
) -> tuple[int | None, float]:
    """Heads and LayerNorm's epsilon of a config.json that must otherwise match our models.

    Args:
      path: the folder.
      usual_eps: where the file has none.

    Raises:
      UserError: with the field.
    """
    allowed = {"model_type": model_type, "hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
    for name, value in allowed.items():
        if settings.get(name, value) != value:
            raise UserError(f"{path / CONFIG}: {name} = {settings[name]!r}: must be {value!r}")
    heads = settings.get("num_attention_heads")
    if heads is not None and (not isinstance(heads, int) or heads < 1):
        raise UserError(f"{path / CONFIG}: num_attention_heads = {heads!r}: must be 1 or more")
    eps = settings.get("layer_norm_eps", usual_eps)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise UserError(f"{path / CONFIG}: layer_norm_eps = {eps!r}: must lie between 0 and 1")
    return heads, eps


def _image_size(path: pathlib.Path, settings: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width in a config.json; None if it does not say."""
    said = settings.get("image_size")
    if said is None:
        return None
    sides = [said, said] if isinstance(said, int) else said
    if (
        not isinstance(sides, list)
        or [type(side) for side in sides] != [int, int]
        or min(sides) < 1
    ):
        raise UserError(
            f"{path / CONFIG}: image_size = {said!r}: must be one or two whole numbers above 0"
        )
    return sides[0], sides[1]


def _with(config: Config, **model: Any) -> Config:
    """The same configuration with other fields of the model."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
