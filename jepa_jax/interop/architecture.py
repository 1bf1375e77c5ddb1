"""The configuration of a model that comes as bare tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any

from jepa_jax.config import Config, resolve, to_dict
from jepa_jax.config.sizes import heads_of_width
from jepa_jax.errors import UserError
from jepa_jax.interop.names import PREDICTOR, Style, ijepa_settings

Shapes = Mapping[str, tuple[int, ...]]


def infer_config(
    base: dict[str, Any],
    encoder: Shapes,
    style: Style,
    *,
    predictor: Shapes | None = None,
    num_heads: int | None = None,
    base_is_given: bool = False,
    learned_positions: bool = False,
    image_size: tuple[int, int] | None = None,
) -> Config:
    """A configuration with the architecture of the tensors, and all else from `base`.

    Args:
      base: fields of a config, see `load_config`.
      encoder, predictor: names and shapes of the tensors; without a predictor base's stays.
      num_heads: of both networks, which no shape tells. If None: base's, where the user chose that
        file and its width is the same, or else those of the published model of this width.
      base_is_given: the user chose the file.
      image_size: height and width, if the model says; None: base's, where the user chose that file
        and it has as many patches, or else a square.

    Raises:
      UserError: these are no tensors of a vision transformer, the heads are unknown, or base is of
        another objective.
    """
    resolved = resolve(base)
    ijepa_settings(resolved)
    config = to_dict(resolved)
    predictor_config = config["objective"]["predictor"]
    dim, channels, p, columns = shape_of(encoder, f"{style.patch_embed}.weight", 4)
    if (channels, columns) != (3, p):
        raise UserError(
            f"{style.patch_embed}.weight has shape {(dim, channels, p, columns)}: must have 3 "
            "channels and square patches"
        )
    num_patches = shape_of(encoder, style.pos_embed, 3)[1]
    _set_resolution(config, p, num_patches, style, keep=base_is_given, said=image_size)
    same_width = base_is_given and config["model"]["embed_dim"] == dim
    heads = num_heads or (config["model"]["num_heads"] if same_width else known_heads(dim))
    config["model"] |= {
        "patch_size": p,
        "embed_dim": dim,
        "depth": depth_of(encoder, style),
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(
            shape_of(encoder, f"{style.block.format(0)}{style.fc1}.weight", 2),
            config["model"]["mlp_ratio"],
        ),
        "positions": "learned" if learned_positions else "sincos",
    }
    if predictor is not None:
        width = shape_of(predictor, "predictor_embed.weight", 2)[0]
        same_width = base_is_given and predictor_config["embed_dim"] == width
        if num_heads or not same_width:
            predictor_config["num_heads"] = heads  # as in every published model
        predictor_config |= {"embed_dim": width, "depth": depth_of(predictor, PREDICTOR)}
    return resolve(config)


def shape_of(shapes: Shapes, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there.

    Raises:
      UserError: it is not, or has other dimensions.
    """
    shape = shapes.get(name)
    if shape is None:
        raise UserError(f"no tensor {name}: this is no vision transformer that can be converted")
    if len(shape) != ndim or 0 in shape:
        raise UserError(f"{name} has shape {tuple(shape)}: must have {ndim} dimensions, none empty")
    return tuple(shape)


def _set_resolution(
    config: dict[str, Any],
    patch_size: int,
    num_patches: int,
    style: Style,
    *,
    keep: bool,
    said: tuple[int, int] | None,
) -> None:
    """The image size that gives so many patches, and the same share of them for the context."""
    height, width = config["data"]["image_size"]
    old_patch_size = config["model"]["patch_size"]
    old_patches = (height // old_patch_size) * (width // old_patch_size)
    if said is not None:
        if (said[0] // patch_size) * (said[1] // patch_size) != num_patches:
            raise UserError(
                f"{style.pos_embed} has {num_patches} positions: must be those of an image_size of "
                f"{said[0]} x {said[1]} in patches of {patch_size}"
            )
    elif keep and (height // patch_size) * (width // patch_size) == num_patches:
        return
    side = math.isqrt(num_patches)
    if said is None and side * side != num_patches:
        raise UserError(
            f"{style.pos_embed} has {num_patches} positions, which fill no square: give --config, "
            "with the data.image_size that the model was trained at"
        )
    config["data"]["image_size"] = said or (side * patch_size, side * patch_size)
    masks = config["objective"]["masks"]
    tokens = masks["context_tokens"] * num_patches / max(old_patches, 1)
    masks["context_tokens"] = max(round(tokens), 1)


def depth_of(shapes: Shapes, style: Style) -> int:
    """How many blocks there are."""
    pattern = re.compile(re.escape(style.block).replace(r"\{\}", r"(\d{1,4})"))
    return len({match[1] for match in map(pattern.match, shapes) if match})


def mlp_ratio(fc1: tuple[int, ...], usual: float) -> float:
    """The usual ratio if it gives this size; or hidden / width, so that it gives it again."""
    hidden, width = fc1
    for ratio in (usual, 4.0, 48 / 11):
        if int(width * ratio) == hidden:
            return ratio
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def known_heads(width: int) -> int:
    """Attention heads of the published encoder of this width.

    Raises:
      UserError: there is none.
    """
    heads = heads_of_width(width)
    if heads is None:
        raise UserError(
            f"--num-heads: is needed, since no published model is {width} wide and no shape tells "
            "the number of attention heads"
        )
    return heads
