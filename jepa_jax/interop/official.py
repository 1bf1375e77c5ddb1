"""The reference's checkpoints: three networks and the state of their AdamW."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import optax

from jepa_jax.config import Config
from jepa_jax.errors import UserError
from jepa_jax.interop.architecture import infer_config
from jepa_jax.interop.names import (
    NETWORKS,
    PREDICTOR,
    PUBLISHED,
    Tensor,
    encoder_tensors,
    ijepa_settings,
    predictor_tensors,
)
from jepa_jax.interop.tensors import OnBytes, TensorSource, check_names, read_network
from jepa_jax.interop.torch_file import check_archive, import_torch, load
from jepa_jax.models.positions import sincos_positions
from jepa_jax.objectives.ema import EmaState
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.schedules import make_schedules

# The reference also averages the fixed positions, and the rounding of that adds up.
# Simulated, the 187,500 steps of ViT-H/14 make 1.4e-4 of it; another table differs by about 1.
POSITION_TOLERANCE = 1e-2
_NOTED = ("epoch", "loss", "batch_size", "world_size", "lr", "scaler")


class Official(NamedTuple):
    """What a file holds, but for the numbers.

    Attributes:
      path: the file.
      config: inferred.
      networks: those of encoder, target_encoder and predictor that are there.
      step: optimizer steps taken; None without an optimizer.
      num_bytes: of all that will be read.
      source: what to note of its origin.
    """

    path: pathlib.Path
    config: Config
    networks: tuple[str, ...]
    step: int | None
    num_bytes: int
    source: dict[str, Any]


def open_official(
    path: pathlib.Path,
    base: dict[str, Any],
    *,
    num_heads: int | None,
    base_is_given: bool,
    allow_partial: bool,
    network: str | None,
) -> Official:
    """Checks a whole file.

    Args:
      base, num_heads, base_is_given: see `infer_config`.
      allow_partial: leave what is missing or misshapen at its random initialisation.
      network: which encoder it is, where the file is a bare state dict of one; None: the context
        encoder, as in timm.

    Raises:
      UserError: it is no such file, or not a whole one.
    """
    check_archive(path)
    content = _load(path, network or "encoder")
    states = {n: content[n] for n in ("encoder", "target_encoder", "predictor") if n in content}
    encoders = [name for name in states if name != "predictor"]
    if not encoders:
        raise UserError(f"{path}: holds no encoder; its keys are {', '.join(map(str, content))}")
    prefix = "module." if all(n.startswith("module.") for n in states[encoders[0]]) else ""
    sources = {name: _source(path, name, state) for name, state in states.items()}
    config = infer_config(
        base,
        sources[encoders[0]].shapes,
        PUBLISHED,
        predictor=sources["predictor"].shapes if "predictor" in sources else None,
        num_heads=num_heads,
        base_is_given=base_is_given,
    )
    noted = {name: content[name] for name in _NOTED if _is_plain(content.get(name))}
    sizes = [noted.get("batch_size"), noted.get("world_size", 1)]
    if not base_is_given and all(type(n) is int and 0 < n < 2**20 for n in sizes):
        config = dataclasses.replace(config, batch_size=math.prod(sizes))
    source = {"format": "official", "file": path.name, "prefix": prefix, **noted}
    partial, drifted = {}, []
    for name, given in sources.items():
        tensors, positions = tensors_of(config, name)
        lines = check_names(given, [*tensors, positions], allow_partial=allow_partial)
        if lines:
            partial[name] = lines
        if given.shapes.get(positions.name) != positions.shape:
            continue  # and so --allow-partial was given
        difference = _position_difference(given, positions, config)
        if difference <= POSITION_TOLERANCE:
            drifted += [name] if difference else []
        elif len(content) == 1:  # timm's models may have learned them
            model = dataclasses.replace(config.model, positions="learned")
            config = dataclasses.replace(config, model=model)
        else:
            raise UserError(
                f"{given.where}: {positions.name} differs from the sine-cosine table of a "
                f"{config.grid[0]} x {config.grid[1]} grid by up to {difference:.2g}; the "
                "published networks have no others"
            )
    step = None
    if content.get("opt") and len(sources) == 3 and not partial:
        step, groups = _check_optimizer(path, content["opt"], config)
        source["param_groups"] = groups
        b1, b2 = groups[0]["betas"]
        adam: dict[str, Any] = {"b1": float(b1), "b2": float(b2), "eps": float(groups[0]["eps"])}
        optimizer = dataclasses.replace(config.optimizer, **adam, first_moment_dtype="float32")
        config = dataclasses.replace(config, optimizer=optimizer)
    return Official(
        path,
        config,
        tuple(sources),
        step,
        count_bytes(config, sources, moments=step is not None),
        source | ({"partial": partial} if partial else {}) | {"positions": drifted},
    )


def official_items(official: Official, progress: OnBytes) -> Iterator[tuple[str, Any]]:
    """The items of our checkpoint; see `converted.write` and `read_network`."""
    config, networks = official.config, official.networks
    objective = make_objective(config)
    params = jax.eval_shape(objective.init, jax.random.key(config.seed))
    initial = params
    if "partial" in official.source:
        initial = jax.device_get(objective.init(jax.random.key(config.seed)))

    def read(network: str, *, moment: str | None = None) -> dict[str, Any]:
        content = _load(official.path, network)
        tensors, _ = tensors_of(config, network)
        given = _source(official.path, network, content[network])
        part = "predictor" if network == "predictor" else "encoder"
        start = params if moment else initial
        if moment:
            given = _moments(official.path, content["opt"], config, network, moment)
        arrays = flax.traverse_util.flatten_dict(start[part])
        return read_network(given, tensors, arrays, progress)

    if "predictor" in networks and "encoder" in networks:
        yield "params", {name: read(name) for name in ("encoder", "predictor")}
    elif "encoder" in networks:
        yield "encoder", read("encoder")
    if "target_encoder" in networks:
        yield "target_encoder", read("target_encoder")
    if official.source["positions"]:
        content, tables = _load(official.path, official.networks[0]), {}
        for name in official.source["positions"]:
            given = _source(official.path, name, content[name])
            tables[name] = np.array(given.read(tensors_of(config, name)[1].name)[0])
        yield "positions", tables
    if official.step is not None:
        step = np.array(official.step, np.int32)
        schedules = make_schedules(config, steps_per_epoch=1)  # only their names matter here
        state = jax.eval_shape(make_optimizer(config.optimizer, schedules).init, params)
        for field, moment in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            moments = {name: read(name, moment=moment) for name in ("encoder", "predictor")}
            state = optax.tree.set(state, **{field: moments})
        state = jax.tree.map(  # what is left are counters
            lambda leaf: step if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, state
        )
        yield "optimizer_state", {"step": step, "state": state}
        yield "objective_state", EmaState(step=step, target=())


def tensors_of(config: Config, network: str) -> tuple[list[Tensor], Tensor]:
    """The tensors of a published network, and its fixed positions."""
    if network == "predictor":
        tensors, name = predictor_tensors(config), PREDICTOR
        dim = ijepa_settings(config).predictor.embed_dim
    else:
        tensors, name = encoder_tensors(config, PUBLISHED), PUBLISHED
        dim = config.model.embed_dim
    shape = (1, config.grid[0] * config.grid[1], dim)
    return tensors, Tensor(name.pos_embed, shape, (0, 1, 2), (), (...,))


def count_bytes(config: Config, networks: Iterable[str], *, moments: bool) -> int:
    """Of the parameters of some networks, and of both moments of what is trained."""

    def of(network: str) -> int:
        return sum(4 * math.prod(tensor.shape) for tensor in tensors_of(config, network)[0])

    trained = 2 * (of("encoder") + of("predictor")) if moments else 0
    return sum(map(of, networks)) + trained


def in_order(config: Config, network: str) -> list[Tensor]:
    """All tensors of a published network, in the order in which PyTorch lists its parameters."""
    tensors, positions = tensors_of(config, network)
    own = [tensor for tensor in tensors if tensor.name == "mask_token"]
    return [*own, positions, *(tensor for tensor in tensors if tensor not in own)]


def parameter_groups(config: Config) -> list[list[tuple[str, Tensor]]]:
    """The published AdamW's parameters (network, tensor) by group, in its order.

    Encoder and predictor, first what decays, then biases and LayerNorm. The positions count among
    what decays, though nothing trains them.
    """
    decayed, others = [], []
    for network in ("encoder", "predictor"):
        tensors = in_order(config, network)
        matrices = [t for t in tensors if "bias" not in t.name and len(t.shape) > 1]
        decayed.append([(network, t) for t in matrices])
        others.append([(network, t) for t in tensors if t not in matrices])
    return decayed + others


def _load(path: pathlib.Path, network: str) -> dict[str, Any]:
    """The file's content. A bare state dict, which has no key for a network, becomes `network`."""
    torch, content = import_torch(), load(path)
    if any(str(name).removeprefix("module.").startswith("patch_embed.") for name in content):
        content = {network: content}
    for name in (*NETWORKS, "predictor"):
        if name not in content:
            continue
        state = content[name]
        if not isinstance(state, dict) or not state:
            raise UserError(f"{path}: {name} is a {type(state).__name__}, not a state dict")
        for key, value in state.items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor):
                raise UserError(f"{path}: {name}: {key!r} is no named tensor")
            if not _is_whole(value):
                raise UserError(f"{path}: {name}: not all numbers of {key} are in the file")
    return content


def _source(path: pathlib.Path, network: str, state: dict[str, Any]) -> TensorSource:
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return TensorSource(
        where=f"{path}: {network}",
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        dtypes={name: str(t.dtype).removeprefix("torch.") for name, t in state.items()},
        read=lambda name: state[name].numpy(),
    )


def _is_whole(tensor: Any) -> bool:
    """Whether each number is there: none is left out, as in sparse tensors, or stands for many."""
    if str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _position_difference(given: TensorSource, positions: Tensor, config: Config) -> float:
    """Between a file's positions and ours, at most."""
    expected = sincos_positions(config.grid, positions.shape[2])
    difference = np.abs(given.read(positions.name)[0] - expected).max()
    return math.inf if np.isnan(difference) else float(difference)


def _check_optimizer(
    path: pathlib.Path, opt: Any, config: Config
) -> tuple[int, list[dict[str, Any]]]:
    """Optimizer steps taken, and the options of each parameter group."""
    where = f"{path}: opt"
    try:
        groups, state = opt["param_groups"], opt["state"]
        given = [list(group["params"]) for group in groups]
        options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        for group in options:
            b1, b2 = group["betas"]
            if not (0 <= b1 < 1 and 0 <= b2 < 1 and group["eps"] > 0 and _is_plain(group)):
                raise ValueError
        steps = {float(entry["step"]) for entry in state.values()}
    except Exception as error:  # whatever else it is
        raise UserError(f"{where}: not the state of a torch.optim.AdamW") from error
    expected = [len(group) for group in parameter_groups(config)]
    if [len(numbers) for numbers in given] != expected:
        found = [len(numbers) for numbers in given]
        raise UserError(f"{where}: has parameter groups of {found}, and not of {expected}")
    for numbers, tensors in zip(given, parameter_groups(config), strict=True):
        for number, (network, tensor) in zip(numbers, tensors, strict=True):
            if not tensor.path or not state:  # fixed positions; or no step was taken
                continue
            for name in ("exp_avg", "exp_avg_sq"):
                moment = state.get(number, {}).get(name)
                if tuple(getattr(moment, "shape", ())) != tensor.shape:
                    raise UserError(
                        f"{where}: no moments of {network}'s {tensor.name} {tensor.shape}"
                    )
                if str(moment.dtype) != "torch.float32" or not _is_whole(moment):
                    raise UserError(f"{where}: {name} of {tensor.name} must be float32, and whole")
    if len(steps) > 1 or not all(0 <= step < 2**31 and step == int(step) for step in steps):
        raise UserError(f"{where}: parameters have taken different numbers of steps, {steps}")
    return int(max(steps, default=0)), options


def _moments(
    path: pathlib.Path, opt: dict[str, Any], config: Config, network: str, moment: str
) -> TensorSource:
    """One of AdamW's moments of a network's parameters, under the names of the parameters."""
    entries = {}
    for group, tensors in zip(opt["param_groups"], parameter_groups(config), strict=True):
        for number, (owner, tensor) in zip(group["params"], tensors, strict=True):
            if owner == network and tensor.path and opt["state"]:
                entries[tensor.name] = opt["state"][number][moment]
    return _source(path, f"opt: {moment} of {network}", entries)


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return value is not None
