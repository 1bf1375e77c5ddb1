"""Scenes whose labels and maps are known: discs and squares before a plain wall."""

from typing import NamedTuple

import numpy as np

WALL = 12.0  # distance of what is behind all objects
NEAREST, FURTHEST = 7.0, 11.0
DISC, SQUARE = 1, 2  # classes of pixels; 0: the wall
_COLOURS = {DISC: (230, 60, 40), SQUARE: (50, 90, 230)}


class Scenes(NamedTuple):
    """Images uint8 [n, s, s, 3]; of each pixel its class uint8 and distance float32 [n, s, s]; of
    each image the number of objects int64 [n], the smallest distance float32 [n], and for each
    object its column, row and distance, float32 [objects, 3]."""

    images: np.ndarray
    classes: np.ndarray
    depth: np.ndarray
    count: np.ndarray
    closest: np.ndarray
    objects: list[np.ndarray]


def make_scenes(n: int, *, seed: int, size: int = 28, most: int = 3) -> Scenes:
    """1 to `most` objects in each; a near one is large and bright, and hides what is behind."""
    rng = np.random.default_rng(seed)
    images = np.full((n, size, size, 3), 90, np.uint8)
    classes = np.zeros((n, size, size), np.uint8)
    depth = np.full((n, size, size), WALL, np.float32)
    rows, columns = np.mgrid[:size, :size] + 0.5
    objects = []
    for i in range(n):
        found = []
        for _ in range(rng.integers(1, most + 1)):
            distance = rng.uniform(NEAREST, FURTHEST)
            x, y = rng.uniform(0.15 * size, 0.85 * size, 2)
            radius = size * 0.16 * NEAREST / distance
            kind = int(rng.integers(DISC, SQUARE + 1))
            reach = np.maximum(abs(columns - x), abs(rows - y))
            if kind == DISC:
                reach = np.hypot(columns - x, rows - y)
            seen = (reach < radius) & (depth[i] > distance)
            shade = NEAREST / distance
            images[i][seen] = np.round(shade * np.array(_COLOURS[kind]))
            classes[i][seen], depth[i][seen] = kind, distance
            found.append((x, y, distance))
        objects.append(np.array(found, np.float32))
    return Scenes(
        images,
        classes,
        depth,
        np.array([len(found) for found in objects]),
        np.array([found[:, 2].min() for found in objects], np.float32),
        objects,
    )
