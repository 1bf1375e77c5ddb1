"""Each objective's known collapse: reached without its guard, not with it, and seen by the alarm.

I-JEPA's guard is its moving average; its collapse takes hundreds of steps, of which test_verdict
has a recording. These have a head, which collapses first: hence the spread of the embeddings.
"""

import numpy as np
import pytest
from conftest import load_config_file

from jepa_jax.config import resolve
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.alarms import end_of
from jepa_jax.training.setup import set_up

STEPS, B = 120, 32
HEAD = {"hidden_dim": 16, "output_dim": 8}
NO_PREDICTOR = {"use_predictor": False}
CASES = {
    # name: (made small, what takes its guard away, learning rate)
    "vicreg": ({"expander_dim": 16}, {"variance_weight": 0.0, "covariance_weight": 0.0}, 0.02),
    # The faster the average, the sooner it collapses; the predictor prevents it even without one.
    "byol": ({"ema": {"start_momentum": 0.0, "final_momentum": 0.0}, **HEAD}, NO_PREDICTOR, 0.1),
    "dino": (
        {"ema": {"start_momentum": 0.8}, "num_prototypes": 16, "num_local": 0, **HEAD},
        {"center_momentum": 1.0},
        0.02,
    ),
}


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])
@pytest.mark.parametrize("name", CASES)
def test_an_objective_collapses_without_its_guard_and_the_alarm_sees_it(name, guarded, one_device):
    small, unguarded, lr = CASES[name]
    config = load_config_file(f"fashion_mnist_{name}")
    config.epochs, config.batch_size = STEPS, B
    config.model.update({"patch_size": 14, "embed_dim": 8, "depth": 1, "num_heads": 2})
    config.objective.update(small | ({} if guarded else unguarded))
    if "ema" in small:
        config.objective.ema.kept_share = None
    if name == "dino":
        config.objective.update({"freeze_prototypes_steps": 0, "batch_norm": False})
    config.optimizer.update({"lr": lr, "warmup_epochs": 5.0})
    config = resolve(config)
    objective = make_objective(config)
    (view,) = (view.name for view in objective.needs.views)
    setup = set_up(config, objective, steps_per_epoch=1, mesh=one_device)
    state, rows = setup.create(), []
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(256, 1, 28, 28, 3))
    for step in range(STEPS):  # two noisy views of 32 of 256 images
        some = clean[rng.choice(256, B, replace=False)]
        views = some + 0.3 * rng.normal(size=(B, 2, 28, 28, 3))
        state, metrics = setup.step(state, {view: views.astype(np.float32)})
        if step % 10 == 9:
            rows.append({name: float(value) for name, value in metrics.items()})
    assert np.isfinite(rows[-1]["loss"])
    found = end_of(rows, high_for=0, ceiling=8)
    if guarded:
        assert found is None
    else:
        assert "collapsed (the embeddings of different images are alike" in found
