"""Fields that stand for others, and are replaced by them before a configuration is checked.

    field                          gives                      by
    model.size                     the networks' shapes       `sizes.SIZES`; a shape that is set too
                                                              takes precedence
    objective.masks.context_share  ... .context_tokens        the grid
    images_seen                    epochs                     the number of training images
    optimizer.warmup_share         optimizer.warmup_epochs    epochs
    data.mean, data.std = None     data.mean, data.std        the training images
    data.channels                  their length               None, with the two: the images'

A checkpoint holds what came out.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jepa_jax.config.data import DataConfig
from jepa_jax.config.schema import (
    Positive,
    ShareBelowOne,
    ShareBetween,
    convert,
    from_mapping,
    is_none,
)
from jepa_jax.config.sizes import SIZES, vit_size
from jepa_jax.errors import UserError

_Size = Literal[tuple(SIZES)]  # type: ignore[valid-type]
_Pair = tuple[Positive, Positive]

# On the command line, setting one takes away the others, which a file or a checkpoint has set.
REPLACES = {
    "epochs": ("images_seen",),
    "images_seen": ("epochs",),
    "optimizer.warmup_epochs": ("optimizer.warmup_share",),
    "optimizer.warmup_share": ("optimizer.warmup_epochs",),
    "objective.masks.context_tokens": ("objective.masks.context_share",),
    "objective.masks.context_share": ("objective.masks.context_tokens",),
    "objective.ema.start_momentum": ("objective.ema.kept_share",),
    "model.size": (
        *(f"model.{name}" for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")),
        "objective.predictor",
    ),
}


class ImageFacts(NamedTuple):
    """What a configuration may take from the training images."""

    num_images: int
    mean: tuple[float, ...]  # of each channel, pixels in 0..1
    std: tuple[float, ...]


def derive(
    config: Any, measure: Callable[[DataConfig], ImageFacts] | None = None
) -> dict[str, Any]:
    """The same fields, with those that stand for others replaced.

    Args:
      config: nested dictionaries, as `files.load_config` gives them.
      measure: looks at the training images; called only if a field needs that.

    Raises:
      UserError: a value is not allowed, or needs the images where there is no `measure`.
    """
    if not hasattr(config, "keys"):
        return config
    config = {name: config[name] for name in config}
    _sizes(config)
    _context(config)
    _from_images(config, measure)
    optimizer = _section(config, "optimizer")
    if "warmup_share" in optimizer:
        _one_of("optimizer.", optimizer, "warmup_share", "warmup_epochs")
        share = optimizer["warmup_share"]
        share = convert(ShareBelowOne, share, "config.optimizer.warmup_share")
        epochs = convert(Positive, config.get("epochs"), "config.epochs")
        del optimizer["warmup_share"]
        config["optimizer"] = optimizer | {"warmup_epochs": share * epochs}
    return config


def _section(fields: Any, name: str) -> dict[str, Any]:
    """A copy of a section; none if it is missing or, which `from_mapping` refuses, a value."""
    section = fields.get(name)
    return {key: section[key] for key in section} if hasattr(section, "keys") else {}


def _one_of(section: str, fields: Any, first: str, second: str) -> None:
    if first in fields and second in fields:
        raise UserError(f"config.{section}{first}: stands for {second}; set only one of them")


def _sizes(config: dict[str, Any]) -> None:
    model, objective = _section(config, "model"), _section(config, "objective")
    if "size" not in model:
        return
    encoder, predictor = vit_size(convert(_Size, model.pop("size"), "config.model.size"))
    config["model"] = encoder | model
    if objective.get("name") == "ijepa":
        config["objective"] = objective | {
            "predictor": predictor | _section(objective, "predictor")
        }


def _context(config: dict[str, Any]) -> None:
    objective = _section(config, "objective")
    masks = _section(objective, "masks")
    if "context_share" not in masks:
        return
    _one_of("objective.masks.", masks, "context_share", "context_tokens")
    field = "config.objective.masks.context_share"
    share = convert(ShareBetween, masks.pop("context_share"), field)
    data, model = _section(config, "data"), _section(config, "model")
    size = convert(_Pair, data.get("image_size"), "config.data.image_size")
    patch_size = convert(Positive, model.get("patch_size"), "config.model.patch_size")
    num_patches = (size[0] // patch_size) * (size[1] // patch_size)
    masks["context_tokens"] = max(round(share * num_patches), 1)
    config["objective"] = objective | {"masks": masks}


def _from_images(
    config: dict[str, Any], measure: Callable[[DataConfig], ImageFacts] | None
) -> None:
    _one_of("", config, "images_seen", "epochs")
    images_seen = config.pop("images_seen", None)
    data = _section(config, "data")
    wanted = ["epochs"] if images_seen is not None else []
    wanted += [f"data.{n}" for n in ("mean", "std") if n in data and is_none(data[n])]
    channels = _channels(data)
    if data:
        config["data"] = data
    if not wanted:
        return
    if measure is None:
        raise UserError(
            f"config.{wanted[0]}: follows from the training images in this configuration, and only "
            "jepa_jax.train looks at them; set it"
        )
    if images_seen is not None:
        images_seen = convert(Positive, images_seen, "config.images_seen")
    unknown = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    facts = measure(from_mapping(DataConfig, {**data, **unknown}, "config.data"))
    if "epochs" in wanted:
        config["epochs"] = math.ceil(images_seen / facts.num_images)
    measured = {"mean": facts.mean, "std": facts.std}
    config["data"] = {**data, **{n: measured[n] for n in measured if f"data.{n}" in wanted}}


def _channels(data: dict[str, Any]) -> int:
    """Takes the number of channels out of the section; 0: as the images have."""
    channels = data.pop("channels", None)
    channels = convert(Positive | None, channels, "config.data.channels")
    given = [data[name] for name in ("mean", "std") if isinstance(data.get(name), list | tuple)]
    for values in given:
        if channels is not None and len(values) != channels:
            raise UserError(
                f"config.data.channels = {channels}: config.data.mean and std must have as many "
                "values, or be None, to be measured"
            )
    return channels or (len(given[0]) if given else 0)
