"""Makes `fashion_mnist/fashion_mnist.npz` from Debian's package, the same bytes on every run:

    apt-get download dataset-fashion-mnist
    dpkg-deb -x dataset-fashion-mnist_*.deb /tmp/fashion-mnist
    python jepa_jax/data/bundled/make_fashion_mnist.py /tmp/fashion-mnist

The first 1,000 training and 200 test images of each of the ten classes, in their original order.
"""

import gzip
import pathlib
import sys
from typing import Any

import numpy as np

PER_CLASS = {"train": 1000, "test": 200}
FILES = {"train": "train", "test": "t10k"}


def read_idx(path: pathlib.Path) -> np.ndarray:
    """An array in the IDX format of MNIST: magic number, dimensions (big-endian), bytes."""
    with gzip.open(path) as file:
        data = file.read()
    num_dims = data[3]
    shape = np.frombuffer(data, ">u4", count=num_dims, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def subset(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class: uint8 [n, 28, 28], and their labels uint8 [n]."""
    images = read_idx(folder / f"{FILES[split]}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{FILES[split]}-labels-idx1-ubyte.gz")
    chosen = [np.flatnonzero(labels == c)[: PER_CLASS[split]] for c in range(10)]
    index = np.sort(np.concatenate(chosen))
    return images[index], labels[index]


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) / "usr" / "share" / "datasets" / "fashion-mnist"
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = subset(folder, split)
    output = pathlib.Path(__file__).parent / "fashion_mnist" / "fashion_mnist.npz"
    np.savez_compressed(output, **arrays)
    print(output, output.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
