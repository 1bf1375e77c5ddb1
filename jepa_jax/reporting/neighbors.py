"""Nearest neighbours by cosine: of test images among training images."""

import numpy as np
from jaxtyping import Float


def nearest(
    queries: Float[np.ndarray, "m D"], references: Float[np.ndarray, "n D"], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k references of the highest cosine with each query.

    Returns:
      (rows of the references int64 [m, k], nearest first; their cosines [m, k]).
    """
    cosine = _unit(queries) @ _unit(references).T  # [m, n]
    index = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(cosine, index, axis=1)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
