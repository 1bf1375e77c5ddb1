"""Every image of a data set once, in order, on all cores; and which data set a name means."""

import concurrent.futures
import itertools
import pathlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

from jepa_jax.config import DataConfig
from jepa_jax.data.pipeline import CORES
from jepa_jax.data.sources import Source, open_source
from jepa_jax.data.sources.shards import MANIFEST
from jepa_jax.errors import UserError

_AHEAD = 4  # images a core that are held until it is their turn
_USUAL = ("train", "test")

T = TypeVar("T")


def in_order(function: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """`map`, in as many threads as there are cores; holds few results at a time."""
    numbers = iter(numbers)
    with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
        waiting = deque(pool.submit(function, i) for i in itertools.islice(numbers, CORES * _AHEAD))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, i) for i in itertools.islice(numbers, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def kind_of(source: str) -> Literal["shards", "folder", "tfds"]:
    """What a name means: a folder of shards, one of images, or else a data set of TFDS.

    Raises:
      UserError: it looks like a path, and there is no such folder.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return "shards" if any(path.glob(f"*/{MANIFEST}")) else "folder"
    if path.exists() or source.startswith(("/", ".", "~")):
        raise UserError(f"{source}: there is no such folder")
    return "tfds"


def split_names(source: str, wanted: str | None) -> list[str]:
    """The splits to take: as given, with commas between; else train and test, if they exist.

    Raises:
      UserError: none exists, or a name is no name of a folder.
    """
    if wanted is not None:
        names = wanted.split(",")
        if any(not n or n.startswith(".") or "/" in n for n in names) or len({*names}) < len(names):
            raise UserError(
                f"--splits {wanted}: must be different names of sub-folders or of TFDS splits, "
                "with commas between"
            )
        return names
    if kind_of(source) == "tfds":
        return list(_USUAL)
    base = pathlib.Path(source).expanduser()
    names = [name for name in _USUAL if (base / name).is_dir()]
    if not names:
        raise UserError(
            f"{source}: has no sub-folder {' or '.join(_USUAL)}; name those to take with --splits"
        )
    return names


def open_splits(source: str, splits: Sequence[str], *, tfds_dir: str | None) -> dict[str, Source]:
    """All splits, with the classes of the training images, and as many channels as images have.

    The training images are those of the split train, or else of the first.

    Raises:
      UserError: as `open_source`; or the images are arrays that no image file can hold.
    """
    kind = kind_of(source)
    has_train = kind != "tfds" and (pathlib.Path(source).expanduser() / "train").is_dir()
    of_train = "train" if has_train or "train" in splits else splits[0]
    opened = {}
    for split in splits:
        data = DataConfig(
            source=kind,
            path=source,
            tfds_dir=tfds_dir,
            train_split=of_train,
            test_split=split,
            image_size=(1, 1),
            mean=(),
            std=(),
        )
        try:
            opened[split] = open_source(data, "train" if split == of_train else "test")
        except UserError as error:
            if kind != "tfds":
                raise
            raise UserError(f"{source} is no folder, and as a TFDS data set: {error}") from error
        if opened[split].read is None:
            raise UserError(
                f"{source}: images of {opened[split].channels} channels; those of 1 to 4 can be "
                "stored as files"
            )
    return opened
