"""What the configurations of all probes have."""

import dataclasses
from typing import Annotated

from jepa_jax.config.schema import Bound, Positive

NotEmpty = Bound("be one or more values", lambda x: len(x) > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeFields:
    """What all protocols have."""

    # Fields of DataConfig that differ from what the checkpoint was trained on.
    data: dict = dataclasses.field(default_factory=dict)
    batch_size: Positive = 250  # images per forward pass
    # Of the training images, to choose the hyper-parameters.
    validation_fraction: Annotated[float, Bound("be between 0 and 1", lambda x: 0 < x < 1)] = 0.2
    seed: int = 0  # of the train / validation split
    # Also probe the encoder at its random initialisation, and raw pixels.
    controls: bool = True
    # Also probe this checkpoint, as a control that saw labels: a workdir of the same architecture.
    supervised: str | None = None
