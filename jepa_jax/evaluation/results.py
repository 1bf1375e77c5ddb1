"""What probes found, in files: numbers as JSON, and each test image's prediction beside them.

`FOLDER/<name>.json` is what the report shows; `FOLDER/<name>.npz` holds for each row and each test
image whether it was told right, or its error, and the labels: so that two can be compared later.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jepa_jax.errors import UserError
from jepa_jax.evaluation.scores import measured, paired

_MOST_CLASSES = 200  # of a confusion matrix that is written


def table_of(
    rows: Mapping[str, Mapping[str, Any]],
    *,
    class_names: Sequence[str],
    num_train: int,
    num_test: int,
) -> dict[str, Any]:
    """What the report shows of a result.

    Args:
      rows: representation -> what `scores.score` gives; "pretrained" is among them.
    """
    confusion = rows["pretrained"].get("confusion", [])
    left_out = ("confusion", "per_example", "labels")
    return {
        "metric": measured(rows["pretrained"]),
        "rows": {
            row: {key: value for key, value in scores.items() if key not in left_out}
            for row, scores in rows.items()
        },
        "confusion": confusion if len(confusion) <= _MOST_CLASSES else [],
        "class_names": list(class_names),
        "num_train": num_train,
        "num_test": num_test,
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "device": jax.devices()[0].device_kind,
    }


def write_result(
    folder: pathlib.Path,
    name: str,
    result: Mapping[str, Any],
    *,
    per_example: Mapping[str, np.ndarray],
    labels: np.ndarray,
) -> pathlib.Path:
    """Writes one probe's result, in place of an earlier one of the same name.

    Args:
      per_example: row -> [n] of the test images, see `scores.per_example`; labels: theirs.

    Returns:
      The JSON file.

    Raises:
      UserError: the folder can't be written.
    """
    path = folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".npz")
        temporary = beside.with_name(f".{beside.stem}.{os.getpid()}.npz")
        arrays = {f"row_{row}": array for row, array in per_example.items()}
        np.savez_compressed(temporary, labels=labels, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, beside)
        text = path.with_name(f".{path.name}.{os.getpid()}")
        text.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(text, path)
    except OSError as error:
        raise UserError(f"--results {folder}: can't be written: {error.strerror}") from error
    return path


def check_folder(flag: str, folder: pathlib.Path) -> None:
    """Refuses a folder that can't be made or written to, before hours of work for it.

    Raises:
      UserError: that.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is not a folder"
        raise UserError(f"{flag} {folder}: can't be written: {there} {why}")


def compare(first: pathlib.Path, second: pathlib.Path, *, row: str = "pretrained") -> Any:
    """Whether the encoders of two results differ; see `scores.paired`.

    Args:
      first, second: JSON files that `write_result` wrote, of the same test images.

    Raises:
      UserError: a file can't be read, or they are of other images.
    """
    values, labels = [], []
    for path in (first, second):
        try:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                values.append(arrays[f"row_{row}"])
                labels.append(arrays["labels"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"--against {path.with_suffix('.npz')}: can't be read: {error}"
            ) from error
    if labels[0].shape != labels[1].shape or not np.array_equal(*labels):
        raise UserError(
            f"--against {second}: is of other test images than {first}; probe both on the same data"
        )
    return paired(*values)
