"""Metrics of a run on disk: `metrics.jsonl`, one line per row, and TensorBoard."""

import json
import logging
import os
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
from PIL import Image

# tensorboardX imports PyTorch where it is installed: seconds, for tensors that we don't have.
_hidden = "torch" not in sys.modules
if _hidden:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from tensorboardX import SummaryWriter
finally:
    if _hidden:
        del sys.modules["torch"]


log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends rows of scalars. A resumed run first drops the rows of steps it will take again.

    Attributes:
      rows: all that the file holds, oldest first.
    """

    def __init__(self, workdir: pathlib.Path, *, start_step: int):
        self.path = workdir / "metrics.jsonl"
        rows, damaged = _read(self.path)
        if damaged:
            kept = self.path.with_name("metrics.jsonl.damaged")
            shutil.copyfile(self.path, kept)
            listed = ", ".join(map(str, damaged[:5])) + (" ..." if len(damaged) > 5 else "")
            log.warning("%s: left out: line %s; as it was: %s", self.path, listed, kept.name)
        self.rows = [row for row in rows if row["step"] <= start_step]
        replacement = self.path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(replacement, self.path)
        self._file = self.path.open("a")
        self._tensorboard = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1, flush_secs=10
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars after `step` steps: they are on disk when this returns."""
        self.rows.append({"step": step, **values})
        self._file.write(json.dumps(self.rows[-1]) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def show(self, step: int, picture: pathlib.Path) -> None:
        """Copies a PNG file into TensorBoard, under its name."""
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))  # [H, W, 3]
        self._tensorboard.add_image(picture.stem, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; what a crash cut short, or is no row, is left out."""
    return _read(path)[0]


def _read(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows, and the numbers of the damaged lines, but for a last one that was cut short."""
    rows, damaged = [], []
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            whole = isinstance(row, dict) and isinstance(row.get("step"), int)
        except ValueError:
            whole = False
        if whole:
            rows.append(row)
        elif number < len(lines):
            damaged.append(number)
    return rows, damaged
