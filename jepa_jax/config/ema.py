"""The configuration of a moving average of the parameters."""

import dataclasses
from typing import Literal

from jepa_jax.config.schema import Share, ShareAboveZero, ShareBetween
from jepa_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    start_momentum: Share = 0.996  # of the target encoder, rising ...
    final_momentum: Share = 1.0  # ... to this
    # Along a straight line (Assran et al., 2023) or a half cosine (Grill et al., 2020).
    schedule: Literal["linear", "cosine"] = "linear"
    rise_share: ShareAboveZero = 1.0  # of the schedules' horizon, over which it rises
    # In place of `start_momentum`, which then follows from the number of steps: the share of its
    # start that the target keeps at the schedules' end, the product of all momenta. At .996, a run
    # of 60 steps keeps 89 %, one of 460 steps 40 %, and one of 3,700 steps 0.06 %.
    kept_share: ShareBetween | None = None

    def check(self) -> None:
        """Refuses a share that no start momentum gives; see `config.resolve`."""
        if self.kept_share is not None and self.final_momentum != 1.0:
            raise UserError(
                f"config.objective.ema.final_momentum = {self.final_momentum}: must be 1.0 "
                "with config.objective.ema.kept_share"
            )


LINEAR = EmaConfig()  # I-JEPA's and MSN's
COSINE = EmaConfig(schedule="cosine")  # BYOL's and DINO's
DATA2VEC = EmaConfig(start_momentum=0.999, final_momentum=0.9998, rise_share=0.1)
