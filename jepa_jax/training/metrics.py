"""Metrics of a run on disk: `metrics.jsonl`, one line per row, and TensorBoard."""

import json
import os
import pathlib
import sys
from typing import Any

# tensorboardX imports PyTorch where it is installed: seconds, for tensors that we don't have.
_hidden = "torch" not in sys.modules
if _hidden:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from tensorboardX import SummaryWriter
finally:
    if _hidden:
        del sys.modules["torch"]


class MetricsWriter:
    """Appends rows of scalars. A resumed run first drops the rows of steps it will take again.

    Attributes:
      rows: all that the file holds, oldest first.
    """

    def __init__(self, workdir: pathlib.Path, *, start_step: int):
        self.path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_metrics(self.path) if row["step"] <= start_step]
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

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that a crash cut short is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
