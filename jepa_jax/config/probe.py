"""The configuration of a probe: one dataclass a protocol, told apart by `protocol`."""

import dataclasses
from typing import Annotated, Any, Literal

from jepa_jax.config.data import DataConfig, LowShotConfig
from jepa_jax.config.dense import DenseConfig
from jepa_jax.config.fine_tune import FineTuneConfig, resolve_fine_tune
from jepa_jax.config.probe_fields import NotEmpty, ProbeFields
from jepa_jax.config.run import Config, resolve
from jepa_jax.config.schema import (
    AboveZero,
    Bound,
    NotNegative,
    Positive,
    Scale,
    Share,
    from_mapping,
    to_dict,
)
from jepa_jax.errors import UserError

_Some = Bound("be one or more values above 0", lambda x: len(x) > 0 and min(x) > 0)
_Ascending = Bound(
    "be one or more blocks below 0, ascending; -1 is the last",
    lambda x: len(x) > 0 and max(x) < 0 and list(x) == sorted(set(x)),
)
Layers = Annotated[tuple[int, ...], _Ascending]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnConfig(ProbeFields):
    """k nearest neighbours among average-pooled features."""

    protocol: Literal["knn"] = "knn"
    layers: Layers = (-1,)  # blocks whose pooled tokens are concatenated
    candidates: Annotated[tuple[float, ...], _Some]  # of k
    low_shot: LowShotConfig | None = None
    metric: Literal["euclidean", "cosine"] = "euclidean"
    standardize: bool = True  # each column to mean 0 and deviation 1 first
    # Each neighbour counts the same, or as exp(similarity / temperature).
    votes: Annotated[tuple[Literal["majority", "weighted"], ...], NotEmpty] = ("majority",)
    temperature: AboveZero = 0.07


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig(ProbeFields):
    """Logistic (of numbers: ridge) regression on average-pooled features, by L-BFGS."""

    protocol: Literal["linear"] = "linear"
    layers: Layers = (-1,)  # blocks whose pooled tokens are concatenated
    candidates: Annotated[tuple[float, ...], _Some]  # of C, 1 / strength of the L2 term
    low_shot: LowShotConfig | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsConfig(ProbeFields):
    """Heads trained by gradient on a frozen encoder's features, a whole grid in one pass."""

    protocol: Literal["linear_lars", "attentive"]
    epochs: Positive = 50
    head_batch_size: Positive = 16_384  # images per step of the heads
    optimizer: Literal["lars", "adamw"] = "lars"
    lr: Annotated[tuple[AboveZero, ...], NotEmpty]  # lars: for a batch of 256, and scaled by it
    weight_decay: Annotated[tuple[NotNegative, ...], NotEmpty]
    # Divides the rate by 10 after each so many epochs; None: a cosine to 0.
    drop_epochs: Positive | None = 15
    # linear_lars: pooled tokens of the last block, or of the last four, concatenated ...
    features: Annotated[tuple[Literal["last", "last_four"], ...], NotEmpty] = ("last",)
    # ... with or without a batch norm that has no parameters.
    batch_norm: Annotated[tuple[bool, ...], NotEmpty] = (False,)
    # attentive: attention heads, and self-attention blocks ahead of the cross-attention.
    num_heads: Positive = 16
    self_attention_blocks: Annotated[int, Bound("be at least 0", lambda x: x >= 0)] = 0
    # The training images: random-resized crops of this share of the area, and flips; or, once for
    # all epochs, centre crops.
    augment: bool = True
    crop_scale: Scale = (0.08, 1.0)
    flip: Share = 0.5


ProbeConfig = KnnConfig | LinearConfig | HeadsConfig | DenseConfig | FineTuneConfig
_PROTOCOLS: dict[str, type] = {
    "knn": KnnConfig,
    "linear": LinearConfig,
    "linear_lars": HeadsConfig,
    "attentive": HeadsConfig,
    "fine_tune": FineTuneConfig,
    "segmentation": DenseConfig,
    "depth": DenseConfig,
}


def resolve_probe(config: Any) -> Any:
    """Checks the configuration of a probe; see `resolve` for the errors."""
    protocol = config.get("protocol") if hasattr(config, "get") else None
    if protocol not in _PROTOCOLS:
        problem = (
            "config.protocol: missing" if protocol is None else f"config.protocol = {protocol!r}"
        )
        raise UserError(f"{problem}: must be one of {', '.join(_PROTOCOLS)}")
    if protocol == "fine_tune":
        return resolve_fine_tune(config)
    resolved: Any = from_mapping(_PROTOCOLS[protocol], config)
    if getattr(resolved, "low_shot", None) is not None:
        resolved.low_shot.check()
    if isinstance(resolved, KnnConfig) and any(k != int(k) for k in resolved.candidates):
        raise UserError(
            f"config.candidates = {resolved.candidates}: must be whole numbers of neighbours"
        )
    return resolved


def probe_data(probe: ProbeConfig, trained: Config) -> DataConfig:
    """The data to probe on: the checkpoint's, with the probe's own fields put in.

    Raises:
      UserError: as `resolve`.
    """
    data = dataclasses.asdict(trained.data) | probe.data
    return resolve(to_dict(trained) | {"data": data}).data
