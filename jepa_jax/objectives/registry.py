"""The objectives by the name that a configuration gives them: the one place that lists them."""

from collections.abc import Callable
from typing import Any

from jepa_jax.config import Config
from jepa_jax.objectives import ijepa, mae, supervised, swav, vicreg
from jepa_jax.objectives.objective import Objective

# name -> (the run's configuration, the objective's section of it) -> the objective
OBJECTIVES: dict[str, Callable[[Config, Any], Objective]] = {
    "ijepa": ijepa.make,
    "supervised": supervised.make,
    "mae": mae.make,
    "vicreg": vicreg.make,
    "swav": swav.make,
}


def make_objective(config: Config) -> Objective:
    """The objective of a run's configuration."""
    return OBJECTIVES[config.objective.name](config, config.objective)
