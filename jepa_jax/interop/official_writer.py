"""Writing a checkpoint of ours as the reference would."""

import itertools
import pathlib
from typing import Any

import jax
import numpy as np

from jepa_jax.config import Config
from jepa_jax.errors import UserError
from jepa_jax.interop.converted import read_source
from jepa_jax.interop.official import count_bytes, in_order, parameter_groups, tensors_of
from jepa_jax.interop.tensors import OnBytes, fetch_tensors
from jepa_jax.interop.torch_file import import_torch
from jepa_jax.models.positions import sincos_positions
from jepa_jax.models.transformer import LAYER_NORM_EPS
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.items import read_arrays, read_item
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.schedules import make_schedules
from jepa_jax.training.state import state_creator

# What the published loop's AdamW has in each parameter group besides what is set below.
_ADAMW_OPTIONS = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}


def official_bytes(folder: pathlib.Path) -> int:
    """Bytes that `write_official` converts."""
    held = [name for name in ("encoder", "target_encoder") if (folder / name).is_dir()]
    held += ["encoder", "predictor"] if (folder / "params").is_dir() else []
    moments = (folder / "optimizer_state").is_dir()
    return count_bytes(checkpoint.read_config(folder), held, moments=moments)


def write_official(
    folder: pathlib.Path, path: pathlib.Path, *, epoch: int | None, progress: OnBytes
) -> list[str]:
    """Writes the networks of a checkpoint, and its optimizer where it has one.

    Args:
      folder: of one checkpoint.
      path: the file to write.
      epoch: how many were completed, which is where the reference goes on; None: what the
        checkpoint came with, or else 0.
      progress: is called with the number of bytes, as they are converted.

    Returns:
      The networks in it.

    Raises:
      UserError: the checkpoint can't be read, or the format can't hold it.
    """
    torch, config = import_torch(), checkpoint.read_config(folder)
    source = read_source(folder)
    for name, value in (("positions", "sincos"), ("layer_norm_eps", LAYER_NORM_EPS)):
        if getattr(config.model, name) != value:
            raise UserError(
                f"checkpoint {folder}: config.model.{name} = {getattr(config.model, name)}; the "
                f"reference knows only {value}"
            )
    params = jax.eval_shape(make_objective(config).init, jax.random.key(0))
    tables = _position_tables(folder, source, config)

    def state_dict(network: str, item: str, like: Any, under: tuple[str, ...]) -> dict[str, Any]:
        tensors, positions = tensors_of(config, network)
        table = tables.get(network, sincos_positions(config.grid, positions.shape[2]))
        fetched = {positions.name: torch.from_numpy(table[None].copy())}
        arrays = read_arrays(folder / item, like, under=under)
        for tensor, array in fetch_tensors(arrays, tensors):
            fetched[tensor.name] = torch.from_numpy(array)
            progress(array.nbytes)
        prefix = source.get("prefix", "module.")
        return {prefix + t.name: fetched[t.name] for t in in_order(config, network)}

    content: dict[str, Any] = {}
    if (folder / "params").is_dir():
        for network in ("encoder", "predictor"):
            content[network] = state_dict(network, "params", params, (network,))
    for network in ("encoder", "target_encoder"):
        if (folder / network).is_dir():
            content[network] = state_dict(network, network, params["encoder"], ())
    networks = list(content)
    if (folder / "optimizer_state").is_dir():
        content["opt"] = _optimizer(folder, config, source, progress)
    defaults = {
        "scaler": None,
        "epoch": 0,
        "loss": 0.0,
        "batch_size": config.batch_size,
        "world_size": 1,
        "lr": config.optimizer.lr,
    }
    content |= {name: source.get(name, value) for name, value in defaults.items()}
    if epoch is not None:
        content["epoch"] = epoch
    torch.save(content, path)
    return networks


def _position_tables(
    folder: pathlib.Path, source: dict[str, Any], config: Config
) -> dict[str, np.ndarray]:
    """The positions that the checkpoint came with, where they are not exactly ours."""
    if not source.get("positions"):
        return {}
    shapes = {name: tensors_of(config, name)[1].shape[1:] for name in source["positions"]}
    like = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    return jax.device_get(read_item(folder / "positions", like))


def _optimizer(
    folder: pathlib.Path, config: Config, source: dict[str, Any], progress: OnBytes
) -> dict[str, Any]:
    """The state dict of the published AdamW.

    Its learning rates and weight decays are those that the file came with, or the configuration's:
    the reference sets both anew at each step.
    """
    torch, objective = import_torch(), make_objective(config)
    schedules = make_schedules(config, steps_per_epoch=1)  # only their names matter here
    optimizer = make_optimizer(config.optimizer, schedules)
    state = jax.eval_shape(state_creator(objective, optimizer, horizon=1.0, seed=0))
    like = checkpoint.expected_items(folder, state, objective)["optimizer_state"]
    tensors = {name: tensors_of(config, name)[0] for name in ("encoder", "predictor")}
    step, moments = 0, {}
    for path, array in read_arrays(folder / "optimizer_state", like):
        if path == ("step",):
            step = int(array)
        for field, name in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            if field in path:
                network, *below = path[path.index(field) + 1 :]
                for tensor, moment in fetch_tensors([(tuple(below), array)], tensors[network]):
                    moment = moment.astype(np.float32, copy=False)  # the first may be bfloat16
                    moments[network, tensor.name, name] = torch.from_numpy(moment)
                    progress(moment.nbytes)
        del array  # before the next one is read
    adam, numbers, entries, groups = config.optimizer, itertools.count(), {}, []
    for i, group in enumerate(parameter_groups(config)):
        group_numbers = [next(numbers) for _ in group]
        excluded = i >= 2
        options: dict[str, Any] = {"WD_exclude": True, "weight_decay": 0} if excluded else {}
        options |= {"lr": adam.lr, "betas": (adam.b1, adam.b2), "eps": adam.eps, **_ADAMW_OPTIONS}
        options = {"weight_decay": adam.weight_decay} | options
        if "param_groups" in source:
            options = dict(source["param_groups"][i])
            options["betas"] = tuple(options["betas"])
        groups.append(options | {"params": group_numbers})
        for number, (network, tensor) in zip(group_numbers, group, strict=True):
            if tensor.path and step:  # PyTorch has no entry for what got no gradient yet
                entries[number] = {"step": torch.tensor(float(step))} | {
                    name: moments[network, tensor.name, name] for name in ("exp_avg", "exp_avg_sq")
                }
    return {"state": entries, "param_groups": groups}
