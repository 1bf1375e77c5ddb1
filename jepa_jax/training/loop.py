"""The training loop: restore, then step after step, with what is periodic visibly periodic."""

import collections
import contextlib
import itertools
import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jepa_jax.batch.spec import DataIdentity, Stream, first_view
from jepa_jax.config import Config
from jepa_jax.errors import (
    BadDataError,
    DivergedError,
    PreemptedError,
    StalledInputError,
    StoppedRunError,
    UserError,
)
from jepa_jax.objectives.objective import Objective, at_path
from jepa_jax.training import checkpoint
from jepa_jax.training.compilation import CompiledSteps
from jepa_jax.training.debugging import describe_nan, parameter_table, write_programs
from jepa_jax.training.diagnostics import make_diagnostics
from jepa_jax.training.periods import Timer, due
from jepa_jax.training.preemption import notice_signals
from jepa_jax.training.recovery import resume
from jepa_jax.training.resume import check_resumable
from jepa_jax.training.run_log import RunLog
from jepa_jax.training.setup import Setup, set_up
from jepa_jax.training.sharding import batch_sharding, local_rows
from jepa_jax.training.stalls import Interrupted, in_time
from jepa_jax.training.state import TrainState
from jepa_jax.training.steps import step_folders
from jepa_jax.training.wandb_log import check_installed

log = logging.getLogger(__name__)

_norm = jax.jit(optax.tree.norm)
_PROBES = {"knn_accuracy": "k-NN", "linear_accuracy": "linear"}  # as they are said


def train(
    config: Config,
    workdir: pathlib.Path,
    *,
    objective: Objective,
    stream: Stream,
    online: Callable[[Any, Sequence[str]], dict[str, float]] | None = None,
    draw: Callable[[int, Any], Sequence[pathlib.Path]] | None = None,
    initialize: Callable[[TrainState], TrainState] | None = None,
    accept_changed_data: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """Trains to the end of the last epoch, from the newest checkpoint in `workdir` if there is one.

    Args:
      workdir: receives `checkpoints/`, `metrics.jsonl`, `tensorboard/` and more.
      stream: the training batches.
      online: (weights of the first encoder, names) -> value of each; "knn_accuracy" every
        `logging.knn_every_steps` steps, "linear_accuracy" every `logging.linear_every_steps`.
      draw: (step, weights of the first encoder) -> PNG files that it wrote; called at the start,
        and with each checkpoint once it is being saved.
      initialize: changes the state before the first step of a new run.
      accept_changed_data: go on with other images than the newest checkpoint was trained on.
      verify: compare the checkpoint to go on from with the digests in its manifest.

    Returns:
      step: steps taken; loss: of the last one that counted, None if there was none.

    Raises:
      UserError: the configuration does not fit the data, the devices or the run in `workdir`;
        nothing has been written then.
      StoppedRunError: steps in a row were not finite, or an image could not be read.
      PreemptedError: SIGTERM or SIGINT came; the state has been saved.
    """
    if jax.process_index() == 0:  # the only one that needs it
        check_installed(config.logging.wandb)
    end_step = config.epochs * stream.steps_per_epoch
    setup = set_up(
        config,
        objective,
        steps_per_epoch=stream.steps_per_epoch,
        donate=not config.debug,  # a NaN is searched for in the state before the step
    )
    state, start_step = _start(
        config,
        workdir,
        objective,
        setup,
        initialize,
        data=stream.identity,
        accept_changed_data=accept_changed_data,
        verify=verify,
    )
    if start_step >= end_step:
        log.info("nothing to do: %d of %d steps are taken", start_step, end_step)
        return {"step": start_step, "loss": None}

    encoder = next(iter(objective.encoders.values()))
    pictures: Sequence[pathlib.Path] = ()
    if draw is not None and start_step == 0:
        pictures = draw(0, at_path(state, encoder))  # to look at while the step is compiled
    step_for = _compile(config, workdir, setup, state, stream, start_step)
    diagnose = make_diagnostics(objective, setup.mesh)
    run_log = RunLog(config, workdir, start_step=start_step, end_step=end_step)
    run_log.show(0, pictures)
    manager = checkpoint.make_manager(workdir, config, newest=start_step, spikes=run_log.spikes)
    counts, save_timer = collections.Counter[str](), Timer(config.checkpoint.every_minutes)

    def save(step: int, *, drawn: bool = True) -> None:
        run_log.settle()  # the rows up to here are written before the checkpoint counts
        checkpoint.save(manager, state, config, objective, stream.identity)
        save_timer.reset()
        if draw is not None and drawn:
            run_log.show(step, draw(step, at_path(state, encoder)))

    alone = jax.process_count() == 1

    def save_if_new() -> int:
        """When the run ends early; the others of several processes wait elsewhere then."""
        taken = int(state.step)
        if alone and checkpoint.latest_step(workdir) != taken > start_step:
            save(taken, drawn=False)
        return taken

    periods = {
        "knn_accuracy": config.logging.knn_every_steps,
        "linear_accuracy": config.logging.linear_every_steps,
    }
    step = start_step
    trace_from, trace_to = config.profile.steps or (0, 0)
    trace_to = min(trace_to, end_step) if trace_from > start_step else 0
    with (
        notice_signals() as interrupted,
        jax.debug_nans(config.debug),
        contextlib.ExitStack() as closing,  # each, whatever goes wrong with the others
    ):
        closing.push(lambda error, *_: run_log.close(failed=error is not None))
        closing.callback(manager.close)
        closing.callback(manager.wait_until_finished)
        closing.callback(step_for.cancel)

        def stop_waiting() -> bool:
            return alone and interrupted(step)  # several processes stop after the same step

        try:
            batches = _batches(config, stream, start_step, end_step, setup.mesh)
            drawn = in_time(batches, config.stall_minutes, stop_waiting)
            closing.callback(drawn.close)  # its thread ends now, not with the traceback of an error
            watched = run_log.waits.watched(drawn)
            arrays = _to_devices(watched, stream, setup.mesh, config.batch_size)
            for step, (counted, batch) in enumerate(arrays, start=start_step + 1):
                if step == trace_from:
                    first = jax.process_index() == 0
                    jax.profiler.start_trace(workdir / "profile", create_perfetto_trace=first)
                take_step = step_for(batch, stop_waiting)
                state, metrics = take_step(state, batch)
                if step == trace_to:
                    jax.block_until_ready(metrics)
                    jax.profiler.stop_trace()
                    log.info("traced steps %d to %d: %s/profile", trace_from, trace_to, workdir)
                written = due(step, config.logging.every_steps) or step == end_step
                if due(step, config.logging.diagnostics_every_steps):
                    written = True
                    images = first_view(objective.needs, batch)
                    metrics |= diagnose(at_path(state, encoder), images)
                if written:  # in each step it would be one more pass over all parameters
                    metrics |= {"parameter_norm": _norm(state.params)}
                run_log.add(step, metrics, written=written)
                counts.update(counted)
                probes = [name for name, period in periods.items() if due(step, period)]
                if probes and online is not None:
                    run_log.settle()  # which this waits for anyway; and rows stay in order
                    accuracies = online(at_path(state, encoder), probes)
                    shown = (f"{_PROBES[name]} accuracy {x:.3f}" for name, x in accuracies.items())
                    run_log.say(f"step {step}: {', '.join(shown)}")
                    run_log.write(step, accuracies)
                save_due = due(step, config.checkpoint.every_steps) or save_timer.due(step)
                if save_due and step < end_step:
                    save(step)
                if interrupted(step) and step < end_step:
                    save(step, drawn=False)  # there may be little time left
                    raise _preempted(step)
            save(end_step)
        except Interrupted:
            raise _preempted(save_if_new()) from None
        except (BadDataError, StalledInputError):
            save_if_new()
            raise
        except DivergedError as error:
            manager.wait_until_finished()  # the last save may still be on its way
            raise StoppedRunError(_advice(error, workdir)) from error
        except FloatingPointError as error:  # from debug_nans
            raise StoppedRunError(f"step {step}: {describe_nan(error)}") from error
        finally:
            for name, count in counts.items():
                if count:
                    log.warning("%d examples: %s", count, stream.counted[name])
    wrong = run_log.wrong_at_end()
    if wrong is not None:
        raise StoppedRunError(
            f"all {end_step} steps are taken and saved, but {wrong}; see docs/reading_a_run.md"
        )
    return {"step": end_step, "loss": run_log.loss if math.isfinite(run_log.loss) else None}


def _preempted(step: int) -> PreemptedError:
    if step == 0:
        return PreemptedError("stopped before the first step; the same command starts again")
    return PreemptedError(f"stopped after step {step}, which is saved; the same command resumes")


def _batches(
    config: Config, stream: Stream, start_step: int, end_step: int, mesh: Mesh
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of each batch."""
    rows = local_rows(mesh, config.batch_size)
    if not config.debug:
        return stream.batches(start_step, end_step, rows)
    one = next(stream.batches(0, 1, rows))  # the first alone: a model that works can overfit it
    return itertools.repeat(one, end_step - start_step)


def _start(
    config: Config,
    workdir: pathlib.Path,
    objective: Objective,
    setup: Setup,
    initialize: Callable[[TrainState], TrainState] | None,
    *,
    data: DataIdentity,
    accept_changed_data: bool,
    verify: bool,
) -> tuple[TrainState, int]:
    """The state to train from, and the steps that it has taken."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir}: can't write there: {error.strerror}") from error

    def check(folder: pathlib.Path) -> None:
        changed = check_resumable(folder, config, data, accept_changed_data=accept_changed_data)
        for name, (saved, now) in changed.items():
            log.warning("config.%s was %s and is %s from here on", name, saved, now)

    found = resume(workdir, setup.like, objective, setup.mesh, check=check, verify=verify)
    if found is None:
        state = setup.create()
        return (state if initialize is None else initialize(state)), 0
    log.info("resumed from %s/checkpoints/%d", workdir.absolute(), found[1])
    return found


def _compile(
    config: Config,
    workdir: pathlib.Path,
    setup: Setup,
    state: TrainState,
    stream: Stream,
    start_step: int,
) -> CompiledSteps:
    """All shapes are known beforehand, so training never stops to compile a new one."""
    shapes = [shapes for shapes, _ in stream.variants(start_step)]
    if config.debug:
        log.info("%s", parameter_table(state.params, setup.mesh))
    if config.profile.hlo:
        write_programs(workdir / "hlo", setup.step, setup.like, shapes)
    # To debug, compiled at its first call: JAX can take it apart then to find where a NaN arises.
    return CompiledSteps(setup.step, setup.like, shapes, ahead=not config.debug)


def _to_devices(
    batches: Iterator[dict[str, np.ndarray]], stream: Stream, mesh: Mesh, batch_size: int
) -> Iterator[tuple[dict[str, int], dict[str, jax.Array]]]:
    """The arrays that the step needs, on the devices; before them the counts of the others.

    The rows of this process and those of the others become one array over all devices.
    """
    sharding = batch_sharding(mesh)
    names = list(stream.variants(0)[0][0])
    for batch in batches:
        arrays = {
            name: jax.make_array_from_process_local_data(
                sharding, batch[name], (batch_size, *batch[name].shape[1:])
            )
            for name in names
        }
        yield {name: int(batch[name].sum()) for name in stream.counted}, arrays


def _advice(error: DivergedError, workdir: pathlib.Path) -> str:
    good = [int(folder.name) for folder in step_folders(workdir) if int(folder.name) < error.before]
    newer = [folder.name for folder in step_folders(workdir) if int(folder.name) >= error.before]
    where = "there is no checkpoint yet"
    if good:
        where = f"the last good checkpoint is {workdir}/checkpoints/{max(good)}"
        if newer:
            where += f"; move the newer ones away to go on from it ({', '.join(newer)})"
    return (
        f"{error}; {where}. Try a lower optimizer.lr, a longer optimizer.warmup_epochs, "
        "optimizer.clip_norm = 1.0, or compute.dtype = float32"
    )
