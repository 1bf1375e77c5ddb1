"""The objectives by the name that a configuration gives them: the one place that lists them."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from jepa_jax.batch.pixels import normalize
from jepa_jax.config import Config
from jepa_jax.objectives import ijepa, mae, supervised, swav, vicreg
from jepa_jax.objectives.objective import Batch, Clock, Objective, Params

# name -> (the run's configuration, the objective's section of it) -> the objective
OBJECTIVES: dict[str, Callable[[Config, Any], Objective]] = {
    "ijepa": ijepa.make,
    "supervised": supervised.make,
    "mae": mae.make,
    "vicreg": vicreg.make,
    "swav": swav.make,
}


def make_objective(config: Config) -> Objective:
    """The objective of a run's configuration.

    Its `loss`, `encode` and `predict` take images as pixels too, uint8 or uint16, which are
    normalised here, on the device: a quarter of the bytes of float32 cross to it.
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

    def encode(weights: Params, images: Array) -> Array:
        return objective.encode(weights, normalize(images, mean, std))

    inner = objective.predict
    if inner is None:
        return objective._replace(loss=loss, encode=encode)

    def predict(
        params: Params, state: Any, images: Array, context_index: Array, target_index: Array
    ) -> tuple[Array, Array]:
        return inner(params, state, normalize(images, mean, std), context_index, target_index)

    return objective._replace(loss=loss, encode=encode, predict=predict)
