"""Which tensors the safetensors files of a folder hold; each is read when it is asked for."""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors

from jepa_jax.errors import UserError
from jepa_jax.interop.tensors import TensorSource

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PREFIXES = ("module.", "ijepa.")  # several GPUs; an IJepaForImageClassification


def index_tensors(path: pathlib.Path) -> tuple[TensorSource, list[str]]:
    """The tensors of all files, without prefixes; and some of the names as they are stored."""
    shapes, dtypes, places = {}, {}, {}
    for file in _weight_files(path):
        with _open(file) as opened:
            stored_names = opened.keys()
            for stored in stored_names:
                name = stored
                for prefix in _PREFIXES:
                    name = name.removeprefix(prefix)
                if name in places:
                    raise UserError(f"{path}: {name} appears twice")
                view = opened.get_slice(stored)
                dtype = view.get_dtype()
                shapes[name] = tuple(view.get_shape())
                dtypes[name] = "float32" if dtype == "F32" else dtype
                places[name] = (file, stored)

    def read(name: str) -> np.ndarray:
        # Opened anew each time: what was read would stay mapped, and count as memory.
        file, stored = places[name]
        with _open(file) as opened:
            return opened.get_tensor(stored)

    return TensorSource(str(path), shapes, dtypes, read), list(places)


def _weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: must be a folder, or a file that ends in .safetensors")
    if (path / INDEX).is_file():
        weight_map = read_json(path / INDEX).get("weight_map")
        names = weight_map.values() if isinstance(weight_map, dict) else [None]
        for name in names:
            if not isinstance(name, str) or pathlib.PurePath(name).name != name or "\\" in name:
                raise UserError(f"{path / INDEX}: weight_map names {name!r}, which is no file here")
        files = [path / name for name in sorted(set(names))]
    else:
        files = [path / WEIGHTS]
    for file in files:
        if not file.is_file():
            raise UserError(f"{path}: no {file.name} there")
    return files


def _open(file: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="np")
    except Exception as error:  # SafetensorError, OSError, and what its header may raise
        raise UserError(f"{file}: not a whole safetensors file: {error}") from error


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
      UserError: there is none.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold an object")
    return content
