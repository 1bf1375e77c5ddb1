"""The configuration of a run, and the one place that checks it.

A file in `configs/` returns a `ConfigDict` that sets what differs from the defaults below;
`resolve` turns it into the frozen `Config` that the rest of the code reads, or raises `UserError`
with one line. Nothing has been compiled or written by then.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

from jepa_jax.config.checks import check_patches, check_width
from jepa_jax.config.data import DataConfig
from jepa_jax.config.derived import ImageFacts, derive
from jepa_jax.config.formats import refuse_moved, replace_sentinels
from jepa_jax.config.objective import ObjectiveConfig
from jepa_jax.config.schema import (
    AboveZero,
    Bound,
    NotNegative,
    Positive,
    ShareAboveZero,
    ShareBelowOne,
    at_least,
    from_mapping,
)
from jepa_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder's shape."""

    patch_size: Positive  # pixels
    embed_dim: Positive  # width D
    depth: Positive  # transformer blocks
    num_heads: Positive
    mlp_ratio: AboveZero = 4.0  # hidden width of the MLP / embed_dim
    drop_path_rate: ShareBelowOne = 0.0  # stochastic depth: of the last block; linear from 0
    class_token: bool = False  # a learned token beside the patches', as MAE and ViT have
    # A fixed table, as published, or one that is trained, as in converted ViTs.
    positions: Literal["sincos", "learned"] = "sincos"
    layer_norm_eps: AboveZero = 1e-6  # other libraries' models have other values


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How it is computed, not what: a checkpoint may go on with other values."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products; parameters: float32
    # What the backward pass recomputes: nothing, all but matrix products, everything in a block.
    remat: Literal["none", "dots", "full"] = "none"
    # One compiled block in a loop, which compiles fast; False: unrolled, faster on TPUs by their
    # compiler's estimates.
    scan_layers: bool = True
    # "auto": a fused one where it works, in bfloat16: cuDNN's on GPUs, on TPUs a kernel of ours,
    # "pallas"; elsewhere "xla".
    attention: Literal["auto", "xla", "pallas"] = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    std: AboveZero = 0.02  # of all kernels; published, for widths of 768 and more
    # Divide the residual branches' last kernels by sqrt(2 * layer); the reference means to, but
    # undoes it.
    depth_rescale: bool = False
    # Weights to start from in place of random ones, as `--init` says; see warm_start.py.
    weights: str | None = None
    # Which of its encoders all of this run's start as; None: each as the one of its own name.
    network: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. The defaults are those of the published ViT-H/14 run (batch size 2048)."""

    start_lr: NotNegative = 2e-4  # learning rate at step 0, rising linearly ...
    lr: NotNegative = 1e-3  # ... to this after the warm-up, then along a cosine ...
    final_lr: NotNegative = 1e-6  # ... to this
    warmup_epochs: NotNegative = 40.0
    reference_batch_size: Positive | None = None  # that the rates are for; None: this run's own
    weight_decay: NotNegative = 0.04  # from this along a cosine ...
    final_weight_decay: NotNegative = 0.4  # ... to this; none on biases and LayerNorm
    # The learning rate of the encoder's block l of L is that of the rest times this to the power of
    # L + 1 - l, and of its patch embedding, l = 0 (Bao et al., 2022; He et al., 2022). 1: off.
    layer_decay: ShareAboveZero = 1.0
    b1: ShareBelowOne = 0.9
    b2: ShareBelowOne = 0.999
    eps: AboveZero = 1e-8
    # As kept from step to step; bfloat16 spares 2 bytes a parameter. The arithmetic is float32.
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    clip_norm: AboveZero | None = None  # largest global norm of the gradient; None: no clipping
    # A step whose loss or gradient is not finite changes nothing; so many in a row stop the run.
    max_skipped_steps: Positive = 3
    # So many steps in a row whose loss is far above those before them stop the run; None: never.
    max_spike_steps: Positive | None = 100
    # Stretches every schedule's horizon beyond the end of training.
    ipe_scale: Annotated[
        float, Bound("be at least 1, or the schedules would end too early", lambda x: x >= 1)
    ] = 1.0
    accumulation_steps: Positive = 1  # micro-batches per optimizer step


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh."""

    data: Positive | None = None  # None: all devices that the other two axes leave
    fsdp: Positive = 1
    tensor: Positive = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    every_steps: Positive = 50  # metrics to disk and screen
    diagnostics_every_steps: Positive | None = None  # signs of collapse; None: never
    knn_every_steps: Positive | None = None  # k-NN on held-out training images; None: never
    linear_every_steps: Positive | None = None  # the same with a linear head; None: never
    wandb: str | None = None  # project in Weights & Biases to log to as well; None: never


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: Positive = 1000  # besides the one at the end
    every_minutes: AboveZero | None = 10.0  # and when the last is that long ago; None: never
    keep_last: Positive = 2  # newest checkpoints to keep
    keep_every_steps: Positive | None = None  # also keep each multiple of this for ever


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    # Trace these steps, from the first to the last, into `workdir/profile`.
    steps: (
        Annotated[tuple[int, int], Bound("satisfy 1 <= first <= last", lambda x: 1 <= x[0] <= x[1])]
        | None
    ) = None
    hlo: bool = False  # write the compiled steps to `workdir/hlo`, as text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    seed: Annotated[int, at_least(0)] = 0
    epochs: Positive
    batch_size: Positive  # images per optimizer step, over all devices
    data: DataConfig
    model: ModelConfig
    init: InitConfig = InitConfig()
    objective: ObjectiveConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    logging: LoggingConfig = LoggingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    profile: ProfileConfig = ProfileConfig()
    # A batch, or a step, that takes longer ends the run with exit code 3; None: never.
    stall_minutes: AboveZero | None = 15.0
    debug: bool = False  # overfit the first batch, find where a NaN arises, print the parameters

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.data.image_size
        return height // self.model.patch_size, width // self.model.patch_size


def resolve(config: Any, measure: Callable[[DataConfig], ImageFacts] | None = None) -> Config:
    """Checks the configuration of a run.

    Args:
      config: a ConfigDict, or nested dictionaries.
      measure: see `derived.derive`.

    Raises:
      UserError: a field is unknown, missing, of the wrong type, or out of range; or has moved.
    """
    refuse_moved(config)
    resolved = from_mapping(Config, derive(replace_sentinels(config), measure))
    if len(resolved.data.mean) != len(resolved.data.std) or not resolved.data.mean:
        raise UserError(
            f"config.data.mean = {resolved.data.mean}: must have as many values as "
            "config.data.std, one for each channel"
        )
    if resolved.data.subset is not None:
        resolved.data.subset.check()
    check_patches("data.image_size", resolved.data.image_size, resolved.model.patch_size)
    check_width("model", resolved.model.embed_dim, resolved.model.num_heads)
    if resolved.batch_size % resolved.optimizer.accumulation_steps:
        raise UserError(
            f"config.batch_size = {resolved.batch_size}: must be a multiple of "
            f"config.optimizer.accumulation_steps = {resolved.optimizer.accumulation_steps}"
        )
    resolved.objective.check(resolved)
    return resolved
