"""MSN against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy_model import as_float64, numpy_head, unit
from scipy.special import log_softmax, softmax
from test_statistics import sinkhorn_by_hand
from views import SMALL_CROPS, B, Evaluated, K, random_views, small_config

from jepa_jax.errors import UserError
from jepa_jax.objectives.ema import EmaState
from jepa_jax.objectives.objective import Clock

CLOCK = Clock(3, 500.0)
VISIBLE = np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(16), (B, 1)), axis=1)[:, :13])


def average_of(other):
    return EmaState(jnp.int32(0), {name: other[name] for name in ("encoder", "projector")})


@pytest.mark.parametrize("iterations", [0, 3])
def test_anchors_share_the_sharpened_prototypes_of_the_target(iterations):
    config = small_config(
        "msn",
        num_prototypes=K,
        entropy_weight=0.5,
        sinkhorn_iterations=iterations,
        mask_ratio=0.15,  # 13 of 16 patches are left
        **SMALL_CROPS,
    )
    batch = random_views(anchor=(28, 28), target=(28, 28), local=(2, 14, 14))
    batch["visible_index"] = jnp.asarray(VISIBLE, jnp.int32)
    run = Evaluated(config, batch, average_of, CLOCK)

    def logits(head, prototypes, features):
        return unit(numpy_head(head, features, "gelu")) @ unit(prototypes["kernel"]).T / 0.1

    seen = run.features(run.other["encoder"], batch["target"])
    params, other = as_float64(run.params), as_float64(run.other)
    p = softmax(logits(other["projector"], params["prototypes"], seen), axis=1)
    targets = p ** (1 / 0.25)
    targets /= targets.sum(axis=1, keepdims=True)
    if iterations:
        targets = sinkhorn_by_hand(np.log(targets), 1.0, iterations)
    encoder = run.params["encoder"]
    features = [run.features(encoder, batch["anchor"], batch["visible_index"])]
    features += [run.features(encoder, batch["local"][:, crop]) for crop in range(2)]

    def by_hand(params):
        scores = logits(params["projector"], params["prototypes"], np.concatenate(features))
        log_p = log_softmax(scores, axis=1).reshape(3, B, K)
        cross_entropy = -np.mean([np.sum(targets * view, axis=1) for view in log_p])
        mean = np.exp(log_p).mean(axis=(0, 1))
        return cross_entropy + 0.5 * (np.log(K) + np.sum(mean * np.log(mean)))

    run.check(by_hand, path=("prototypes", "kernel"))


def test_without_a_masked_patch_no_masks_are_drawn():
    from jepa_jax.objectives.registry import make_objective

    assert make_objective(small_config("msn", mask_ratio=0.0, **SMALL_CROPS)).needs.masks is None
    with pytest.raises(UserError, match=r"objective\.mask_ratio = 0\.95: must leave at least one"):
        small_config("msn", mask_ratio=0.95, **SMALL_CROPS)
