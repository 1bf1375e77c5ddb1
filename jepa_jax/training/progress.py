"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time

import tqdm

from jepa_jax.training.input_wait import MATTERS

# All metrics are on disk; these are worth a look while a run goes on.
_SHOWN = ("loss", "lr", "gradient_norm", "effective_rank")


class Progress:
    """Images per second are measured between reports, as is the time that remains.

    Of several processes only one has it `shown`.
    """

    def __init__(self, *, start_step: int, end_step: int, batch_size: int, shown: bool):
        self._end_step = end_step
        self._batch_size = batch_size
        self._last = (start_step, time.monotonic())
        self._shown = shown
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                initial=start_step, total=end_step, unit="step", dynamic_ncols=True
            )

    def advance(self) -> None:
        """One more step was handed to the devices."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, values: dict[str, float]) -> float:
        """Shows the numbers of a step; returns the images per second since the last report."""
        last_step, last_time = self._last
        self._last = (step, time.monotonic())
        seconds_per_step = max(self._last[1] - last_time, 1e-9) / max(step - last_step, 1)
        images_per_second = self._batch_size / seconds_per_step
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {images_per_second:,.0f} img/s")
            return images_per_second
        waits = values.get("input_wait", 0.0)
        waiting = f"waits for data {waits:.0%}  " if waits > MATTERS else ""
        minutes, seconds = divmod(round((self._end_step - step) * seconds_per_step), 60)
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in _SHOWN if name in values)
        self.say(
            f"step {step}/{self._end_step}  {shown}  {images_per_second:,.0f} img/s  "
            f"{waiting}{minutes}:{seconds:02d} left"
        )
        return images_per_second

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self._shown:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
