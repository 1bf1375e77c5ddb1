"""Hugging Face's `ViTMAEForPreTraining`: the encoder and the decoder of a masked autoencoder."""

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from jepa_jax.config import Config, MaeConfig, resolve, to_dict
from jepa_jax.errors import UserError
from jepa_jax.interop.architecture import depth_of, known_heads, mlp_ratio, shape_of
from jepa_jax.interop.huggingface import CONFIG, check_settings
from jepa_jax.interop.names import (
    VIT_MAE_DECODERS,
    VIT_MAE_ENCODERS,
    Style,
    Tensor,
    vit_mae_tensors,
)
from jepa_jax.interop.safetensors_files import index_tensors, read_json
from jepa_jax.interop.tensors import TensorSource, check_names, read_network
from jepa_jax.models.positions import sincos_positions
from jepa_jax.objectives.registry import make_objective

MODEL_TYPE = "vit_mae"
# What `ViTMAEConfig` takes where config.json has nothing.
_USUAL = {
    "image_size": 224,
    "decoder_num_attention_heads": 16,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
}
_USUAL_EPS = 1e-12
# Nothing moves these tables: those of different libraries are the same but for rounding.
_ROUNDING = 1e-4


class VitMae(NamedTuple):
    """What a folder holds, but for the numbers.

    Attributes:
      config: inferred.
      networks: name -> its tensors.
      tensors: those of the folder, by name.
      source: what to note of its origin.
    """

    config: Config
    networks: dict[str, list[Tensor]]
    tensors: TensorSource
    source: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Of all that will be read."""
        tensors = [tensor for network in self.networks.values() for tensor in network]
        return sum(4 * math.prod(tensor.shape) for tensor in tensors)


def is_vit_mae(path: pathlib.Path) -> bool:
    """Whether a folder's config.json says so.

    Raises:
      UserError: it can't be read.
    """
    file = path / CONFIG
    return file.is_file() and read_json(file).get("model_type") == MODEL_TYPE


def open_vit_mae(
    path: pathlib.Path,
    base: dict[str, Any],
    *,
    num_heads: int | None,
    allow_partial: bool,
    network: str | None,
) -> VitMae:
    """Checks a folder, but for the numbers.

    Args:
      base: fields of a config of the objective mae, see `load_config`; the folder says the model,
        the decoder, the image size, the mask ratio, and whether pixels are normalised.
      num_heads: of the encoder; None: what the folder says.
      allow_partial: leave what is missing or misshapen at its random initialisation.
      network: "encoder" or None, as there is only one.

    Raises:
      UserError: it does not hold such a model, or not a whole one, or one that ours can't be.
    """
    if network not in (None, "encoder"):
        raise UserError(f"--network {network}: a masked autoencoder has only the encoder")
    settings = read_json(path / CONFIG)
    heads, eps = check_settings(path, settings, model_type=MODEL_TYPE, usual_eps=_USUAL_EPS)
    given, _ = index_tensors(path)
    encoder = _style_of(given.shapes, VIT_MAE_ENCODERS)
    decoder = _style_of(given.shapes, VIT_MAE_DECODERS)
    config, objective = _infer_config(
        path, base, _USUAL | settings, given.shapes, encoder, decoder, num_heads or heads, eps
    )
    networks = vit_mae_tensors(config, objective, encoder, decoder)
    num_positions = 1 + config.grid[0] * config.grid[1]  # the first is the class token's
    positions = [
        Tensor(name, (1, num_positions, dim), (0, 1, 2), (), (...,))
        for name, dim in (
            (encoder.pos_embed, config.model.embed_dim),
            (decoder.pos_embed, objective.decoder.embed_dim),
        )
    ]
    expected = [*networks["encoder"], *networks["decoder"], *positions]
    lines = check_names(given, expected, allow_partial=allow_partial)
    for tensor in positions:
        if given.shapes.get(tensor.name) == tensor.shape:  # or else --allow-partial was given
            _check_positions(given, tensor.name, config.grid)
    source: dict[str, Any] = {"format": MODEL_TYPE, "file": path.name, "network": "encoder"}
    source |= {"partial": {"params": lines}} if lines else {}
    return VitMae(config, networks, given, source)


def vit_mae_items(found: VitMae, progress: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """The one item of our checkpoint that holds parameters; see `converted.write`."""
    objective, key = make_objective(found.config), jax.random.key(found.config.seed)
    initial = jax.eval_shape(objective.init, key)
    if "partial" in found.source:
        initial = jax.device_get(objective.init(key))
    params = {}
    for network, tensors in found.networks.items():
        arrays = flax.traverse_util.flatten_dict(initial[network])
        params[network] = read_network(found.tensors, tensors, arrays, progress)
    yield "params", params


def _style_of(names: Mapping[str, Any], styles: tuple[Style, ...]) -> Style:
    """The style in which the first block is named; the first style if none, to say what lacks."""
    for style in styles:
        if f"{style.block.format(0)}{style.fc1}.weight" in names:
            return style
    return styles[0]


def _infer_config(
    path: pathlib.Path,
    base: dict[str, Any],
    settings: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    encoder: Style,
    decoder: Style,
    num_heads: int | None,
    layer_norm_eps: float,
) -> tuple[Config, MaeConfig]:
    """A configuration with what the folder says, and all else from `base`; and its objective."""
    resolved = resolve(base)
    if not isinstance(resolved.objective, MaeConfig):
        raise UserError(
            f"config.objective.name = {resolved.objective.name}: must be mae, to convert {path}"
        )
    config = to_dict(resolved)
    dim, channels, p, columns = shape_of(shapes, f"{encoder.patch_embed}.weight", 4)
    if (channels, columns) != (3, p):
        raise UserError(
            f"{encoder.patch_embed}.weight has shape {(dim, channels, p, columns)}: must have 3 "
            "channels and square patches"
        )
    fc1, decoder_fc1 = (
        shape_of(shapes, f"{style.block.format(0)}{style.fc1}.weight", 2)
        for style in (encoder, decoder)
    )
    width = shape_of(shapes, "decoder.decoder_embed.weight", 2)[0]
    if decoder_fc1[0] != 4 * width:
        raise UserError(
            f"{path / CONFIG}: decoder_intermediate_size = {decoder_fc1[0]}: must be 4 x "
            f"decoder_hidden_size = {4 * width}, as in every published model"
        )
    size = settings["image_size"]
    config["data"]["image_size"] = [size, size] if isinstance(size, int) else size
    config["model"] |= {
        "patch_size": p,
        "embed_dim": dim,
        "depth": depth_of(shapes, encoder),
        "num_heads": num_heads or known_heads(dim),
        "mlp_ratio": mlp_ratio(fc1, config["model"]["mlp_ratio"]),
        "class_token": True,
        "positions": "sincos",
        "layer_norm_eps": layer_norm_eps,
    }
    config["objective"] |= {
        "mask_ratio": settings["mask_ratio"],
        "normalize_pixels": settings["norm_pix_loss"],
        "decoder": {
            "embed_dim": width,
            "depth": depth_of(shapes, decoder),
            "num_heads": settings["decoder_num_attention_heads"],
        },
    }
    resolved = resolve(config)
    assert isinstance(resolved.objective, MaeConfig)
    return resolved, resolved.objective


def _check_positions(given: TensorSource, name: str, grid: tuple[int, int]) -> None:
    """Refuses positions that are not ours, with a row of zeros for the class token before them."""
    table = given.read(name)[0]  # [1 + N, D]
    expected = np.pad(sincos_positions(grid, table.shape[1]), [(1, 0), (0, 0)])
    difference = float(np.abs(table - expected).max())
    if not difference <= _ROUNDING:  # or it is NaN
        raise UserError(
            f"{given.where}: {name} differs from the sine-cosine table of a {grid[0]} x {grid[1]} "
            f"grid, with zeros before it, by up to {difference:.2g}; the positions of mae are fixed"
        )
