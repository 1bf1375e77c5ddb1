"""Speed of the training step: images and FLOPs per second, share of the peak, memory, compile time.

    python -m benchmarks.train_step --size s --batch-size 16 --dtype float32
    python -m benchmarks.train_step --size h --patch-size 14 --batch-size 128 --unroll

The step that runs is the one that `jepa_jax.train` runs, on made-up images and masks of exact
shapes: K context tokens and four target blocks of T tokens each, K and T at the published scales
unless given. Needs no TensorFlow. Each step is waited for by itself, after a warm-up. The peak is
measured too: a large matrix product in the same precision, before and after. FLOPs are counted by
`models/flops.py`: what the method needs on these tokens, without recomputation. The last line,
on standard output, is JSON.
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.config import Config, resolve
from jepa_jax.config.files import load_config
from jepa_jax.config.sizes import vit_size
from jepa_jax.models.predictor import make_predictor
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.planning.chips import CHIPS
from jepa_jax.training.setup import set_up
from jepa_jax.training.sharding import batch_sharding

# Grid -> K of the published recipes, and the most frequent T at the published scales.
PUBLISHED_TOKENS = {(14, 14): (51, 36), (16, 16): (69, 48), (28, 28): (234, 144)}
WARM_UP_STEPS = 3


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """Which step to run."""
    parser.add_argument("--size", choices=["ti", "s", "b", "l", "h", "g"], default="s")
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16, help="images per step, all devices")
    parser.add_argument("--context-tokens", type=int, help="K (default: the published recipe's)")
    parser.add_argument("--target-tokens", type=int, help="T (default: the most frequent)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--remat", choices=["none", "dots", "full"], default="none")
    parser.add_argument("--unroll", action="store_true", help="blocks one after another, no loop")
    parser.add_argument("--attention", choices=["auto", "xla"], default="auto")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_step_arguments(parser)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="to be timed")
    return parser.parse_args()


def make_config(arguments: argparse.Namespace) -> tuple[Config, int]:
    """The configuration, and T."""
    config = load_config("configs/fashion_mnist.py", [])
    encoder, predictor = vit_size(arguments.size)
    side = arguments.image_size // arguments.patch_size
    published = PUBLISHED_TOKENS.get((side, side), (side * side // 4, side * side // 6))
    config["batch_size"] = arguments.batch_size
    config["data"]["image_size"] = (arguments.image_size, arguments.image_size)
    config["model"] |= {
        **encoder,
        "patch_size": arguments.patch_size,
    }
    config["compute"] = {
        "dtype": arguments.dtype,
        "remat": arguments.remat,
        "scan_layers": not arguments.unroll,
        "attention": arguments.attention,
    }
    config["objective"]["predictor"] = predictor
    config["objective"]["masks"]["context_tokens"] = arguments.context_tokens or published[0]
    config["mesh"] = {"data": None, "fsdp": arguments.fsdp, "tensor": arguments.tensor}
    return resolve(config), arguments.target_tokens or published[1]


def make_batch(config: Config, target_tokens: int) -> dict[str, np.ndarray]:
    """Noise, with indices that are in range, sorted and unique, as real masks are."""
    rng = np.random.default_rng(0)
    B, N = config.batch_size, config.grid[0] * config.grid[1]
    K, M = config.objective.masks.context_tokens, config.objective.masks.num_targets

    def choose(n: int) -> np.ndarray:
        return np.sort(rng.permutation(N)[:n]).astype(np.int32)

    return {
        "image": rng.normal(size=(B, *config.data.image_size, 3)).astype(np.float32),
        "context_index": np.stack([choose(K) for _ in range(B)]),  # [B, K]
        "target_index": np.stack(
            [[choose(target_tokens) for _ in range(M)] for _ in range(B)]
        ),  # [B, M, T]
    }


def measured_peak(dtype: str, *, seconds: float = 2.0) -> float:
    """FLOP per second of one device in a square matrix product; the best of several."""
    n = 8192 if jax.default_backend() != "cpu" else 2048
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.dtype(dtype))
    multiply = jax.jit(lambda x: x @ x)
    jax.block_until_ready(multiply(a))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(multiply(a))
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def memory_bytes(step: Any) -> int:
    """What a compiled step needs: its arguments, what it returns beside them, temporaries."""
    memory = step.memory_analysis()
    returned = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + returned + memory.temp_size_in_bytes


def measure(config: Config, target_tokens: int, steps: int) -> dict[str, Any]:
    """Compiles and runs the step; see the fields for what is measured."""
    objective = make_objective(config)
    setup = set_up(config, objective, steps_per_epoch=1000)
    state = setup.create()
    batch = jax.device_put(make_batch(config, target_tokens), batch_sharding(setup.mesh))
    start = time.perf_counter()
    step = setup.step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start

    peak = measured_peak(config.compute.dtype)
    seconds = []
    for number in range(WARM_UP_STEPS + steps):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        if number >= WARM_UP_STEPS:
            seconds.append(time.perf_counter() - start)
    if not np.isfinite(float(metrics["loss"])):
        raise SystemExit(f"the loss is {float(metrics['loss'])}: these times mean nothing")
    peak = max(peak, measured_peak(config.compute.dtype))

    median, shapes = statistics.median(seconds), jax.eval_shape(lambda x: x, batch)
    per_image = sum(objective.flops(shapes).values())
    rate = per_image * config.batch_size / median / jax.device_count()  # of one device
    device = jax.devices()[0]
    sheet = {chip.device_kind: chip.peak for chip in CHIPS.values()}.get(device.device_kind)
    in_use = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "attention": {
            "encoder": make_encoder(config).attention,
            "predictor": make_predictor(
                config, config.objective.predictor, output_dim=config.model.embed_dim
            ).attention,
        },
        "images_per_second": round(config.batch_size / median, 2),
        "step_seconds": {
            "median": round(median, 5),
            "lowest": round(min(seconds), 5),
            "highest": round(max(seconds), 5),
        },
        "gflop_per_image": round(per_image / 1e9, 2),
        "tflop_per_second_per_device": round(rate / 1e12, 3),
        "measured_peak_tflop_per_second": round(peak / 1e12, 3),
        "mfu_of_measured_peak": round(rate / peak, 4),
        "mfu_of_data_sheet": round(rate / sheet, 4) if sheet else None,
        "compile_seconds": round(compile_seconds, 2),
        "memory_bytes_by_compiler": memory_bytes(step),
        "memory_bytes_peak_in_use": in_use,
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "jax": jax.__version__,
    }


def main() -> None:
    arguments = parse_arguments()
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is a result
    config, target_tokens = make_config(arguments)
    result = measure(config, target_tokens, arguments.steps)
    for name, value in result.items():
        print(f"{name:<32}{value}", file=sys.stderr)
    print(json.dumps(vars(arguments) | result))


if __name__ == "__main__":
    main()
