"""A part of a source's images: low-shot splits, stratified by class, and published lists."""

import dataclasses
import os
import pathlib

import numpy as np
import tensorflow as tf

from jepa_jax.config import DataConfig, SubsetConfig
from jepa_jax.data.crops import Crop
from jepa_jax.data.sources.source import Source, names_digest
from jepa_jax.errors import UserError

_FIELD = "config.data.subset"


def stratified(
    labels: np.ndarray,
    *,
    share: float | None = None,
    per_class: int | None = None,
    seed: int,
    field: str = _FIELD,
) -> np.ndarray:
    """Examples drawn at random within each class.

    Of one seed, a smaller split is part of each larger one.

    Args:
      labels: int [n].
      share: of each class's examples, rounded, and at least one.
      per_class: examples of each class; in place of `share`.
      seed: of the draw.
      field: that messages name.

    Returns:
      int64 [m], sorted.

    Raises:
      UserError: the share is of fewer examples than there are classes, or a class has too few.
    """
    if (share is None) == (per_class is None):
        raise UserError(f"{field}: set either share or per_class")
    classes, counts = np.unique(labels, return_counts=True)
    if share is not None and round(share * len(labels)) < len(classes):
        raise UserError(
            f"{field}.share = {share}: is {round(share * len(labels))} of {len(labels)} examples, "
            f"fewer than the {len(classes)} classes"
        )
    if per_class is not None and counts.min() < per_class:
        raise UserError(
            f"{field}.per_class = {per_class}: must be at most {counts.min()}, which is all of "
            f"class {classes[counts.argmin()]}"
        )
    parts = []
    for number, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        wanted = per_class or max(round((share or 0.0) * len(members)), 1)
        order = np.random.default_rng([seed, number]).permutation(len(members))
        parts.append(members[order[:wanted]])
    return np.sort(np.concatenate(parts)).astype(np.int64)


def take_subset(data: DataConfig, source: Source) -> Source:
    """The part of the training images that `data.subset` says; all of them if it is None.

    Raises:
      UserError: as `subset_index`.
    """
    if data.subset is None:
        return source
    return restricted(source, subset_index(data.subset, source))


def subset_index(subset: SubsetConfig, source: Source, *, field: str = _FIELD) -> np.ndarray:
    """The examples of a part, int64 [m], sorted; messages name the field of the configuration.

    Raises:
      UserError: the images lack the labels or names that are needed, a listed image is not there,
        or as `stratified`.
    """
    if subset.files is not None:
        return _listed(subset.files, source, field)
    if source.classes is None:
        raise UserError(
            f"{field}: the training images have no classes to draw from each class; list them "
            f"in {field}.files"
        )
    return stratified(
        source.classes,
        share=subset.share,
        per_class=subset.per_class,
        seed=subset.seed,
        field=field,
    )


def restricted(source: Source, index: np.ndarray) -> Source:
    """The examples at `index`, int64 [m], sorted, which are numbered anew, from 0 on.

    As everywhere, the next good image takes a bad one's place: the next of these.
    """
    table = tf.constant(index, tf.int64)
    total = len(index)

    def load(numbers: tf.Tensor, crop: Crop, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
        def read(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """Pixels, and whether they are those that were asked for."""
            asked = tf.gather(table, numbers)
            x, used = source.load(asked, crop, size)
            return x, used == asked

        def again(tries, numbers, x, good):
            del x
            numbers = tf.where(good, numbers, (numbers + 1) % total)
            return tries + 1, numbers, *read(numbers)

        def some_are_bad(tries, numbers, x, good):
            del numbers, x
            return ~tf.reduce_all(good) & (tries < total)

        start = (tf.constant(0), tf.cast(numbers, tf.int64), *read(numbers))
        _, used, x, good = tf.while_loop(some_are_bad, again, start)
        check = tf.debugging.Assert(tf.reduce_all(good), ["no image of the subset can be read"])
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(x), tf.identity(used)

    read, name = source.read, source.name
    return dataclasses.replace(
        source,
        num_examples=total,
        load=load,
        problem=lambda i: source.problem(int(index[i])),
        labels=None if source.labels is None else source.labels[index],
        describe=lambda i: source.describe(int(index[i])),
        digest=names_digest([source.digest.encode(), index.astype("<i8").tobytes()]),
        read=None if read is None else lambda i: read(int(index[i])),
        name=None if name is None else lambda i: name(int(index[i])),
    )


def _listed(path: str, source: Source, field: str) -> np.ndarray:
    """The examples whose names end in those of a text file, one in each line."""
    field = f"{field}.files = {path!r}"
    if source.name is None:
        raise UserError(
            f"{field}: the images of this source have no names; must be a folder or shards"
        )
    try:
        lines = pathlib.Path(path).expanduser().read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{field}: can't be read: {os.strerror(error.errno or 0)}") from error
    wanted = {line.strip() for line in lines} - {b""}
    if not wanted:
        raise UserError(f"{field}: lists no image")
    depths = sorted({name.count(b"/") + 1 for name in wanted})
    found: dict[bytes, int] = {}
    for i in range(source.num_examples):
        parts = source.name(i).split(b"/")
        for depth in depths:
            end = b"/".join(parts[-depth:])
            if depth > len(parts) or end not in wanted:
                continue
            if end in found:
                raise UserError(
                    f"{field}: {_text(end)} is the name of several images; list it with its folder"
                )
            found[end] = i
    missing = sorted(wanted - found.keys())
    if missing:
        raise UserError(
            f"{field}: there is no image {_text(missing[0])}"
            f"{f', nor {len(missing) - 1} others' if len(missing) > 1 else ''} in the training data"
        )
    return np.unique(np.array(list(found.values()), np.int64))


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
