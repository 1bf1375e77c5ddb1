"""The numbers of a run's steps: fetched a few steps late, written, shown, and watched."""

import collections
import logging
import math
import pathlib
from collections.abc import Sequence

import jax

from jepa_jax.config import Config
from jepa_jax.errors import DivergedError
from jepa_jax.training.alarms import LossWatch, end_of
from jepa_jax.training.input_wait import InputWait
from jepa_jax.training.metrics import MetricsWriter, read_metrics
from jepa_jax.training.progress import Progress
from jepa_jax.training.run_record import write_run_record
from jepa_jax.training.stalls import Watchdog
from jepa_jax.training.verdict import verdict
from jepa_jax.training.wandb_log import WandbLog

log = logging.getLogger(__name__)

# Steps that the devices may be behind the loop: enough to keep them busy, few enough that a loss
# that is not finite is seen at once. Numbers are only ever fetched from steps this far back.
_STEPS_IN_FLIGHT = 4
_REMEMBERED = 1000  # steps before a resume whose written losses say what is usual
_BAD, _BAD_FOR = ("collapsing", "collapsed"), 3  # verdicts; in a row, until the alarm


class RunLog:
    """All processes see the same numbers and decide alike; the first one writes and speaks.

    Attributes:
      loss: of the last step that counted; NaN: there was none.
      rows: of `metrics.jsonl` up to here, oldest first; in other processes than the first those of
        the steps before this start, and all that have signs of collapse.
      spikes: the steps at which the loss left its range.
      waits: how long the loop waits for its batches.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, *, start_step: int, end_step: int):
        """Raises OSError where nothing can be written; UserError: see `WandbLog`."""
        first = jax.process_index() == 0
        self._config = config
        self._writer = MetricsWriter(workdir, start_step=start_step) if first else None
        self._wandb = None
        if first:
            write_run_record(workdir, start_step=start_step)
            if config.logging.wandb is not None:
                self._wandb = WandbLog(config, workdir)
        self._progress = Progress(
            start_step=start_step, end_step=end_step, batch_size=config.batch_size, shown=first
        )
        # Steps whose numbers are not fetched yet: (step, metrics, whether they are written).
        self._pending: collections.deque[tuple[int, dict[str, jax.Array], bool]] = (
            collections.deque()
        )
        self._watchdog = Watchdog(config.stall_minutes)
        self._losses = LossWatch()
        self._skipped = 0  # steps in a row
        self._bad_for = 0  # measurements in a row
        self.loss = math.nan
        self.waits = InputWait()
        if self._writer is not None:
            self.rows = self._writer.rows
        else:
            rows = read_metrics(workdir / "metrics.jsonl")
            self.rows = [row for row in rows if row["step"] <= start_step]
        self.spikes = [row["step"] for row in self.rows if "loss_spike" in row]
        for row in self.rows:  # or a run that goes on after an explosion would find it usual
            if "loss" in row and row["step"] > start_step - _REMEMBERED:
                self._losses.see(row["loss"])

    def add(self, step: int, metrics: dict[str, jax.Array], *, written: bool) -> None:
        """Takes a step's numbers, which the devices may still compute; handles older ones."""
        self._pending.append((step, metrics, written))
        self.settle(keep=_STEPS_IN_FLIGHT)
        self._progress.advance()

    def settle(self, *, keep: int = 0) -> None:
        """Fetches the numbers of all steps but the newest `keep`; writes those that are due.

        Raises:
          DivergedError: too many steps in a row were skipped, or have a loss spike.
        """
        while len(self._pending) > keep:
            step, arrays, written = self._pending.popleft()
            if not written:  # the others stay where they are
                arrays = {name: arrays[name] for name in ("loss", "gradient_norm", "skipped")}
            with self._watchdog.waiting(f"step {step}"):
                metrics = {name: float(x) for name, x in jax.device_get(arrays).items()}
            if metrics.pop("skipped"):
                self._skip(step, metrics)
                continue
            self.loss, self._skipped = metrics["loss"], 0
            self._watch_loss(step)
            if written:
                self._report(step, metrics)

    def _skip(self, step: int, metrics: dict[str, float]) -> None:
        self._skipped += 1
        what = (
            f"the loss of step {step} is {metrics['loss']:g}, the norm of its gradient "
            f"{metrics['gradient_norm']:g}"
        )
        log.warning("%s: it changes nothing", what)
        self.write(step, {"skipped": 1.0})
        if self._skipped >= self._config.optimizer.max_skipped_steps:
            raise DivergedError(
                f"{what}; as many steps in a row as config.optimizer.max_skipped_steps = "
                f"{self._skipped}",
                before=step,
            )

    def _watch_loss(self, step: int) -> None:
        was_high_for = self._losses.high_for
        ratio = self._losses.see(self.loss)
        if ratio is None:
            if was_high_for:
                self.say(f"    the loss is back in its range after {was_high_for} steps")
            return
        what = f"the loss of step {step} is {self.loss:.4g}, {ratio:.3g} times what is usual"
        if not was_high_for:
            self.spikes.append(step)
            self.write(step, {"loss_spike": ratio})
            log.warning(
                "ALARM: %s; the checkpoint before it is kept; look at gradient_norm and lr in "
                "metrics.jsonl, and see docs/reading_a_run.md",
                what,
            )
        most = self._config.optimizer.max_spike_steps
        if most is not None and self._losses.high_for >= most:
            raise DivergedError(
                f"{what}, as for config.optimizer.max_spike_steps = {most} steps",
                before=self.spikes[-1],
            )

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        metrics["input_wait"] = self.waits.share()
        speed = self._progress.report(step, metrics)
        self.write(step, metrics | {"images_per_second": speed})
        if "effective_rank" in metrics:
            if self._writer is None:
                self.rows.append({"step": step, **metrics})
            self._watch_features(step)
        advice = self.waits.advice(metrics["input_wait"])
        if advice is not None:
            self.say(f"    {advice}")

    def _watch_features(self, step: int) -> None:
        found = verdict(self.rows, ceiling=self._ceiling)
        if found is None:
            return
        self.say(f"    {found}")
        self._bad_for = self._bad_for + 1 if found.word in _BAD else 0
        if self._bad_for == _BAD_FOR:
            log.warning(
                "ALARM: step %d: the features are %s, measured %d times in a row; what to change: "
                "docs/reading_a_run.md",
                step,
                found.word,
                _BAD_FOR,
            )

    @property
    def _ceiling(self) -> int:
        """The largest effective rank there can be."""
        return min(self._config.model.embed_dim, self._config.batch_size)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(step, values)
        if self._wandb is not None:
            self._wandb.write(step, values)

    def show(self, step: int, pictures: Sequence[pathlib.Path]) -> None:
        """Copies PNG files, which were drawn after `step` steps, to where the numbers are shown."""
        if self._writer is not None:
            for picture in pictures:
                self._writer.show(step, picture)
        if self._wandb is not None and pictures:
            self._wandb.show(step, pictures)

    def say(self, line: str) -> None:
        self._progress.say(line)

    def wrong_at_end(self) -> str | None:
        """What is wrong with the run, which has taken all its steps; None: nothing was seen."""
        return end_of(self.rows, high_for=self._losses.high_for, ceiling=self._ceiling)

    def close(self, *, failed: bool) -> None:
        """Args: failed: the run ends early."""
        self._watchdog.close()
        self._progress.close()
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:  # last: it may wait for a network
            self._wandb.close(failed=failed or self.wrong_at_end() is not None)
