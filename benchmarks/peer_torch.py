"""Our training step and two of PyTorch's (`torch_ijepa`), in turns on one machine.

    python -m benchmarks.peer_torch --size s --batch-size 16 --dtype float32 --rounds 5 --steps 2
    python -m benchmarks.peer_torch --size h --patch-size 14 --batch-size 64 --unroll --steps 20

Each contender lives in a process of its own, with the same threads and environment; who begins
moves on from round to round. Every step is waited for by itself. A ratio is that of the medians
within a round: above 1, ours is faster.

Equal work, the default: all start from the same weights and take the same batch, with the same
numbers of context and target tokens; if the losses of the first steps differ, the times mean
nothing and the command ends with status 1. Equal settings, `--published-masks`: the batches hold
what each would be given at the published scales. Sizes of target blocks are shared; ours has its K
context tokens of each image, the peers what their rule leaves of a batch: as many of the first
visible patches as the image with the fewest has. PyTorch then compiles for any number of tokens
(`dynamic=True`), ours for each.

The last line, on standard output, is JSON. Needs PyTorch, and no TensorFlow.
"""

import importlib.util
import json
import math
import multiprocessing
import os
import pathlib
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np

from benchmarks.train_step import WARM_UP_STEPS, make_batch, make_config, make_parser
from jepa_jax.config import Config
from jepa_jax.errors import UserError
from jepa_jax.objectives.ijepa import make_objective
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.schedules import make_schedules
from jepa_jax.training.sharding import batch_sharding, make_mesh
from jepa_jax.training.step import create_state, make_train_step

CONTENDERS = ("ours", "published", "best")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the first losses, relative
NUM_MASK_BATCHES = 8  # with --published-masks: batches that are gone through again and again
# For all contenders. Idle threads sleep, because another contender computes meanwhile; huge pages
# spare half a million page faults a step on a CPU; and what JAX keeps on a GPU leaves room.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}


def main() -> int:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--published-masks", action="store_true", help="equal settings, not work")
    parser.set_defaults(steps=2)
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is missing: pip install -r requirements-interop.txt", file=sys.stderr)
        return 2
    try:
        config, target_tokens = make_config(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    os.environ |= ENVIRONMENT
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))

    if arguments.published_masks:
        batches = list(published_batches(config))
    else:
        batch = make_batch(config, target_tokens)
        batches = [dict.fromkeys(CONTENDERS, batch)]
    warm_up, steps = max(WARM_UP_STEPS, len(batches)), arguments.steps * len(batches)
    num_steps = warm_up + arguments.rounds * steps
    spawn = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = pathlib.Path(name_of_folder)
        for name in CONTENDERS:  # one after another: ours leaves its weights for the others
            connections[name], other = spawn.Pipe()
            own = [batch[name] for batch in batches]
            process = spawn.Process(
                target=contend, args=(name, other, config, own, folder, num_steps), daemon=True
            )
            process.start()
            other.close()  # so that its end is noticed
            print(f"{name}: compiling, warming up", file=sys.stderr)
            losses = ask(connections[name], warm_up)["losses"]
            if name == "ours":
                expected = losses
            elif not arguments.published_masks:
                check_equal_losses(name, losses, expected, TOLERANCE[arguments.dtype])

    seconds: dict[str, list[list[float]]] = {name: [] for name in CONTENDERS}
    answers = {}
    for number in range(arguments.rounds):
        for position in range(len(CONTENDERS)):
            name = CONTENDERS[(number + position) % len(CONTENDERS)]
            answers[name] = ask(connections[name], steps)
            seconds[name].append(answers[name]["seconds"])
        line = ", ".join(
            f"{name} {statistics.median(seconds[name][-1]):.4f}" for name in CONTENDERS
        )
        print(f"round {number + 1}, s: {line}", file=sys.stderr)
    for connection in connections.values():
        connection.send(0)
    result = summarise(seconds, arguments.batch_size)
    for name in CONTENDERS:
        result[name] |= answers[name]["about"]
        tokens = [
            (b[name]["context_index"].shape[1], b[name]["target_index"].shape[2]) for b in batches
        ]
        result[name]["context_and_target_tokens"] = [round(t, 1) for t in np.mean(tokens, axis=0)]
    print(table(result), file=sys.stderr)
    print(json.dumps(vars(arguments) | result))
    return 0


def ask(connection: Connection, steps: int) -> dict[str, Any]:
    """Has a contender take so many steps; its times, losses and what it says of itself."""
    connection.send(steps)
    try:
        return connection.recv()
    except EOFError:
        raise SystemExit("a contender failed; see above") from None


def check_equal_losses(name: str, losses: list[float], expected: list[float], allowed: float):
    """Ends the program unless the first losses agree."""
    worst = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    if not worst <= allowed:
        raise SystemExit(
            f"{name}: losses {losses} differ from ours, {expected}, by {worst:.1e} (allowed "
            f"{allowed:.0e}): this is not the same work"
        )


def summarise(seconds: dict[str, list[list[float]]], batch_size: int) -> dict[str, Any]:
    """Seconds per step and images per second of each contender, and the peers' ratios to ours."""
    result: dict[str, Any] = {}
    for name, rounds in seconds.items():
        every = [second for one in rounds for second in one]
        median = statistics.median(every)
        result[name] = {
            "median_seconds": round(median, 5),
            "lowest_seconds": round(min(every), 5),
            "images_per_second": round(batch_size / median, 2),
        }
        ratios = [
            statistics.median(theirs) / statistics.median(ours)
            for theirs, ours in zip(rounds, seconds["ours"], strict=True)
        ]
        result[name]["ours_is_faster_by"] = {
            "median": round(statistics.median(ratios), 3),
            "low": round(min(ratios), 3),
            "high": round(max(ratios), 3),
        }
    return result


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':10} {'s a step':>9} {'lowest':>9} {'img/s':>9}   ours is faster by (low-high)"]
    for name in CONTENDERS:
        row, ratio = result[name], result[name]["ours_is_faster_by"]
        lines.append(
            f"{name:10} {row['median_seconds']:9.4f} {row['lowest_seconds']:9.4f} "
            f"{row['images_per_second']:9.2f}   "
            f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"
        )
    return "\n".join(lines)


def published_batches(config: Config) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """Batches at the published scales, with each contender's masks.

    One number a batch gives the size of its target blocks. Corners are uniform. Of the
    patches that the context block leaves visible, ours keeps K at random; the peers keep the first
    of each image, as many as the image with the fewest has.
    """
    rng = np.random.default_rng(0)
    masks, (rows, columns) = config.masks, config.grid
    image = make_batch(config, 1)["image"]

    def block(height: int, width: int) -> np.ndarray:  # bool [rows, columns]
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        result = np.zeros((rows, columns), bool)
        result[top : top + height, left : left + width] = True
        return result

    for _ in range(NUM_MASK_BATCHES):
        fraction = rng.random()
        height, width = target_size(config, fraction)
        low, high = masks.context_scale
        side = math.sqrt((low + rng.random() * (high - low)) * rows * columns)
        targets, visible = [], []
        while len(targets) < config.batch_size:
            blocks = np.stack([block(height, width) for _ in range(masks.num_targets)])
            context = block(min(round(side), rows), min(round(side), columns))
            seen = np.flatnonzero(context & ~blocks.any(axis=0))
            if len(seen) >= masks.context_tokens:
                visible.append(seen)
                targets.append([np.flatnonzero(one) for one in blocks])
        kept = min(len(seen) for seen in visible)
        shared = {"image": image, "target_index": np.array(targets, np.int32)}
        ours = [np.sort(rng.choice(seen, masks.context_tokens, replace=False)) for seen in visible]
        theirs = [seen[:kept] for seen in visible]
        contexts = {"ours": ours, "published": theirs, "best": theirs}
        yield {
            name: shared | {"context_index": np.array(index, np.int32)}
            for name, index in contexts.items()
        }


def target_size(config: Config, fraction: float) -> tuple[int, int]:
    """Height and width of target blocks; one number in [0, 1) gives scale and aspect ratio."""
    masks, (rows, columns) = config.masks, config.grid
    (low, high), (narrow, wide) = masks.target_scale, masks.target_aspect_ratio
    area = math.floor((low + fraction * (high - low)) * rows * columns)
    ratio = narrow + fraction * (wide - narrow)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(height, rows), min(width, columns)


# --- A contender's process -------------------------------------------------------------------


Step = Callable[[int], float]  # number of the step -> its loss; waits for it
About = Callable[[], dict[str, Any]]


def contend(
    name: str,
    connection: Connection,
    config: Config,
    batches: list[dict[str, np.ndarray]],
    folder: pathlib.Path,
    num_steps: int,
) -> None:
    """Prepares a step, then takes as many as it is asked for and answers with times and losses."""
    if name == "ours":
        step, about = prepare_ours(config, batches, folder, num_steps)
    else:
        dynamic = len(batches) > 1
        step, about = prepare_peer(name, config, batches, folder, dynamic=dynamic)
    number = 0
    while steps := connection.recv():
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            loss = step(number)
            seconds.append(time.perf_counter() - start)
            losses.append(loss)
            number += 1
        connection.send({"seconds": seconds, "losses": losses, "about": about()})


def prepare_ours(
    config: Config, batches: list[dict[str, np.ndarray]], folder: pathlib.Path, num_steps: int
) -> tuple[Step, About]:
    """Leaves its weights and the schedules' values in `folder`."""
    mesh, objective = make_mesh(config.mesh), make_objective(config)
    schedules = make_schedules(config, steps_per_epoch=1000)
    optimizer = make_optimizer(config.optimizer, schedules, objective.target_of)
    state = create_state(objective, optimizer, seed=0, mesh=mesh)
    networks = jax.device_get(state.params)
    steps = np.arange(num_steps)
    values = [jax.vmap(schedule)(steps).tolist() for schedule in schedules]
    (folder / "start.pickle").write_bytes(pickle.dumps((networks, values)))

    train_step = make_train_step(
        objective, optimizer, schedules, state, seed=0, accumulation_steps=1, mesh=mesh
    )
    arrays = [jax.device_put(batch, batch_sharding(mesh)) for batch in batches]
    compiled: dict[Any, Callable[..., Any]] = {}
    for batch in arrays:
        shape = batch["target_index"].shape
        compiled[shape] = compiled.get(shape) or train_step.lower(state, batch).compile()

    def step(number: int) -> float:
        nonlocal state
        batch = arrays[number % len(arrays)]
        state, metrics = compiled[batch["target_index"].shape](state, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    def about() -> dict[str, Any]:
        device = jax.devices()[0]
        memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return {"jax": jax.__version__, "device": device.device_kind, "peak_bytes": memory}

    return step, about


def prepare_peer(
    name: str,
    config: Config,
    batches: list[dict[str, np.ndarray]],
    folder: pathlib.Path,
    *,
    dynamic: bool,
) -> tuple[Step, About]:
    import torch

    from benchmarks import torch_ijepa

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX does
    networks, values = pickle.loads((folder / "start.pickle").read_bytes())
    states = {
        network: torch_ijepa.to_published(params, config.model.patch_size)
        for network, params in networks.items()
    }
    peer = torch_ijepa.Step(config, best=name == "best", device=device, dynamic=dynamic)
    peer.load(states | {"target_encoder": states["encoder"]})
    tensors = [torch_ijepa.to_torch(batch, device) for batch in batches]

    def step(number: int) -> float:
        lr, weight_decay, momentum = (value[number] for value in values)
        loss = peer.take(tensors[number % len(tensors)], lr, weight_decay, momentum)
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss)

    def about() -> dict[str, Any]:
        cuda = device == "cuda"
        return {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }

    return step, about


if __name__ == "__main__":
    sys.exit(main())
