"""Time and memory of k-NN over features in files: python -m benchmarks.knn [--references N ...]

Random features, float16, that are written to --folder first and memory-mapped, as those of
`jepa_jax.extract` are. The defaults are ImageNet's numbers of training and validation images.
"""

import argparse
import json
import pathlib
import resource
import time

import numpy as np

from jepa_jax.evaluation import knn
from jepa_jax.evaluation.rows import Rows

_PART = 65_536  # rows of a file


def features(folder: pathlib.Path, name: str, count: int, width: int) -> Rows:
    """Random features in files, which are written once."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, count, _PART)):
        path = folder / f"{name}-{count}-{width}-{number:05d}.npy"
        if not path.exists():
            rng = np.random.default_rng([number, len(name)])
            shape = (min(_PART, count - start), width)
            np.save(path, rng.standard_normal(shape, np.float32).astype(np.float16))
        parts.append(np.load(path, mmap_mode="r"))
    return Rows(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=int, default=1_281_167)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    known = features(arguments.folder, "references", arguments.references, arguments.width)
    asked = features(arguments.folder, "queries", arguments.queries, arguments.width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    _, index = knn.nearest(known, asked, k=arguments.k, metric="cosine", standardize=False)
    seconds = time.monotonic() - start
    products = 2 * arguments.references * arguments.queries * arguments.width
    result = {
        "references": arguments.references,
        "queries": arguments.queries,
        "width": arguments.width,
        "k": arguments.k,
        "seconds": round(seconds, 1),
        "gflop_per_second": round(products / seconds / 1e9, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_mb_before": before // 1024,
        "first": index[0, :3].tolist(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
