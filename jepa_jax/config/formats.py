"""Older forms of the configuration, in checkpoints and in users' files.

A checkpoint's configuration carries its format's number; none is format 1. An upgrade is a pure
function from one format's nested dictionaries to the next's, and stays for good.
"""

import copy
from collections.abc import Callable
from typing import Any

from jepa_jax.config.schema import Text, parse
from jepa_jax.errors import UserError

FORMAT = 3
FIRST_WITH_MANIFEST = 3  # a checkpoint of this format without one was not completely saved

# Format 1 -> format 2: dotted names.
MOVED = {
    "masks": "objective.masks",
    "predictor": "objective.predictor",
    "ema": "objective.ema",
    "model.dtype": "compute.dtype",
    "model.remat": "compute.remat",
    "model.scan_layers": "compute.scan_layers",
    "model.attention": "compute.attention",
}
# Values that stood for None in format 1.
_SENTINELS = {
    "data.path": "",
    "data.train_split": "",
    "data.test_split": "",
    "optimizer.reference_batch_size": 0,
    "optimizer.clip_norm": 0,
    "mesh.data": -1,
    "logging.diagnostics_every_steps": 0,
    "logging.knn_every_steps": 0,
    "checkpoint.keep_every_steps": 0,
    "profile.steps": (0, 0),
}


def with_format(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as a checkpoint holds it."""
    return {"format": FORMAT, **config}


def upgrade(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration, of any format, in today's.

    Raises:
      UserError: it was written by a later version.
    """
    config = copy.deepcopy(saved)
    number = config.pop("format", 1)
    if number not in (*_UPGRADES, FORMAT):
        raise UserError(f"checkpoint of format {number}: this version reads 1 to {FORMAT}")
    for step in range(number, FORMAT):
        config = _UPGRADES[step](config)
    return config


def _from_1(config: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for old, new in MOVED.items():
        *sections, field = old.split(".")
        node = config
        for section in sections:
            node = node.get(section, {})
        if field not in node:
            continue
        value = node.pop(field)
        *sections, field = new.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node[field] = value
    return replace_sentinels(config)


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _from_1,
    2: dict,  # the fields are the same
}


def refuse_moved(config: Any) -> None:
    """Tells where the fields of an old file went.

    Raises:
      UserError: it sets one that has moved.
    """
    if not hasattr(config, "keys"):
        return
    found = []
    for old, new in MOVED.items():
        section, _, field = old.partition(".")
        value = config.get(section)
        if section in config and (not field or (hasattr(value, "keys") and field in value)):
            found.append(f"config.{old} is now config.{new}")
    if found:
        raise UserError(f"moved fields: {'; '.join(found)}")


def replace_sentinels(config: Any) -> Any:
    """None where an old file says 0, -1 or "" for it; all else as it was."""
    if not hasattr(config, "keys"):
        return config
    replaced = {name: config[name] for name in config}
    for dotted, sentinel in _SENTINELS.items():
        section, field = dotted.split(".")
        values = replaced.get(section)
        if values is None or not hasattr(values, "keys") or field not in values:
            continue
        value = parse(values[field]) if isinstance(values[field], Text) else values[field]
        if isinstance(value, bool):
            continue
        if (tuple(value) if isinstance(value, list) else value) == sentinel:
            replaced[section] = {name: values[name] for name in values} | {field: None}
    return replaced
