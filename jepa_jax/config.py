"""The schema of a run's configuration, and the one place that checks it.

A file in `configs/` returns a `ConfigDict` that fills every field below; `resolve` turns it into
the frozen `Config` that the rest of the code reads, or raises `UserError` with one line that names
the field, its value and what is allowed. Nothing has been compiled or written by then.
"""

import dataclasses
import difflib
import math
import typing
from typing import Any, Literal

from jepa_jax.errors import UserError

# The encoders of a trained model: the moving average, which the paper evaluates, and the context
# encoder, which the gradient trains.
NETWORKS = ("target_encoder", "encoder")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: Literal["fashion_mnist", "tfds", "folder"]
    path: str  # folder: its path; tfds: the data set's name; fashion_mnist: "" (bundled)
    train_split: str  # folder: sub-folder, "" for the folder itself; tfds: split; else "train"
    test_split: str  # as train_split; read by the probes only
    image_size: tuple[int, int]  # height, width in pixels, after cropping and resizing
    crop_scale: tuple[float, float]  # random-resized-crop: share of the image's area
    crop_aspect_ratio: tuple[float, float]  # random-resized-crop: width / height
    eval_crop: float  # probes: side of the centre crop as a share of the largest that fits
    mean: tuple[float, float, float]  # of the pixels in 0..1, for normalisation
    std: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    patch_size: int  # pixels
    embed_dim: int  # width D
    depth: int  # transformer blocks
    num_heads: int
    mlp_ratio: float  # hidden width of the MLP / embed_dim
    drop_path_rate: float  # stochastic depth of the last block; linear from 0 at the first
    dtype: Literal["float32", "bfloat16"]  # of the matrix products; parameters stay float32
    remat: Literal["none", "dots", "full"]  # what the backward pass recomputes: nothing,
    # all but matrix products, everything within a block
    scan_layers: bool  # one compiled block in a loop (fast compile), else blocks unrolled
    # "auto": cuDNN's fused attention where it works, on GPUs in bfloat16, else XLA's.
    attention: Literal["auto", "xla"] = "auto"
    # The encoder's: a fixed table, as published, or one that is trained, as in converted ViTs.
    positions: Literal["sincos", "learned"] = "sincos"
    layer_norm_eps: float = 1e-6  # the encoder's; other libraries' models have other values


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    embed_dim: int
    depth: int
    num_heads: int


@dataclasses.dataclass(frozen=True)
class InitConfig:
    std: float  # of all kernels; published: 0.02, for widths of 768 and more
    depth_rescale: bool  # divide the residual branches' last kernels by sqrt(2 * layer)


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    context_tokens: int  # K: patches that the context encoder sees, exactly
    context_scale: tuple[float, float]  # share of the grid's area; aspect ratio 1
    num_targets: int  # M
    target_scale: tuple[float, float]
    target_aspect_ratio: tuple[float, float]  # height / width
    allow_overlap: bool  # let the context see patches of the targets
    published: bool  # the published code's off-by-one corners and raster-order truncation


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    name: Literal["ijepa"]
    loss: Literal["l2", "smooth_l1"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    start_lr: float  # learning rate at step 0, rising linearly ...
    lr: float  # ... to this after the warm-up, then along a cosine ...
    final_lr: float  # ... to this
    warmup_epochs: float
    reference_batch_size: int  # the batch size that the three rates are for; 0: do not scale them
    weight_decay: float  # from this along a cosine ...
    final_weight_decay: float  # ... to this; none on biases and LayerNorm
    b1: float
    b2: float
    eps: float
    clip_norm: float  # largest global norm of the gradient; 0: no clipping
    ipe_scale: float  # stretches every schedule's horizon beyond the end of training
    accumulation_steps: int  # micro-batches per optimizer step


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    start_momentum: float  # of the target encoder, rising linearly ...
    final_momentum: float  # ... to this


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int  # -1: all devices that the other two axes leave
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    every_steps: int  # metrics to disk and screen
    diagnostics_every_steps: int  # collapse diagnostics of the target features; 0: never
    knn_every_steps: int  # k-NN accuracy on held-out training images; 0: never


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int  # besides the one at the end
    keep_last: int  # newest checkpoints to keep
    keep_every_steps: int  # also keep each multiple of this for ever; 0: none


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    # Trace these steps, from the first to the last, into `workdir/profile`; (0, 0): none.
    steps: tuple[int, int] = (0, 0)
    hlo: bool = False  # write the compiled steps to `workdir/hlo`, as text


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    epochs: int
    batch_size: int  # images per optimizer step, over all devices
    data: DataConfig
    model: ModelConfig
    predictor: PredictorConfig
    init: InitConfig
    masks: MaskConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    ema: EmaConfig
    mesh: MeshConfig
    logging: LoggingConfig
    checkpoint: CheckpointConfig
    # For a closer look at a run; a config file need not mention them.
    debug: bool = False  # overfit the first batch, find where a NaN arises, print the parameters
    profile: ProfileConfig = ProfileConfig()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.data.image_size
        return height // self.model.patch_size, width // self.model.patch_size


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    protocol: Literal["knn", "linear"]
    data: dict  # fields of DataConfig that differ from what the checkpoint was trained on
    batch_size: int  # images per forward pass
    validation_fraction: float  # of the training images, to choose the hyper-parameter
    seed: int  # of the train / validation split
    controls: bool  # also probe the encoder at its random initialisation, and raw pixels
    candidates: tuple[float, ...]  # to choose from; knn: k, linear: C, 1 / strength of the L2 term


def resolve(config: Any) -> Config:
    """Checks the configuration of a run.

    Args:
      config: a ConfigDict, or nested dictionaries.

    Raises:
      UserError: a field is unknown, missing, of the wrong type, or out of range.
    """
    resolved = from_mapping(Config, config)
    _check_ranges(resolved)
    _check_shapes(resolved)
    return resolved


def resolve_probe(config: Any) -> ProbeConfig:
    """Checks the configuration of a probe; see `resolve` for the errors."""
    resolved = from_mapping(ProbeConfig, config)
    if resolved.batch_size < 1:
        raise UserError(f"config.batch_size = {resolved.batch_size}: must be at least 1")
    if not 0 < resolved.validation_fraction < 1:
        raise UserError(
            f"config.validation_fraction = {resolved.validation_fraction}: must be between 0 and 1"
        )
    candidates = resolved.candidates
    if not candidates or min(candidates) <= 0:
        raise UserError(f"config.candidates = {candidates}: must be one or more values above 0")
    if resolved.protocol == "knn" and any(k != int(k) for k in candidates):
        raise UserError(f"config.candidates = {candidates}: must be whole numbers of neighbours")
    return resolved


def probe_data(probe: ProbeConfig, trained: Config) -> DataConfig:
    """The data to probe on: the checkpoint's, with the probe's own fields put in.

    Raises:
      UserError: as `resolve`.
    """
    data = dataclasses.asdict(trained.data) | probe.data
    return resolve(to_dict(trained) | {"data": data}).data


def from_mapping(schema: type, mapping: Any, prefix: str = "config") -> Any:
    """Builds the dataclass `schema` from a (nested) mapping; see `resolve` for the errors."""
    if not hasattr(mapping, "keys"):
        raise UserError(f"{prefix} = {_shown(mapping)}: expected the fields of {schema.__name__}")
    hints = typing.get_type_hints(schema)
    for name in mapping:
        if name not in hints:
            nearest = difflib.get_close_matches(str(name), hints, n=1, cutoff=0.0)[0]
            raise UserError(f"{prefix}.{name}: no such field; did you mean {prefix}.{nearest}?")
    optional = {
        field.name
        for field in dataclasses.fields(schema)
        if field.default is not dataclasses.MISSING
    }
    missing = [name for name in hints if name not in mapping and name not in optional]
    if missing:
        raise UserError(f"{prefix}.{missing[0]}: missing; the config file must set it")
    return schema(
        **{
            name: _convert(hint, mapping[name], f"{prefix}.{name}")
            for name, hint in hints.items()
            if name in mapping
        }
    )


def to_dict(config: Config | ProbeConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries, for JSON."""
    return dataclasses.asdict(config)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ between two `to_dict` results: dotted name -> (old, new)."""
    old, new = _flatten(old), _flatten(new)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _convert(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint`; only lossless conversions (int to float, list to tuple)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, name)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise UserError(f"{name} = {_shown(value)}: must be one of {allowed}")
        return value
    if origin is tuple:
        length = None if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
            kind = "a tuple" if length is None else f"{length} values"
            raise UserError(
                f"{name} = {_shown(value)}: must be {kind} of type {arguments[0].__name__}"
            )
        return tuple(_convert(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if hint is dict and hasattr(value, "keys"):  # a ConfigDict is no dict
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UserError(f"{name} = {_shown(value)}: must be of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{name} = {value}: must be a finite number")
    return value


def _shown(value: Any) -> str:
    """`value` in one line, as errors are (the text of a ConfigDict has several)."""
    return " ".join(repr(value).split())


def _flatten(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in mapping.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _check_ranges(config: Config) -> None:
    """Each number by itself."""
    at_least = {
        1: "epochs batch_size model.patch_size model.depth model.num_heads predictor.depth "
        "predictor.num_heads masks.context_tokens masks.num_targets optimizer.accumulation_steps "
        "mesh.fsdp mesh.tensor logging.every_steps checkpoint.every_steps checkpoint.keep_last",
        0: "seed optimizer.start_lr optimizer.lr optimizer.final_lr optimizer.warmup_epochs "
        "optimizer.reference_batch_size optimizer.weight_decay optimizer.final_weight_decay "
        "optimizer.clip_norm logging.diagnostics_every_steps logging.knn_every_steps "
        "checkpoint.keep_every_steps",
    }
    values = _flatten(to_dict(config))
    for lowest, names in at_least.items():
        for name in names.split():
            if not values[name] >= lowest:
                raise UserError(f"config.{name} = {values[name]}: must be at least {lowest}")
    for name in ("data.crop_scale", "masks.context_scale", "masks.target_scale"):
        low, high = values[name]
        if not 0 < low <= high <= 1:
            raise UserError(f"config.{name} = ({low}, {high}): must satisfy 0 < low <= high <= 1")
    for name in ("data.crop_aspect_ratio", "masks.target_aspect_ratio"):
        low, high = values[name]
        if not 0 < low <= high:
            raise UserError(f"config.{name} = ({low}, {high}): must satisfy 0 < low <= high")
    for name in ("ema.start_momentum", "ema.final_momentum"):
        if not 0 <= values[name] <= 1:
            raise UserError(f"config.{name} = {values[name]}: must lie in 0..1")
    for name in ("model.drop_path_rate", "optimizer.b1", "optimizer.b2"):
        if not 0 <= values[name] < 1:
            raise UserError(f"config.{name} = {values[name]}: must lie in 0..1, below 1")
    for name in (
        "model.mlp_ratio",
        "model.layer_norm_eps",
        "init.std",
        "optimizer.eps",
        "data.eval_crop",
    ):
        if not values[name] > 0:
            raise UserError(f"config.{name} = {values[name]}: must be above 0")
    if config.data.eval_crop > 1:
        raise UserError(f"config.data.eval_crop = {config.data.eval_crop}: must be at most 1")
    if config.optimizer.ipe_scale < 1:
        raise UserError(
            f"config.optimizer.ipe_scale = {config.optimizer.ipe_scale}: must be at least 1, "
            "or the schedules would end before training does"
        )
    if config.mesh.data != -1 and config.mesh.data < 1:
        raise UserError(f"config.mesh.data = {config.mesh.data}: must be at least 1, or -1 for all")
    first, last = config.profile.steps
    if (first, last) != (0, 0) and not 1 <= first <= last:
        raise UserError(
            f"config.profile.steps = ({first}, {last}): must satisfy 1 <= first <= last, or be "
            "(0, 0) for none"
        )
    if min(config.data.std) <= 0:
        raise UserError(f"config.data.std = {config.data.std}: must be above 0")


def _check_shapes(config: Config) -> None:
    """Numbers that must divide each other."""
    for side, pixels in zip(("height", "width"), config.data.image_size, strict=True):
        if pixels < 1 or pixels % config.model.patch_size:
            raise UserError(
                f"config.data.image_size = {config.data.image_size}: the {side} must be a positive "
                f"multiple of config.model.patch_size = {config.model.patch_size}"
            )
    for part in ("model", "predictor"):
        width, heads = getattr(config, part).embed_dim, getattr(config, part).num_heads
        if width < 4 or width % 4:
            raise UserError(
                f"config.{part}.embed_dim = {width}: must be a positive multiple of 4 "
                "(sine and cosine of two coordinates)"
            )
        if width % heads:
            raise UserError(
                f"config.{part}.num_heads = {heads}: must divide config.{part}.embed_dim = {width}"
            )
    if config.batch_size % config.optimizer.accumulation_steps:
        raise UserError(
            f"config.batch_size = {config.batch_size}: must be a multiple of "
            f"config.optimizer.accumulation_steps = {config.optimizer.accumulation_steps}"
        )
    if config.masks.context_tokens > config.grid[0] * config.grid[1]:
        raise UserError(
            f"config.masks.context_tokens = {config.masks.context_tokens}: the grid has only "
            f"{config.grid[0]} x {config.grid[1]} = {config.grid[0] * config.grid[1]} patches"
        )
