"""BYOL against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy_model import as_float64, numpy_head, unit
from views import Evaluated, random_views, small_config

from jepa_jax.objectives.ema import EmaState
from jepa_jax.objectives.objective import Clock
from jepa_jax.objectives.registry import make_objective


def average_of(other):
    return EmaState(jnp.int32(0), {name: other[name] for name in ("encoder", "projector")})


@pytest.mark.parametrize("use_predictor", [True, False])
def test_each_view_predicts_what_the_average_makes_of_the_other(use_predictor):
    config = small_config("byol", use_predictor=use_predictor)
    run = Evaluated(config, random_views(views=(2, 28, 28)), average_of, Clock(3, 500.0))
    views = [run.batch["views"][:, view] for view in range(2)]
    other = as_float64(run.other)
    targets = [
        unit(numpy_head(other["projector"], run.features(run.other["encoder"], view)))
        for view in views
    ]
    features = [run.features(run.params["encoder"], view) for view in views]

    def by_hand(params):
        online = [numpy_head(params["projector"], view) for view in features]
        if use_predictor:
            online = [numpy_head(params["predictor"], z) for z in online]
        a, b = (unit(z) for z in online)
        return np.mean(2 - 2 * (a * targets[1]).sum(1)) + np.mean(2 - 2 * (b * targets[0]).sum(1))

    run.check(by_hand, path=("projector", "fc2", "kernel"))
    assert ("predictor" in run.params) == use_predictor


def test_the_average_is_of_encoder_and_projector_alone():
    config = small_config("byol")
    objective = make_objective(config)
    params = Evaluated(config, random_views(views=(2, 28, 28)), average_of, Clock(3, 500.0)).params
    assert objective.state(500.0).init(params).target.keys() == {"encoder", "projector"}
    assert next(iter(objective.encoders)) == "encoder"  # the one that is probed
