"""What each protocol needs of a checkpoint: features of its encoder, and of the controls."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jepa_jax.config import (
    DataConfig,
    HeadsConfig,
    KnnConfig,
    LinearConfig,
    MeshConfig,
    to_dict,
)
from jepa_jax.data.sources import Source
from jepa_jax.evaluation.backbones import of_encoder, of_pixels
from jepa_jax.evaluation.comparison import SinkOf, features_of, labelled_source, probe_each
from jepa_jax.evaluation.feature_files import (
    FeatureFiles,
    Taken,
    chosen_blocks,
    files_of,
    identity_of,
)
from jepa_jax.evaluation.head_training import train_heads
from jepa_jax.evaluation.report import reduced_of
from jepa_jax.objectives.objective import initial_encoder
from jepa_jax.opened import Opened
from jepa_jax.training.sharding import make_mesh

# Of each representation what `probes.probe` gives, with the labels of the test images.
Rows = dict[str, dict[str, Any]]


def probe_rows(
    config: KnnConfig | LinearConfig,
    opened: Opened,
    others: Mapping[str, Opened],
    data: DataConfig,
    *,
    features: pathlib.Path | None,
) -> tuple[Rows, dict[str, dict[str, int]]]:
    """k-NN or regression on pooled features; and which of them were reduced.

    Args:
      others: more encoders by name, beside the controls.
      features: folder where features are kept, and reused; None: nowhere.
    """

    def represented(one: Opened, encoders: dict[str, Any], pixels: bool) -> Any:
        depth = one.config.model.depth
        layers = chosen_blocks(config.layers, depth, field="config.layers")
        return features_of(
            data,
            one.objective,
            encoders,
            batch_size=config.batch_size,
            pixels=pixels,
            layers=layers,
            sink=None if features is None else _files(one, encoders, data, features, layers),
        )

    encoders = {"pretrained": opened.weights}
    if config.controls:
        encoders["random_init"] = initial_encoder(opened.objective, opened.config.seed)
    found = represented(opened, encoders, config.controls)
    for name, other in others.items():
        found |= represented(other, {name: other.weights}, False)
    rows = probe_each(config, found)
    for name, result in rows.items():
        result["labels"] = found[name].test.labels
    return rows, reduced_of(found)


def head_rows(
    config: HeadsConfig,
    opened: Opened,
    others: Mapping[str, Opened],
    data: DataConfig,
    *,
    features: pathlib.Path | None,
) -> Rows:
    """Heads trained on each encoder's features, and on pixels; see `head_training`.

    Args:
      features: folder where the heads are saved after each epoch; None: nowhere.
    """
    sources = {split: labelled_source(data, split) for split in ("train", "test")}
    wanted = ("tokens",) if config.protocol == "attentive" else config.features
    mesh = make_mesh(MeshConfig())
    encoders = {"pretrained": (opened, opened.weights)}
    if config.controls:
        random = initial_encoder(opened.objective, opened.config.seed)
        encoders["random_init"] = (opened, random)
    encoders |= {name: (other, other.weights) for name, other in others.items()}
    rows: Rows = {}
    for name, (one, weights) in encoders.items():
        backbone = of_encoder(name, one.objective, weights, one.config, mesh, features=wanted)
        progress = None
        if features is not None:
            identity = identity_of(
                one.config, weights, data, sources["train"], split="train", features=to_dict(config)
            )
            digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
            progress = features / f"heads-{digest[:16]}.npz"
        rows[name] = train_heads(config, data, sources, backbone, progress=progress)
    if config.controls:
        backbone = of_pixels(opened.config, data, mesh, features=wanted)
        rows[backbone.name] = train_heads(_without_grid(config), data, sources, backbone)
    return rows


def _without_grid(config: HeadsConfig) -> HeadsConfig:
    """Pixels have no blocks: one kind of features is enough."""
    return dataclasses.replace(config, features=("last",))


def _files(
    opened: Opened,
    encoders: Mapping[str, Any],
    data: DataConfig,
    root: pathlib.Path,
    layers: tuple[int, ...] | None,
) -> SinkOf:
    """Where the pooled features of each encoder are kept; see `feature_files`."""

    def sink(split: str, source: Source, encoder: str) -> FeatureFiles:
        weights = encoders[encoder]
        return files_of(root, opened.config, weights, data, source, split, Taken(layers))

    return sink
