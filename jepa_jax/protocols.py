"""What each protocol needs of a checkpoint: features of its encoder, and of the controls."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jepa_jax.config import (
    DataConfig,
    DenseConfig,
    FineTuneConfig,
    HeadsConfig,
    KnnConfig,
    LinearConfig,
    MeshConfig,
    ProbeConfig,
    to_dict,
)
from jepa_jax.data.sources import Source, open_source, restricted, subset_index
from jepa_jax.data.targets import read_targets
from jepa_jax.errors import UserError
from jepa_jax.evaluation.backbones import of_encoder, of_pixels
from jepa_jax.evaluation.comparison import SinkOf, features_of, labelled_sources, probe_each
from jepa_jax.evaluation.dense import Scene, train_dense
from jepa_jax.evaluation.feature_files import (
    FeatureFiles,
    Taken,
    chosen_blocks,
    files_of,
    identity_of,
)
from jepa_jax.evaluation.head_training import train_heads
from jepa_jax.evaluation.probes import check_probe
from jepa_jax.evaluation.scores import over_splits, score
from jepa_jax.evaluation.table import reduced_of
from jepa_jax.evaluation.tasks import task_of
from jepa_jax.fine_tune import FineTuned, fine_tune
from jepa_jax.objectives.objective import initial_encoder
from jepa_jax.opened import Opened
from jepa_jax.training.sharding import make_mesh

_PIXEL_STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of the linear probe of raw pixels

# Of each representation what `probes.probe` gives, with the labels of the test images.
Rows = dict[str, dict[str, Any]]
Sources = Mapping[str, Source]  # "train" and "test"
_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


def open_sources(config: ProbeConfig, data: DataConfig) -> Sources:
    """Training and test images; with labels, but for maps, which are theirs.

    Raises:
      UserError: they can't be opened, or can't be learned from.
    """
    if isinstance(config, DenseConfig):
        return {split: open_source(data, split) for split in _SPLITS}
    return labelled_sources(data)


def num_train(config: ProbeConfig, sources: Sources) -> int:
    """Training images; of a low-shot probe those of one split."""
    low_shot = getattr(config, "low_shot", None)
    if low_shot is None:
        return sources["train"].num_examples
    return len(subset_index(low_shot.subset(config.seed), sources["train"]))


def probe_rows(
    config: KnnConfig | LinearConfig,
    opened: Opened,
    others: Mapping[str, Opened],
    data: DataConfig,
    sources: Sources,
    *,
    features: pathlib.Path | None,
) -> tuple[Rows, dict[str, dict[str, int]]]:
    """k-NN or regression on pooled features; and which of them were reduced.

    Args:
      others: more encoders by name, beside the controls.
      features: folder where features are kept, and reused; None: nowhere.
    """
    sources, splits = _few(config, sources)
    labels: Any = sources["train"].labels
    for index in splits or [np.arange(len(labels))]:
        check_probe(config, labels[index])  # before hours of encoding

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
            sources=sources,
        )

    encoders = {"pretrained": opened.weights}
    if config.controls:
        encoders["random_init"] = initial_encoder(opened.objective, opened.config.seed)
    found = represented(opened, encoders, config.controls)
    for name, other in others.items():
        found |= represented(other, {name: other.weights}, False)
    rows = probe_each(config, found, splits)
    for name, result in rows.items():
        result["labels"] = found[name].test.labels
    return rows, reduced_of(found)


def _few(
    config: KnnConfig | LinearConfig | FineTuneConfig, sources: Sources
) -> tuple[Sources, list[np.ndarray]]:
    """With few labels: the images of all splits, and the numbers among them of each split's."""
    if config.low_shot is None:
        return sources, []
    drawn = [
        subset_index(
            config.low_shot.subset(config.seed + i), sources["train"], field="config.low_shot"
        )
        for i in range(config.low_shot.splits)
    ]
    union = np.unique(np.concatenate(drawn))
    few = {**sources, "train": restricted(sources["train"], union)}
    return few, [np.searchsorted(union, index) for index in drawn]


def head_rows(
    config: HeadsConfig,
    opened: Opened,
    others: Mapping[str, Opened],
    data: DataConfig,
    sources: Sources,
    *,
    features: pathlib.Path | None,
) -> Rows:
    """Heads trained on each encoder's features, and on pixels; see `head_training`.

    Args:
      features: folder where the heads are saved after each epoch; None: nowhere.
    """
    wanted = ("tokens",) if config.protocol == "attentive" else config.features
    mesh = make_mesh(MeshConfig())
    rows: Rows = {}
    encoders = _encoders(config, opened, others)
    if config.protocol == "attentive":
        _check_num_heads(config, encoders)  # of all, before the first is trained
    for name, (one, weights) in encoders.items():
        backbone = of_encoder(name, one.objective, weights, one.config, mesh, features=wanted)
        progress = None
        if features is not None:
            identity = identity_of(
                one.config,
                weights,
                data,
                sources["train"],
                split="train",
                features=to_dict(config)
                | {"label": data.label, "labels": _labels_digest(sources["train"])},
            )
            digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
            progress = features / f"heads-{digest[:16]}.npz"
        rows[name] = train_heads(config, data, sources, backbone, progress=progress, warn=not rows)
    if config.controls:
        backbone = of_pixels(opened.config, data, mesh, features=wanted)
        of_patch = opened.config.model.patch_size**2 * data.channels
        rows[backbone.name] = train_heads(
            _for_pixels(config, of_patch), data, sources, backbone, warn=False
        )
    return rows


def fine_tuning_rows(
    config: FineTuneConfig,
    opened: Opened,
    others: Mapping[str, Opened],
    data: DataConfig,
    sources: Sources,
    workdir: pathlib.Path,
) -> Rows:
    """The encoder fine-tuned on each split; as long from scratch; raw pixels, by linear probes."""
    few, splits = _few(config, sources)  # first, since it may not be possible
    started = {"pretrained": opened, **others}
    rows: Rows = {}
    for name, one in started.items():
        folder = workdir if name == "pretrained" else workdir / name
        rows[name] = _of_splits(config, fine_tune(config, one.folder, folder, one.network))
    if config.controls:
        scratch = fine_tune(
            config, opened.folder, workdir / "random_init", opened.network, from_scratch=True
        )
        rows["random_init"] = _of_splits(config, scratch)
        linear = LinearConfig(
            candidates=_PIXEL_STRENGTHS, low_shot=config.low_shot, seed=config.seed
        )
        pixels = features_of(data, opened.objective, {}, batch_size=250, pixels=True, sources=few)
        rows |= {
            name: result | {"labels": pixels[name].test.labels}
            for name, result in probe_each(linear, pixels, splits).items()
        }
    return rows


def _of_splits(config: FineTuneConfig, tuned: FineTuned) -> dict[str, Any]:
    task = task_of(tuned.labels)
    task = task._replace(outputs=tuned.scores.shape[-1])
    each = [score(task, outputs, tuned.labels, seed=config.seed) for outputs in tuned.scores]
    return over_splits(each, seed=config.seed) | {"labels": tuned.labels}


def dense_rows(
    config: DenseConfig,
    opened: Opened,
    others: Mapping[str, Opened],
    data: DataConfig,
    sources: Sources,
) -> Rows:
    """Segmentation or depth from each encoder's tokens, and from the pixels of each patch."""
    scenes: dict[str, Scene] = {}
    for split in _SPLITS:
        source = sources[split]
        targets = read_targets(
            data, split, source, config.target, config.protocol, scale=config.target_scale
        )
        scenes[split] = Scene(source, targets)
    wanted = ("tokens",) if config.blocks == "last" else ("tokens_last_four",)
    mesh = make_mesh(MeshConfig())

    def grid(one: Opened) -> tuple[int, int]:
        height, width = data.image_size
        return height // one.config.model.patch_size, width // one.config.model.patch_size

    rows: Rows = {}
    for name, (one, weights) in _encoders(config, opened, others).items():
        backbone = of_encoder(name, one.objective, weights, one.config, mesh, features=wanted)
        rows[name] = train_dense(config, data, scenes, backbone, grid=grid(one))
    if config.controls:
        backbone = of_pixels(opened.config, data, mesh, features=("tokens",))
        rows[backbone.name] = train_dense(config, data, scenes, backbone, grid=grid(opened))
    return rows


def _encoders(
    config: HeadsConfig | DenseConfig, opened: Opened, others: Mapping[str, Opened]
) -> dict[str, tuple[Opened, Any]]:
    """Name -> what it is of, and its weights."""
    encoders = {"pretrained": (opened, opened.weights)}
    if config.controls:
        random = initial_encoder(opened.objective, opened.config.seed)
        encoders["random_init"] = (opened, random)
    return encoders | {name: (other, other.weights) for name, other in others.items()}


def _for_pixels(config: HeadsConfig, width: int) -> HeadsConfig:
    """Pixels have no blocks: one kind of features is enough. Nor did anyone choose their width: of
    attention heads there are as many as divide it, up to those configured."""
    num_heads = max(n for n in range(1, config.num_heads + 1) if width % n == 0)
    return dataclasses.replace(config, features=("last",), num_heads=num_heads)


def _check_num_heads(config: HeadsConfig, encoders: Mapping[str, tuple[Opened, Any]]) -> None:
    for name, (one, _) in encoders.items():
        width = one.config.model.embed_dim
        if width % config.num_heads:
            raise UserError(
                f"config.num_heads = {config.num_heads}: must divide {width}, the width of the "
                f"{name.replace('_', ' ')} encoder's features"
            )


def _labels_digest(source: Source) -> str:
    """The digest of a source is of its images alone; heads learn from labels too."""
    return hashlib.sha256(np.ascontiguousarray(source.labels).tobytes()).hexdigest()


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
