"""Quick probes between training images, for a look at a run that is still going on."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jepa_jax.config import Config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source
from jepa_jax.evaluation import logistic
from jepa_jax.evaluation.features import make_pool, pooled_features
from jepa_jax.evaluation.probes import LabelledFeatures, knn_accuracy
from jepa_jax.evaluation.scores import measure
from jepa_jax.evaluation.tasks import softmax, task_of
from jepa_jax.objectives.objective import Objective
from jepa_jax.training.sharding import make_mesh

log = logging.getLogger(__name__)

# Of training images alone, since the test images are for afterwards: a fifth of them, up to 400,
# are told by the others, up to 1,600: more would cost a small run a twentieth of its time.
_QUERIES, _REFERENCES, _NEIGHBORS = 400, 1600, 10
_STRENGTH = 0.1  # C of the linear head: near the best of so few images, and soon found


def online_probes(
    config: Config, objective: Objective, source: Source
) -> Callable[[Any, Sequence[str]], dict[str, float]] | None:
    """A function (weights of an encoder, names) -> accuracies between training images.

    The names are "knn_accuracy" and "linear_accuracy": of k-NN, and of a linear head that is fitted
    to the same frozen features from scratch. Of several processes all must call it, and all get the
    same.

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
    ways = {"knn_accuracy": _knn, "linear_accuracy": _linear}

    def accuracies(weights: Any, names: Sequence[str]) -> dict[str, float]:
        bad: list[int] = []
        batches = eval_batches(config.data, source, index=filled, batch_size=batch_size, bad=bad)
        features = pooled_features(pool, weights, batches)[: len(index)]
        good = ~np.isin(index, bad)
        known, asked = good.copy(), good.copy()
        known[references:], asked[:references] = False, False
        told = LabelledFeatures(features[known], labels[known])
        return {
            name: ways[name](told, LabelledFeatures(features[asked], labels[asked]))
            for name in names
        }

    return accuracies


def _knn(told: LabelledFeatures, asked: LabelledFeatures) -> float:
    return knn_accuracy(told, asked, neighbors=min(_NEIGHBORS, len(told.labels)))


def _linear(told: LabelledFeatures, asked: LabelledFeatures) -> float:
    task = task_of(told.labels, asked.labels)
    head = logistic.fit(task, told.rows, told.labels, strength=_STRENGTH)
    return measure(task, softmax(task, head(asked.rows)), asked.labels)
