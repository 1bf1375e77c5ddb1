"""What is to be told from features: a class, several labels at once, or numbers."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

Kind = Literal["classification", "multi_label", "regression"]


class Task(NamedTuple):
    """What a head has to tell.

    Attributes:
      kind: classification: one of several classes, labels int [n]; multi_label: any of several,
        labels bool [n, K]; regression: numbers, labels float [n, K].
      outputs: classes, labels, or numbers: K.
    """

    kind: Kind
    outputs: int


def task_of(*labels: np.ndarray) -> Task:
    """The task that the labels of some images are for: int [n], bool [n, K] or float [n, K].

    Of classification there are as many classes as the highest label says.
    """
    if labels[0].ndim == 1:
        return Task("classification", max(int(some.max()) for some in labels) + 1)
    return Task("multi_label" if labels[0].dtype == bool else "regression", labels[0].shape[1])


def mean_loss(task: Task, outputs: Float[Array, "n K"], labels: Array, weights: Array) -> Array:
    """The loss that a head is trained with, averaged over examples of weight 1.

    Softmax cross-entropy; sigmoid cross-entropy, summed over the labels; half the squared error,
    summed over the numbers.

    Args:
      labels: of the task, [n] or [n, K].
      weights: [n], 1 for an example that counts, 0 for one that fills up a batch.
    """
    if task.kind == "classification":
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    elif task.kind == "multi_label":
        of_labels = optax.sigmoid_binary_cross_entropy(outputs, labels.astype(jnp.float32))
        losses = jnp.sum(of_labels, axis=-1)
    else:
        losses = jnp.sum(optax.l2_loss(outputs, labels), axis=-1)
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def on_device(labels: np.ndarray) -> np.ndarray:
    """Labels in the types that devices compute with."""
    if labels.ndim == 1:
        return labels.astype(np.int32)
    return labels if labels.dtype == bool else labels.astype(np.float32)


def softmax(task: Task, outputs: np.ndarray) -> np.ndarray:
    """Outputs as probabilities, where they are logits."""
    if task.kind == "classification":
        return np.asarray(jax.nn.softmax(outputs, axis=-1))
    return np.asarray(jax.nn.sigmoid(outputs)) if task.kind == "multi_label" else outputs
