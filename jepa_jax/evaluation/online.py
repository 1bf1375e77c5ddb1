"""k-NN accuracy between training images, for a look at a run that is still going on."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from jepa_jax.config import Config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source
from jepa_jax.evaluation.features import make_pool, pooled_features
from jepa_jax.evaluation.probes import LabelledFeatures, knn_accuracy
from jepa_jax.objectives.objective import Objective
from jepa_jax.training.sharding import make_mesh

log = logging.getLogger(__name__)

# Of training images alone, since the test images are for afterwards: a fifth of them, up to 1,000,
# are told by the others, up to 4,000.
_QUERIES, _REFERENCES, _NEIGHBORS = 1000, 4000, 10


def online_knn(
    config: Config, objective: Objective, source: Source
) -> Callable[[Any], float] | None:
    """A function from an encoder's weights to the k-NN accuracy between training images.

    Returns:
      None, which is logged, where the images have no classes, or all the same one.
    """
    if source.classes is None:
        what = "labels" if source.labels is None else "classes"
        log.info("no online k-NN: the training images have no %s", what)
        return None
    if len(np.unique(source.classes)) < 2:
        log.info("no online k-NN: all training images are of one class")
        return None
    index = np.random.default_rng(config.seed).permutation(source.num_examples)
    queries = min(max(source.num_examples // 5, 1), _QUERIES)
    index = index[: queries + _REFERENCES]
    references = len(index) - queries
    labels, mesh = source.classes[index], make_mesh(config.mesh)
    pool = make_pool(objective, mesh)
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = max(256 // shares, 1) * shares
    filled = np.resize(index, -(-len(index) // shares) * shares)  # a short batch is shared too

    def accuracy(weights: Any) -> float:
        bad: list[int] = []
        batches = eval_batches(config.data, source, index=filled, batch_size=batch_size, bad=bad)
        features = pooled_features(pool, weights, batches)[: len(index)]
        good = ~np.isin(index, bad)
        known, asked = good.copy(), good.copy()
        known[references:], asked[:references] = False, False
        return knn_accuracy(
            LabelledFeatures(features[known], labels[known]),
            LabelledFeatures(features[asked], labels[asked]),
            neighbors=min(_NEIGHBORS, int(known.sum())),
        )

    return accuracy
