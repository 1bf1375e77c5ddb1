"""The objectives by the name that a configuration gives them: the one place that lists them."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from jepa_jax.batch.pixels import normalize
from jepa_jax.config import Config
from jepa_jax.objectives import (
    byol,
    data2vec,
    dino,
    ijepa,
    lejepa,
    mae,
    msn,
    simclr,
    supervised,
    swav,
    vicreg,
)
from jepa_jax.objectives.objective import Batch, Clock, Objective, Params

# name -> (the run's configuration, the objective's section of it) -> the objective
OBJECTIVES: dict[str, Callable[[Config, Any], Objective]] = {
    "ijepa": ijepa.make,
    "supervised": supervised.make,
    "mae": mae.make,
    "vicreg": vicreg.make,
    "swav": swav.make,
    "simclr": simclr.make,
    "byol": byol.make,
    "lejepa": lejepa.make,
    "dino": dino.make,
    "msn": msn.make,
    "data2vec": data2vec.make,
}


def make_objective(config: Config) -> Objective:
    """The objective of a run's configuration.

    Its `loss`, `encode`, `classify` and `predict` take images as pixels too, uint8 or uint16, which
    are normalised here, on the device: a quarter of the bytes of float32 cross to it. Its `init` is
    jitted: a run asks for the shapes of its parameters several times, and traces it once.
    """
    objective = OBJECTIVES[config.objective.name](config, config.objective)
    mean, std = config.data.mean, config.data.std
    views = {view.name for view in objective.needs.views}

    def loss(params: Params, state: Any, batch: Batch, key: Array, clock: Clock) -> Any:
        batch = {
            name: normalize(array, mean, std) if name in views else array
            for name, array in batch.items()
        }
        return objective.loss(params, state, batch, key, clock)

    def encode(weights: Params, images: Array, layers: tuple[int, ...] | None = None) -> Array:
        return objective.encode(weights, normalize(images, mean, std), layers)

    def of_pixels(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """The same function of (parameters, state, pixels, ...)."""
        if function is None:
            return None
        return lambda params, state, images, *rest: function(
            params, state, normalize(images, mean, std), *rest
        )

    return objective._replace(
        init=jax.jit(objective.init),
        loss=loss,
        encode=encode,
        classify=of_pixels(objective.classify),
        predict=of_pixels(objective.predict),
    )
