"""Features of a data set in files: computed once, resumed where they stop, reused by all probes.

`ROOT/<16 hexadecimal digits>/` holds the features of one encoder of the images of one split:
`identity.json` says which, and the digits are its digest, so that other weights, other images or
another size never meet. `features-00000.npy` and so on are rows in the order of the images, float16
or float32; `bad-00000.npy` lists the images of that file that could not be read.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jepa_jax.config import Config, DataConfig, to_dict
from jepa_jax.data.decode import BadImageError
from jepa_jax.data.sources import Source
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation.rows import Rows

_FILE_BYTES = 64 << 20
_LOOKED_AT = 256  # files whose contents are part of the identity
# Of the data's configuration, what changes an evaluation image.
_PREPARATION = ("image_size", "eval_crop", "interpolation", "reduced_decoding")
# Of the model's, what changes features; the weights' shapes tell the rest.
_ARCHITECTURE = ("patch_size", "num_heads", "positions", "class_token", "layer_norm_eps")


class FeatureFiles:
    """Features of one encoder, of the images of one split.

    Attributes:
      folder: that they lie in.
      done: images that are in files already.
    """

    def __init__(
        self,
        root: pathlib.Path,
        identity: dict[str, Any],
        *,
        count: int,
        shape: tuple[int, ...],
        dtype: Literal["float16", "float32"],
    ):
        """
        Args:
          identity: see `identity_of`.
          count: images; shape: of one image's features.

        Raises:
          UserError: the folder can't be written.
        """
        text = json.dumps(identity, indent=1, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.done = 0
        self._count, self._shape, self._dtype = count, shape, np.dtype(dtype)
        row = int(np.prod(shape)) * self._dtype.itemsize
        self._per_file = max(_FILE_BYTES // row, 1)
        self._rows: list[np.ndarray] = []
        self._bad: list[int] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.folder / "identity.json", text.encode())
        except OSError as error:
            raise UserError(f"{root}: can't be written: {error.strerror}") from error
        while self.done < count and self._complete(self.done // self._per_file):
            self.done = min(self.done + self._per_file, count)

    def _complete(self, number: int) -> bool:
        try:
            rows = np.load(self._path("features", number), mmap_mode="r", allow_pickle=False)
            np.load(self._path("bad", number), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        expected = min(self._per_file, self._count - number * self._per_file)
        return rows.shape == (expected, *self._shape) and rows.dtype == self._dtype

    def add(self, rows: np.ndarray, bad: list[int]) -> None:
        """The features of the next images, and which images of them (by number) are bad."""
        self._rows.append(np.asarray(rows, self._dtype))
        self._bad += bad
        held = sum(map(len, self._rows))
        while held and (held >= self._per_file or self.done + held == self._count):
            rows = np.concatenate(self._rows)
            now, later = rows[: self._per_file], rows[self._per_file :]
            number, end = self.done // self._per_file, self.done + len(now)
            bad_here = np.array([i for i in self._bad if i < end], np.int64)
            save_array(self._path("bad", number), bad_here)
            save_array(self._path("features", number), now)  # the last to come: now it counts
            self._bad = [i for i in self._bad if i >= end]
            self._rows, held, self.done = [later], len(later), end

    def rows(self) -> Rows:
        """All features, memory-mapped."""
        return Rows([np.load(path, mmap_mode="r") for path in self._all("features")])

    def bad(self) -> np.ndarray:
        """Numbers of the images that are bad, int64."""
        return np.concatenate([np.load(path) for path in self._all("bad")])

    def _all(self, name: str) -> list[pathlib.Path]:
        return [self._path(name, i) for i in range(-(-self._count // self._per_file))]

    def _path(self, name: str, number: int) -> pathlib.Path:
        return self.folder / f"{name}-{number:05d}.npy"


def identity_of(
    config: Config,
    weights: Any,
    data: DataConfig,
    source: Source,
    *,
    split: str,
    features: dict[str, Any],
) -> dict[str, Any]:
    """What tells features apart: weights, architecture, images, how they are prepared.

    Args:
      config: of the run that the encoder is from.
      weights: of the encoder.
      features: what is taken of its output: layers, pooled or not, type.
    """
    model, prepared = to_dict(config)["model"], to_dict(data)
    return {
        "format": 1,
        "weights": weights_digest(weights),
        "model": {name: model[name] for name in _ARCHITECTURE},
        "normalisation": {"mean": config.data.mean, "std": config.data.std},
        "computed_in": config.compute.dtype,
        "images": {
            "split": split,
            "count": source.num_examples,
            "digest": source.digest,
            "contents": _contents(source),
        },
        "prepared": {name: prepared[name] for name in _PREPARATION},
        "features": features,
    }


def _contents(source: Source) -> str | None:
    """Of files, whose digest is of their names: that of the bytes of some, spread evenly."""
    if source.name is None or source.read is None:
        return None
    digest = hashlib.sha256()
    for number in np.unique(np.linspace(0, source.num_examples - 1, _LOOKED_AT).astype(int)):
        with contextlib.suppress(OSError, BadImageError):  # which is told of elsewhere
            digest.update(hashlib.sha256(source.read(int(number))).digest())
    return digest.hexdigest()


class Taken(NamedTuple):
    """What is taken of an encoder's output.

    Attributes:
      layers: blocks counted from 0, ascending; None: the last alone.
      pooled: the mean over an image's tokens, [L * D]; or else all of them, [N, L * D], of each
        token its L blocks after one another.
    """

    layers: tuple[int, ...] | None = None
    pooled: bool = True
    dtype: Literal["float16", "float32"] = "float32"

    def shape(self, width: int, num_patches: int) -> tuple[int, ...]:
        """Of one image's features, of an encoder of this width."""
        width *= len(self.layers or (0,))
        return (width,) if self.pooled else (num_patches, width)


def files_of(
    root: pathlib.Path,
    config: Config,
    weights: Any,
    data: DataConfig,
    source: Source,
    split: str,
    taken: Taken,
) -> FeatureFiles:
    """Where the features of one encoder of the images of a split are kept: one place for each.

    Args:
      config: of the run that the encoder is from; data, source: the images.

    Raises:
      UserError: the folder can't be written.
    """
    grid = tuple(side // config.model.patch_size for side in data.image_size)
    shape = taken.shape(config.model.embed_dim, grid[0] * grid[1])
    identity = identity_of(config, weights, data, source, split=split, features=taken._asdict())
    return FeatureFiles(root, identity, count=source.num_examples, shape=shape, dtype=taken.dtype)


def chosen_blocks(layers: tuple[int, ...], depth: int, *, field: str) -> tuple[int, ...] | None:
    """Blocks counted from 0, of blocks that are counted from the end; None: the last alone.

    Raises:
      UserError: there are not so many, or they don't ascend.
    """
    if layers == (-1,):
        return None
    if not layers or list(layers) != sorted(set(layers)) or max(layers) > -1:
        raise UserError(f"{field} = {layers}: must be counted from the end, ascending, -1 the last")
    if min(layers) < -depth:
        raise UserError(f"{field} = {layers}: the encoder has only {depth} blocks")
    return tuple(depth + layer for layer in layers)


def weights_digest(weights: Any) -> str:
    """SHA-256 of the names, types, shapes and bytes of all arrays of a tree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        array = np.ascontiguousarray(jax.device_get(leaf))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes a .npy file that is there as a whole, or as it was before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (
        OSError
    ) as error:  # the disk is full: what is complete stays, and the same command goes on
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoppedRunError(f"{path}: can't be written: {error.strerror or error}") from error


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that is there as a whole, or as it was before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
