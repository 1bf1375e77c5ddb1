"""Small pictures put anywhere, at different sizes, among pieces of others.

On centred, aligned pictures the raw pixels are hard to beat as features: the same pixel means the
same thing in every picture. Here it does not.
"""

import numpy as np
import tensorflow as tf

CANVAS = 32  # pixels, height and width
_SIZES = range(18, 27)  # of the picture on it: a third to two thirds of the area
_PIECES, _PIECE_SIZE = 4, 8  # cut out of other pictures


def clutter(images: np.ndarray, *, seed: int) -> np.ndarray:
    """Each picture shrunk and shifted, on a canvas with pieces of other pictures.

    Args:
      images: uint8 [n, H, W], bright on black.
      seed: everything drawn follows from it.

    Returns:
      uint8 [n, CANVAS, CANVAS]; the picture is in front.
    """
    rng = np.random.default_rng(seed)
    n, H, W = images.shape
    canvas = np.zeros((n, CANVAS, CANVAS), np.uint8)
    rows = np.arange(n)[:, None, None]

    def paint(pictures: np.ndarray, where: np.ndarray, corners: np.ndarray) -> None:
        """Puts pictures [m, s, s] on the canvases of these numbers, with corners [m, 2]."""
        side = np.arange(pictures.shape[1])
        y, x = corners[:, 0, None] + side, corners[:, 1, None] + side  # [m, s]
        at = (rows[where], y[:, :, None], x[:, None, :])
        canvas[at] = np.where(pictures > 0, pictures, canvas[at])

    for _ in range(_PIECES):
        other = (np.arange(n) + rng.integers(1, n, n)) % n  # never the picture itself
        side = np.arange(_PIECE_SIZE)
        y = rng.integers(0, H - _PIECE_SIZE + 1, n)[:, None] + side
        x = rng.integers(0, W - _PIECE_SIZE + 1, n)[:, None] + side
        pieces = images[other[:, None, None], y[:, :, None], x[:, None, :]]
        paint(pieces, np.arange(n), rng.integers(0, CANVAS - _PIECE_SIZE + 1, (n, 2)))
    sizes = rng.choice(_SIZES, n)
    for size in _SIZES:
        where = np.flatnonzero(sizes == size)
        if len(where) == 0:
            continue
        shrunk = tf.image.resize(images[where][..., None], (size, size), antialias=True)
        pictures = np.clip(np.round(shrunk.numpy()[..., 0]), 0, 255).astype(np.uint8)
        paint(pictures, where, rng.integers(0, CANVAS - size + 1, (len(where), 2)))
    return canvas
