"""What a set of features says of itself, without labels: ranks, spread, and how it fills the space.

All take average-pooled features [n, D] of n images, and compute in float64.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float, Shaped

from jepa_jax.training.diagnostics import effective_rank, entropy_rank, mean_cosine

_BLOCK = 1000  # rows whose distances to all others are held at a time
# Ranks of the eigenvalues that a power law is fitted to: its first ones are few and its last ones
# noise. Where there are less than 200, from the first twentieth to the half.
_FITTED = (11, 100)
_ZERO = 1e-10  # eigenvalues below this share of the largest are rounding

Features = Shaped[np.ndarray, "n D"]


def describe(features: Features) -> dict[str, Any]:
    """All that this file measures of pooled features, by name; LiDAR needs views (see `lidar`)."""
    values = spectrum(features)
    exponent, ranks = alpha_req(values)
    narrow = jnp.asarray(features, jnp.float32)
    return {
        "rankme": float(effective_rank(narrow)),
        "alpha_req": exponent,
        "alpha_ranks": list(ranks),
        "stable_rank": stable_rank(features),
        "spread": spread(features),
        "mean_cosine": float(mean_cosine(narrow)),
        "uniformity": uniformity(features),
        "spectrum": values.tolist(),
    }


def spectrum(features: Features) -> Float[np.ndarray, " k"]:
    """Eigenvalues of the features' covariance, descending; min(n, D) of them, the others are 0."""
    values = np.linalg.svd(_centred(features), compute_uv=False)
    return np.square(values) / len(features)


def alpha_req(
    spectrum: Float[np.ndarray, " k"], ranks: tuple[int, int] | None = None
) -> tuple[float, tuple[int, int]]:
    """Exponent a of the power law i^-a of the eigenvalues (α-ReQ; Agrawal et al., 2022).

    A straight line through log eigenvalue over log rank, by least squares. Near 1 is good: far
    above it few directions hold all the variance, far below it none stands out from noise.

    Args:
      spectrum: eigenvalues of the covariance, descending.
      ranks: first and last that are fitted, from 1 on; None: 11 to 100, or of less than 200
        eigenvalues the first twentieth to the half.

    Returns:
      The exponent, and the ranks; NaN where fewer than two eigenvalues there are above zero.
    """
    if ranks is None:
        k = len(spectrum)
        ranks = _FITTED if k >= 2 * _FITTED[1] else (k // 20 + 1, max(k // 2, k // 20 + 2))
    values = spectrum[ranks[0] - 1 : ranks[1]]
    values = values[values > _ZERO * spectrum[0]]
    ranks = (ranks[0], ranks[0] + max(len(values), 1) - 1)
    if len(values) < 2:
        return float("nan"), ranks
    slope = np.polyfit(np.log(np.arange(ranks[0], ranks[1] + 1)), np.log(values), 1)[0]
    return -float(slope), ranks


def stable_rank(features: Features) -> float:
    """Squared Frobenius norm by squared spectral norm of the centred features; 1 to D."""
    values = spectrum(features)
    return float(values.sum() / values[0]) if values[0] > 0 else float("nan")


def spread(features: Features) -> float:
    """Standard deviation of a feature between images, averaged over the features."""
    return float(np.mean(np.std(np.asarray(features, np.float64), axis=0)))


def uniformity(features: Features) -> float:
    """log of the mean of exp(-2 |x - y|²) over pairs of different rows, of unit length.

    0 where all images have one direction; lower is more evenly spread over the sphere; t = 2 of
    Wang and Isola (2020).
    """
    wide = np.asarray(features, np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    n, total = len(unit), 0.0
    for start in range(0, n, _BLOCK):
        block = unit[start : start + _BLOCK]
        total += float(np.exp(4 * (block @ unit.T) - 4).sum())  # |x - y|² = 2 - 2 x·y
    return float(np.log((total - n) / (n * (n - 1))))


def lidar(features: Shaped[np.ndarray, "n q D"], *, delta: float = 1e-4) -> float:
    """LiDAR (Thilak et al., 2024, section 3): how many directions tell images from their views.

    RankMe of the eigenvalues of S_w^-1/2 S_b S_w^-1/2: S_b is the covariance of the images' means,
    S_w that of the views about their image's mean, plus delta on the diagonal; both are means over
    all images and views.

    Args:
      features: of q views of each of n images.

    Returns:
      1 to min(n - 1, D).
    """
    wide = np.asarray(features, np.float64)
    n, q, D = wide.shape
    means = wide.mean(axis=1)  # [n, D]
    about = (wide - means[:, None]).reshape(n * q, D)
    within = about.T @ about / (n * q) + delta * np.eye(D)
    between = _centred(means).T @ _centred(means) / n
    # The eigenvalues of the product, without its square roots.
    values = np.clip(scipy.linalg.eigh(between, within, eigvals_only=True), 0, None)
    return float(entropy_rank(jnp.asarray(values, jnp.float32)))


def _centred(features: Features) -> Float[np.ndarray, "n D"]:
    wide = np.asarray(features, np.float64)
    return wide - wide.mean(axis=0)
