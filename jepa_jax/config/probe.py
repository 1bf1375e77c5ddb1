"""The configuration of a probe."""

import dataclasses
from typing import Annotated, Any, Literal

from jepa_jax.config.data import DataConfig
from jepa_jax.config.run import Config, resolve
from jepa_jax.config.schema import Bound, Positive, from_mapping, to_dict
from jepa_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    protocol: Literal["knn", "linear"]
    data: dict = dataclasses.field(default_factory=dict)  # fields of DataConfig that differ from
    # what the checkpoint was trained on
    batch_size: Positive = 250  # images per forward pass
    # Of the training images, to choose the hyper-parameter.
    validation_fraction: Annotated[float, Bound("be between 0 and 1", lambda x: 0 < x < 1)] = 0.2
    seed: int = 0  # of the train / validation split
    controls: bool = True  # also probe the encoder at its random initialisation, and raw pixels
    # To choose from; knn: k, linear: C, 1 / strength of the L2 term.
    candidates: Annotated[
        tuple[float, ...],
        Bound("be one or more values above 0", lambda x: len(x) > 0 and min(x) > 0),
    ]


def resolve_probe(config: Any) -> ProbeConfig:
    """Checks the configuration of a probe; see `resolve` for the errors."""
    resolved = from_mapping(ProbeConfig, config)
    if resolved.protocol == "knn" and any(k != int(k) for k in resolved.candidates):
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
