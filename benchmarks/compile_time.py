"""Seconds to compile one training step, with the blocks in a loop (scan_layers) and unrolled.

    python -m benchmarks.compile_time --depth 12 --width 192

Both are compiled in turns within one run, so that whatever else the machine does meets them alike.
The published I-JEPA sizes give the widths: 192 (ViT-Ti), 384 (S), 768 (B). Nothing is trained, and
no parameter is ever made: a step is lowered and compiled from shapes alone. Lines of progress go
to standard error; the last line, on standard output, is JSON.
"""

import argparse
import json
import statistics
import sys
import time

import jax

from jepa_jax.config import Config, resolve
from jepa_jax.config.files import load_config
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.setup import set_up

HEAD_DIM = 64
TARGET_TOKENS = 30  # 5 x 6 patches, one of the sizes at 14 x 14


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=12, help="blocks of the encoder")
    parser.add_argument("--width", type=int, default=192, help="a multiple of 64")
    parser.add_argument("--predictor-depth", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8, help="images per step")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--remat", choices=["none", "dots", "full"], default="none")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is compiled")
    return parser.parse_args()


def make_config(arguments: argparse.Namespace, *, scan_layers: bool) -> Config:
    """A ViT of the width and depth asked for, with patches of 16 at 224 pixels."""
    config = load_config("configs/fashion_mnist.py", [])
    config["batch_size"] = arguments.batch_size
    config["data"]["image_size"] = (224, 224)
    config["model"] |= {
        "patch_size": 16,
        "embed_dim": arguments.width,
        "depth": arguments.depth,
        "num_heads": arguments.width // HEAD_DIM,
    }
    config["compute"] = {
        "dtype": arguments.dtype,
        "remat": arguments.remat,
        "scan_layers": scan_layers,
    }
    config["objective"]["predictor"] = {
        "embed_dim": 384,
        "depth": arguments.predictor_depth,
        "num_heads": 6,
    }
    config["objective"]["masks"]["context_tokens"] = 64
    return resolve(config)


def compile_seconds(config: Config) -> tuple[float, float]:
    """Seconds to trace and lower one training step, and to compile it; nothing is reused."""
    jax.clear_caches()
    objective = make_objective(config)
    setup = set_up(config, objective, steps_per_epoch=100)
    variants = [shapes for shapes, _ in objective.needs.variants(config.batch_size)]
    (batch,) = (v for v in variants if v["target_index"].shape[-1] == TARGET_TOKENS)
    start = time.perf_counter()
    lowered = setup.step.lower(setup.like, batch)
    middle = time.perf_counter()
    lowered.compile()
    return middle - start, time.perf_counter() - middle


def main() -> None:
    arguments = parse_arguments()
    jax.config.update("jax_enable_compilation_cache", False)  # or the second round reads the first
    seconds = {True: [], False: []}
    for number in range(arguments.rounds):
        for scan_layers in (True, False):
            lower, compiled = compile_seconds(make_config(arguments, scan_layers=scan_layers))
            seconds[scan_layers].append(lower + compiled)
            print(
                f"round {number + 1}: scan_layers={scan_layers!s:5} "
                f"trace and lower {lower:.1f} s, compile {compiled:.1f} s",
                file=sys.stderr,
            )
    medians = {scan_layers: statistics.median(all_) for scan_layers, all_ in seconds.items()}
    result = {
        "scan_layers_seconds": round(medians[True], 2),
        "unrolled_seconds": round(medians[False], 2),
        "unrolled_over_scan": round(medians[False] / medians[True], 2),
        "rounds": arguments.rounds,
        "width": arguments.width,
        "depth": arguments.depth,
        "predictor_depth": arguments.predictor_depth,
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "remat": arguments.remat,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
