"""The training loop: restore, then step after step, with what is periodic visibly periodic."""

import collections
import itertools
import logging
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jepa_jax.config import Config
from jepa_jax.data.masks import check_feasible
from jepa_jax.data.pipeline import batch_shapes, mask_sampler, steps_per_epoch, train_batches
from jepa_jax.data.sources import Source
from jepa_jax.errors import PreemptedError, StoppedRunError, UserError
from jepa_jax.objectives.objective import Objective
from jepa_jax.training import checkpoint
from jepa_jax.training.compilation import compile_ahead
from jepa_jax.training.debugging import describe_nan, parameter_table, write_programs
from jepa_jax.training.diagnostics import make_diagnostics
from jepa_jax.training.ema import get_target
from jepa_jax.training.metrics import MetricsWriter
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.preemption import notice_signals
from jepa_jax.training.progress import Progress
from jepa_jax.training.schedules import make_schedules
from jepa_jax.training.sharding import batch_sharding, check_divisible, local_rows, make_mesh
from jepa_jax.training.step import abstract_state, create_state, make_train_step

log = logging.getLogger(__name__)

# Steps that the devices may be behind the loop: enough to keep them busy, few enough that a loss
# that is not finite is seen at once. Numbers are only ever fetched from steps this far back.
_STEPS_IN_FLIGHT = 4


def train(
    config: Config,
    workdir: pathlib.Path,
    *,
    objective: Objective,
    source: Source,
    knn_accuracy: Callable[[Any], float] | None = None,
) -> dict[str, Any]:
    """Trains to the end of the last epoch, from the newest checkpoint in `workdir` if there is one.

    Args:
      workdir: receives `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
      source: the training images.
      knn_accuracy: target parameters -> accuracy; called every `logging.knn_every_steps` steps.

    Returns:
      step: steps taken; loss: of the last one, None if none was left to take.

    Raises:
      UserError: the configuration does not fit the data, the devices or the run in `workdir`;
        nothing has been written then.
      StoppedRunError: the loss was not finite, or an image could not be read.
      PreemptedError: SIGTERM or SIGINT came; the state has been saved.
    """
    # What there is to do.
    epoch_steps = steps_per_epoch(config, source.num_examples)
    end_step = config.epochs * epoch_steps
    mesh = make_mesh(config.mesh)
    check_divisible(config, mesh)
    enough = check_feasible(mask_sampler(config))
    log.info("masks: %.1f%% of the draws leave enough context; the rest are redrawn", 100 * enough)
    schedules = make_schedules(config, epoch_steps)
    optimizer = make_optimizer(config.optimizer, schedules, objective.target_of)

    # Where to start.
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: can't write there: {error.strerror}") from None
    start_step = checkpoint.latest_step(workdir)
    if start_step is not None:
        folder = checkpoint.find(workdir)
        for name, (saved, now) in checkpoint.check_resumable(folder, config).items():
            log.warning("config.%s was %s and is %s from here on", name, saved, now)
        state = checkpoint.restore(folder, abstract_state(objective, optimizer, mesh=mesh))
        log.info("resumed from %s", folder)
    else:
        start_step = 0
        state = create_state(objective, optimizer, seed=config.seed, mesh=mesh)
    if start_step >= end_step:
        log.info("nothing to do: %d of %d steps are taken", start_step, end_step)
        return {"step": start_step, "loss": None}

    if config.debug:
        log.info("%s", parameter_table(state.params, mesh))
    # All shapes are known, so that none is met unprepared.
    train_step = make_train_step(
        objective,
        optimizer,
        schedules,
        state,
        seed=config.seed,
        accumulation_steps=config.optimizer.accumulation_steps,
        mesh=mesh,
        donate=not config.debug,  # what is gone can't be looked at
    )
    shapes = batch_shapes(config, step=start_step)
    if config.profile.hlo:
        write_programs(workdir / "hlo", train_step, state, shapes)
    like = abstract_state(objective, optimizer, mesh=mesh)
    # To debug, compiled at its first call: JAX can take it apart then to find where a NaN arises.
    compiled = [] if config.debug else compile_ahead(train_step, like, shapes)
    step_for = dict(zip(map(_shape_key, shapes), compiled, strict=False))
    diagnose = make_diagnostics(objective, mesh)

    manager = checkpoint.make_manager(workdir, config)
    first = jax.process_index() == 0  # the process that speaks and writes for all
    writer = MetricsWriter(workdir, start_step=start_step) if first else None
    progress = Progress(
        start_step=start_step, end_step=end_step, batch_size=config.batch_size, shown=first
    )
    # Steps whose numbers are not fetched yet: (step, metrics, whether they are written).
    pending: collections.deque[tuple[int, dict[str, jax.Array], bool]] = collections.deque()
    fallbacks, loss = 0, math.nan

    def settle(keep: int) -> None:
        """Fetches the numbers of all steps but the newest `keep`; writes those that are due."""
        nonlocal loss
        while len(pending) > keep:
            step, metrics, written = pending.popleft()
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                manager.wait_until_finished()  # the last save may still be on its way
                raise StoppedRunError(_advice(step, loss, workdir))
            if written and writer is not None:
                values = {name: float(value) for name, value in metrics.items()}
                speed = progress.report(step, values)
                writer.write(step, values | {"images_per_second": speed})

    def save(step: int) -> None:
        settle(keep=0)  # only a state that came from finite numbers is worth keeping
        checkpoint.save(manager, state, config)
        log.info("saving checkpoint %d", step)

    trace_from, trace_to = config.profile.steps
    trace_to = min(trace_to, end_step) if trace_from > start_step else 0
    with notice_signals() as interrupted, jax.debug_nans(config.debug):
        try:
            batches = train_batches(
                config,
                source,
                # To debug, the first batch alone: a model that works can learn it by heart.
                start_step=0 if config.debug else start_step,
                end_step=1 if config.debug else end_step,
                rows=local_rows(mesh, config.batch_size),
            )
            if config.debug:
                batches = itertools.repeat(next(batches), end_step - start_step)
            arrays = _to_devices(batches, mesh, config.batch_size)
            for step, (fallback, batch) in enumerate(arrays, start=start_step + 1):
                if step == trace_from:
                    jax.profiler.start_trace(workdir / "profile", create_perfetto_trace=first)
                step_now = train_step if config.debug else step_for[_shape_key(batch)].result()
                state, metrics = step_now(state, batch)
                if step == trace_to:
                    jax.block_until_ready(metrics)
                    jax.profiler.stop_trace()
                    log.info("traced steps %d to %d: %s/profile", trace_from, trace_to, workdir)
                written = due(step, config.logging.every_steps) or step == end_step
                if due(step, config.logging.diagnostics_every_steps):
                    written = True
                    metrics |= diagnose(get_target(state.optimizer_state), batch["image"])
                pending.append((step, metrics, written))
                settle(keep=_STEPS_IN_FLIGHT)
                progress.advance()
                fallbacks += fallback
                if due(step, config.logging.knn_every_steps) and knn_accuracy is not None:
                    settle(keep=0)  # which this waits for anyway; and rows stay in order
                    accuracy = knn_accuracy(get_target(state.optimizer_state))
                    progress.say(f"step {step}: k-NN accuracy {accuracy:.3f}")
                    if writer is not None:
                        writer.write(step, {"knn_accuracy": accuracy})
                if due(step, config.checkpoint.every_steps) and step < end_step:
                    save(step)
                if interrupted(step) and step < end_step:
                    save(step)
                    raise PreemptedError(
                        f"stopped after step {step}, which is saved; the same command resumes"
                    )
            save(end_step)
        except FloatingPointError as error:  # from debug_nans
            raise StoppedRunError(f"step {step}: {describe_nan(error)}") from None
        finally:
            for waiting in compiled:
                waiting.cancel()
            manager.wait_until_finished()
            manager.close()
            if writer is not None:
                writer.close()
            progress.close()
            if fallbacks:
                log.warning("%d examples had stacked targets: no mask draw fitted", fallbacks)
    return {"step": end_step, "loss": loss}


def due(step: int, period: int) -> bool:
    """Whether something periodic happens after this step; a period of 0 means never."""
    return period > 0 and step % period == 0


def _to_devices(
    batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, batch_size: int
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """The arrays that the step needs, on the devices; before them how many masks fell back.

    The rows of this process and those of the others become one array over all devices.
    """
    sharding = batch_sharding(mesh)
    names = ("image", "context_index", "target_index")
    for batch in batches:
        arrays = {
            name: jax.make_array_from_process_local_data(
                sharding, batch[name], (batch_size, *batch[name].shape[1:])
            )
            for name in names
        }
        yield int(batch["mask_fallback"].sum()), arrays


def _shape_key(batch: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(batch[name].shape for name in sorted(batch))


def _advice(step: int, loss: float, workdir: pathlib.Path) -> str:
    saved = checkpoint.latest_step(workdir)
    good = f"the last good checkpoint is {workdir}/checkpoints/{saved}"
    return (
        f"the loss of step {step} is {loss}; {good if saved else 'there is no checkpoint yet'}. "
        "Try a lower optimizer.lr, a longer optimizer.warmup_epochs, optimizer.clip_norm = 1.0, or "
        "model.dtype = float32"
    )
