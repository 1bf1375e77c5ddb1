"""Features of many images, in memory or in files, that are read block by block."""

from collections.abc import Iterator, Sequence

import numpy as np


class Rows:
    """Float arrays [n_i, ...] one after the other, of which only a block is in memory at a time.

    Attributes:
      shape: (n, ...), over all of them.
    """

    def __init__(self, parts: Sequence[np.ndarray], index: np.ndarray | None = None):
        """
        Args:
          parts: arrays [n_i, ...], float16 or float32; they may be memory-mapped.
          index: numbers of the rows to take, ascending; None: all.
        """
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self._index = index
        count = int(self._ends[-1]) if index is None else len(index)
        self.shape = (count, *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """float32 [size, ...], in order; the last may be shorter."""
        for start in range(0, len(self), size):
            yield self._read(start, min(start + size, len(self)))

    def take(self, index: np.ndarray) -> "Rows":
        """Some of the rows, by number, ascending."""
        return Rows(self._parts, index if self._index is None else self._index[index])

    def all(self) -> np.ndarray:
        """float32 [n, ...]: all of them, in memory."""
        return self._read(0, len(self))

    def _read(self, start: int, end: int) -> np.ndarray:
        wanted = np.arange(start, end) if self._index is None else self._index[start:end]
        if len(self._parts) == 1 and self._index is None:
            return np.asarray(self._parts[0][start:end], np.float32)
        out = np.empty((end - start, *self.shape[1:]), np.float32)
        owner = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(owner):
            here = owner == number
            first = self._ends[number] - len(self._parts[number])
            out[here] = self._parts[number][wanted[here] - first]
        return out


def moments(rows: Rows, *, block: int = 16_384) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, float32 [D], in two passes.

    The deviation of a constant column is 1, so that it can be divided by.
    """
    n = len(rows)
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in rows.blocks(block)) / n
    squares = sum(np.square(part - mean).sum(axis=0) for part in rows.blocks(block)) / n
    std = np.sqrt(squares)
    constant = std < 10 * np.finfo(np.float64).eps * np.maximum(np.abs(mean), 1e-30)
    return mean.astype(np.float32), np.where(constant, 1.0, std).astype(np.float32)
