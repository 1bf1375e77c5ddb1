"""LeJEPA against float64 NumPy."""

import jax
import numpy as np
import pytest
from numpy_model import numpy_head
from test_statistics import sigreg_by_hand
from views import KEY, SMALL_CROPS, B, E, Evaluated, random_views, small_config

from jepa_jax.errors import UserError

DIRECTIONS = 7


@pytest.mark.parametrize("times_batch_size", [True, False])
def test_the_loss_is_the_distance_from_the_large_crops_mean_and_sigreg(times_batch_size):
    config = small_config(
        "lejepa",
        **SMALL_CROPS,
        regularization=0.3,
        num_directions=DIRECTIONS,
        times_batch_size=times_batch_size,
    )
    batch = random_views(**{"global": (2, 28, 28), "local": (2, 14, 14)})
    run = Evaluated(config, batch)
    features = [
        run.features(run.params["encoder"], batch[name][:, crop])
        for name in ("global", "local")
        for crop in range(2)
    ]
    directions = jax.random.normal(jax.random.fold_in(KEY, 2), (E, DIRECTIONS))
    directions = np.asarray(directions, np.float64)

    def by_hand(params):
        z = numpy_head(params["projector"], np.concatenate(features)).reshape(4, B, E)
        center = (z[0] + z[1]) / 2
        invariance = np.mean([np.mean((view - center) ** 2) for view in z])
        normality = np.mean([sigreg_by_hand(view, directions) for view in z])
        return 0.7 * invariance + 0.3 * normality / (1 if times_batch_size else B)

    run.check(by_hand, path=("projector", "fc3", "kernel"))


def test_one_large_crop_alone_has_nothing_to_agree_with():
    with pytest.raises(UserError, match=r"objective\.num_global = 1: must be at least 2"):
        small_config("lejepa", num_global=1, num_local=0)
