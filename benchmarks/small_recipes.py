"""Trains one recipe after another on the bundled clothes and probes each.

    python -m benchmarks.small_recipes [--only NAME ...] [--seeds 0 1 2]

A row of the file is one run. Those that it has are not run again, so that a search of hours can be
stopped and goes on; --table prints the means of what is there. docs/results/small_recipes.md holds
what was found. Two at once, each on one core, get most out of two:

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" taskset -c 0 ...
"""

import argparse
import contextlib
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.batch.pixels import normalize
from jepa_jax.config import resolve, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import open_source
from jepa_jax.encoder import Encoder, load_encoder
from jepa_jax.evaluation.probes import LabelledFeatures, probe
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives import ijepa
from jepa_jax.train import pretrain
from jepa_jax.training.metrics import read_metrics

# On centred clothes, for six epochs; each changes the quickstart's recipe.
CENTRED = (
    "data.source=fashion_mnist",
    "data.image_size=28,28",
    "data.mean=0.286,0.286,0.286",
    "data.std=0.354,0.354,0.354",
    "model.depth=3",
    "objective.masks.context_tokens=14",
    "epochs=6",
)
# What may change, on the clothes that "quickstart" and "centred" train on.
CHANGES: dict[str, tuple[str, ...]] = {
    "covariance .008": ("objective.regularizer.covariance_weight=.008",),
    "covariance .16": ("objective.regularizer.covariance_weight=.16",),
    "covariance .6": ("objective.regularizer.covariance_weight=.6",),
    "SIGReg": ("objective.regularizer.name=sigreg",),
    "no regulariser": ("objective.regularizer=None",),
    "LayerNorm targets": ("objective.target_norm=layer_norm",),
    "targets: instance norm": (),
    "targets: DynTanh": (),
    "targets: average of three blocks": (),
    "crops .6 to 1": ("data.crop_scale=.6,1.",),
    "smaller targets": ("objective.masks.target_scale=.1,.15",),
    "larger targets": ("objective.masks.target_scale=.2,.3",),
    "two targets": ("objective.masks.num_targets=2",),
    "learning rate 7e-4": ("optimizer.lr=7e-4",),
    "learning rate 3e-3": ("optimizer.lr=3e-3",),
    "no weight decay": ("optimizer.weight_decay=0.", "optimizer.final_weight_decay=0."),
    "weight decay to .4": ("optimizer.final_weight_decay=.4",),
    "batch 32": ("batch_size=32",),
    "batch 128": ("batch_size=128",),
    "init .025": ("init.std=.025",),
    "init .1": ("init.std=.1",),
    "predictor of one block": ("objective.predictor.depth=1",),
    "predictor of four blocks": ("objective.predictor.depth=4",),
    "a tenth of the target's start kept": ("objective.ema.kept_share=.1",),
    "1e-8 of the target's start kept": ("objective.ema.kept_share=1e-8",),
    "five blocks, 96 wide": ("model.depth=5", "model.embed_dim=96"),
    "two blocks, 160 wide": ("model.depth=2", "model.embed_dim=160"),
}
RECIPES: dict[str, tuple[str, ...]] = {
    "quickstart": (),
    **{f"quickstart, {name}": change for name, change in CHANGES.items()},
    "quickstart, context 26": ("objective.masks.context_tokens=26",),
    "quickstart, patches of 8": ("model.patch_size=8", "objective.masks.context_tokens=5"),
    "centred": CENTRED,
    **{f"centred, {name}": (*CENTRED, *change) for name, change in CHANGES.items()},
    "centred, context 20": (*CENTRED, "objective.masks.context_tokens=20"),
    "centred, patches of 7": (*CENTRED, "model.patch_size=7", "objective.masks.context_tokens=6"),
}


def instance_norm(tokens: jax.Array, _: str) -> jax.Array:
    """Each feature over the positions of its image (data2vec: Baevski et al., 2022, 3.3)."""
    return jax.nn.standardize(tokens.astype(jnp.float32), axis=1, epsilon=ijepa.TARGET_NORM_EPS)


def dyn_tanh(tokens: jax.Array, _: str) -> jax.Array:
    """No statistics at all: tanh(x / 2) (DyT: Zhu et al., 2025, with its alpha of 1/2 fixed)."""
    return jnp.tanh(0.5 * tokens.astype(jnp.float32))


class AverageOfBlocks:
    """An encoder whose tokens of whole images are the mean of its last three blocks'."""

    def __init__(self, config: Any):
        self._encoder = make_encoder(config)
        self.init = self._encoder.init

    def apply(self, variables: Any, images: Any, *rest: Any, **options: Any) -> Any:
        if rest:
            return self._encoder.apply(variables, images, *rest, **options)
        last = range(self._encoder.depth - 3, self._encoder.depth)
        tokens: Any = self._encoder.apply(variables, images, layers=tuple(last))
        return tokens.mean(axis=0)  # [L, B, N, D] -> [B, N, D]


# Targets that are no option of the objective: what stands in its place in `objectives.ijepa`.
_INSTEAD: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "targets: instance norm": lambda: mock.patch.object(ijepa, "target_tokens", instance_norm),
    "targets: DynTanh": lambda: mock.patch.object(ijepa, "target_tokens", dyn_tanh),
    "targets: average of three blocks": lambda: mock.patch.object(
        ijepa, "make_encoder", AverageOfBlocks
    ),
}


def measure(recipe: str, seed: int) -> dict[str, Any]:
    """Trains and probes once: accuracies, effective rank at the start and end, seconds."""
    changes = (*RECIPES[recipe], f"seed={seed}", "logging.knn_every_steps=None")
    config = resolve(load_config("configs/quickstart.py", [f"--config.{c}" for c in changes]))
    with tempfile.TemporaryDirectory() as name:
        folder, start = pathlib.Path(name), time.monotonic()
        with _INSTEAD.get(recipe.partition(", ")[2], contextlib.nullcontext)():
            pretrain(config, folder)
        seconds = time.monotonic() - start
        rows = [row for row in read_metrics(folder / "metrics.jsonl") if "effective_rank" in row]
        encode, params = load_encoder(folder)
    train, test = (block_features(encode, params, split) for split in ("train", "test"))
    accuracies = {}
    for protocol in ("knn", "linear"):
        settings = resolve_probe(load_config(f"configs/probe/{protocol}.py", []))
        for which, blocks in (("last", slice(-1, None)), ("all", slice(None))):
            pair = [
                LabelledFeatures(np.concatenate(list(features[blocks]), axis=1), labels)
                for features, labels in (train, test)
            ]
            accuracies[f"{protocol} {which}"] = probe(settings, *pair)["accuracy"]
    ranks = [rows[0]["effective_rank"], rows[-1]["effective_rank"]]
    return {**accuracies, "effective rank": ranks, "seconds": round(seconds)}


def block_features(encode: Encoder, params: Any, split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Average-pooled features of each block [depth, n, D], and labels [n]."""
    data, layers = encode.config.data, tuple(range(encode.config.model.depth))

    @jax.jit
    def pool(images: Any) -> Any:
        tokens = encode(params, normalize(images, data.mean, data.std), layers=layers)
        return tokens.mean(axis=2)  # [L, B, N, D] -> [L, B, D]

    source = open_source(data, split)
    assert source.labels is not None
    index = np.arange(source.num_examples)
    batches = eval_batches(data, source, index=index, batch_size=250)
    return np.concatenate([np.asarray(pool(b)) for b in batches], axis=1), source.labels


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, a line for each recipe."""
    names = ("knn last", "knn all", "linear last", "linear all", "seconds")
    lines = [f"| recipe | seeds | {' | '.join(names)} | effective rank |", "|---" * 8 + "|"]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        group = [row for row in rows if row["recipe"] == recipe]
        means = [f"{np.mean([row[name] for row in group]):.3f}" for name in names[:-1]]
        means.append(f"{np.mean([row['seconds'] for row in group]):.0f}")
        low, high = np.mean([row["effective rank"] for row in group], axis=0)
        lines.append(f"| {recipe} | {len(group)} | {' | '.join(means)} | {low:.1f}, {high:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default="runs/small_recipes.jsonl")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.touch()

    def rows() -> list[dict[str, Any]]:
        return [json.loads(line) for line in arguments.out.read_text().splitlines()]

    for seed in () if arguments.table else arguments.seeds:
        for recipe in arguments.only:
            if any((row["recipe"], row["seed"]) == (recipe, seed) for row in rows()):
                continue
            row = {"recipe": recipe, "seed": seed, **measure(recipe, seed)}
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows()))


if __name__ == "__main__":
    main()
