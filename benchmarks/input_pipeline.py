"""Speed of the input pipeline alone, and how long it takes to end.

    python -m benchmarks.input_pipeline --config configs/fashion_mnist.py
    python -m benchmarks.input_pipeline --config configs/cifar10.py --config.data.source=folder \
        --config.data.path=DIR

Images a second of training batches, masks included, that nobody waits for; and of short runs whose
batches are taken slowly, as a training step takes them, the longest time from the last batch to the
end of the iterator. The last line, on standard output, is JSON.
"""

import argparse
import json
import random
import time

from jepa_jax.batch.spec import Stream
from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.data.sources import open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.objectives.registry import make_objective

WARM_UP_STEPS = 10


def throughput(stream: Stream, batch_size: int, seconds: float) -> float:
    """Images a second."""
    batches = stream.batches(0, 10**6, None)
    for _ in range(WARM_UP_STEPS):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count * batch_size / (time.perf_counter() - start)


def longest_end(stream: Stream, num_runs: int) -> float:
    """Seconds."""
    longest, rng = 0.0, random.Random(0)
    for _ in range(num_runs):
        for _ in stream.batches(0, rng.randint(60, 300), None):
            time.sleep(0.008)
            last = time.perf_counter()
        longest = max(longest, time.perf_counter() - last)
    return longest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/fashion_mnist.py")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--runs", type=int, default=40, help="short ones")
    arguments, overrides = parser.parse_known_args()
    config = resolve(load_config(arguments.config, overrides))
    stream = make_stream(
        make_objective(config).needs,
        config.data,
        open_source(config.data, "train"),
        seed=config.seed,
        batch_size=config.batch_size,
    )
    result = {
        "images_per_second": round(throughput(stream, config.batch_size, arguments.seconds)),
        "longest_end_seconds": round(longest_end(stream, arguments.runs), 3),
    }
    print(json.dumps(vars(arguments) | result))


if __name__ == "__main__":
    main()
