"""Pretrains a model: python -m jepa_jax.train --config configs/fashion_mnist.py --workdir DIR

Run again with the same workdir, it resumes from the newest checkpoint there.

With --plan it trains nothing, and needs no data and no accelerator: it compiles the step for
--devices virtual CPU devices, or with the TPU's or GPU's own compiler for --topology, and prints
what a run would need, as a table and as JSON:

    python -m jepa_jax.train --config configs/in1k_vith14_ep300.py --plan --topology v5e:16x16
"""

from jepa_jax.command_line import (
    add_verify_argument,
    make_parser,
    run_command,
    sigterm_is_preemption,
)

if __name__ == "__main__":
    sigterm_is_preemption()  # before the slow imports

import argparse
import logging
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jepa_jax.batch.masks import MultiBlock, check_feasible
from jepa_jax.config import Config, DataConfig, resolve, to_dict
from jepa_jax.config.derived import ImageFacts
from jepa_jax.config.files import load_config, override
from jepa_jax.data.facts import image_facts
from jepa_jax.data.sources import open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.errors import PreemptedError, UserError
from jepa_jax.evaluation.online import online_probes
from jepa_jax.interop.hub import local_path
from jepa_jax.models.pallas_attention import obstacle
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.planning.chips import CHIPS
from jepa_jax.planning.devices import topology_devices, virtual_devices
from jepa_jax.planning.needs import plan, table
from jepa_jax.reporting.gallery import make_gallery
from jepa_jax.training import checkpoint
from jepa_jax.training.compilation import use_compilation_cache
from jepa_jax.training.disk_errors import disk_errors_in_one_line
from jepa_jax.training.lock import only_run_in
from jepa_jax.training.loop import train
from jepa_jax.training.outlook import outlook
from jepa_jax.training.peers import leave
from jepa_jax.training.processes import check_agreement, check_same_data, check_shared, join
from jepa_jax.training.sharding import AXES, mesh_shape
from jepa_jax.training.stalls import threads_at_work
from jepa_jax.warm_start import read_weights, starting_from

log = logging.getLogger("jepa_jax.train")  # which `python -m` calls __main__


def pretrain(
    config: Config, workdir: pathlib.Path, *, accept_changed_data: bool = False, verify: bool = True
) -> dict[str, Any]:
    """Trains as configured; see `training.loop.train` for what it returns and raises."""
    use_compilation_cache()
    source = open_source(config.data, "train")
    objective = make_objective(config)
    stream = make_stream(
        objective.needs, config.data, source, seed=config.seed, batch_size=config.batch_size
    )
    check_same_data(stream.identity)
    if isinstance(objective.needs.masks, MultiBlock):
        enough = check_feasible(objective.needs.masks)
        log.info("masks: %.1f%% of draws leave enough context; others are redrawn", 100 * enough)
    class_sizes: list[int] = []
    if source.classes is not None:
        class_sizes = np.unique(source.classes, return_counts=True)[1].tolist()
    known = outlook(
        config,
        objective,
        num_images=source.num_examples,
        class_sizes=class_sizes,
        left_out=source.left_out,
        steps_per_epoch=stream.steps_per_epoch,
        from_scratch=config.init.weights is None,
    )
    for fact in known.facts:
        log.info("%s", fact)
    for warning in known.warnings:
        log.warning("warning: %s", warning)
    attention = attention_of_encoder(config)
    log.info(
        "attention: %s in the encoder; blocks %s",
        attention,
        "in a loop" if config.compute.scan_layers else "unrolled",
    )
    on_tpu = jax.default_backend() == "tpu"
    if attention == "pallas" and not on_tpu:
        log.warning(
            "warning: config.compute.attention = 'pallas': is for TPUs; here it is interpreted, "
            "which is right and very slow; set it to 'auto'"
        )
    if config.compute.scan_layers and on_tpu:
        log.info(
            "--config.compute.scan_layers=False: faster by the TPU compiler's estimates, and "
            "longer to compile"
        )
    probed = config.logging.knn_every_steps or config.logging.linear_every_steps
    online = online_probes(config, objective, source) if probed else None
    initialize = None
    if config.init.weights is not None:
        if checkpoint.latest_step(workdir) is None:
            weights = read_weights(local_path(config.init.weights), config.model)
            initialize = starting_from(weights, config, objective)
        else:
            log.info("--init: the run in %s has begun, and goes on from its own weights", workdir)
    with disk_errors_in_one_line(workdir), only_run_in(workdir):
        return train(
            config,
            workdir,
            objective=objective,
            stream=stream,
            online=online,
            draw=make_gallery(config, objective, source, stream, workdir),
            initialize=initialize,
            accept_changed_data=accept_changed_data,
            verify=verify,
        )


def attention_of_encoder(config: Config) -> str:
    """Which implementation encodes whole images, for people to read."""
    attention = make_encoder(config).attention
    if attention != "pallas":
        return attention
    mesh = mesh_shape(config.mesh, jax.device_count())
    batch = config.batch_size // config.optimizer.accumulation_steps
    tokens = math.prod(config.grid) + config.model.class_token
    shape = (batch, tokens, config.model.embed_dim)
    reason = obstacle(dict(zip(AXES, mesh, strict=True)), shape, config.compute.dtype)
    return f"xla, since the TPU kernel is not for this ({reason})" if reason else attention


def read_configuration(
    path: str | None,
    workdir: pathlib.Path | None,
    overrides: list[str],
    measure: Callable[[DataConfig], ImageFacts] = image_facts,
) -> Config:
    """The configuration of a file, or the one that the run in a workdir was saved with.

    Args:
      measure: looks at the training images, where the configuration follows from them.

    Raises:
      UserError: there is neither, or it is not a valid one.
    """
    if path is not None:
        return resolve(load_config(path, overrides), measure)
    if workdir is None:
        raise UserError("--config FILE: is needed, or the --workdir of a run to resume")
    if checkpoint.latest_step(workdir) is None:
        raise UserError(
            f"--workdir {workdir}: holds no run to resume; start one with --config FILE"
        )
    saved = to_dict(checkpoint.read_config(checkpoint.find(workdir, lambda _: ("config",))))
    return resolve(override(saved, overrides), measure)


def print_plan(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plans as the arguments say, prints the table, and returns what the JSON line holds."""
    if (arguments.devices is None) == (arguments.topology is None):
        raise UserError("--plan: needs either --devices N or --topology NAME:SHAPE")
    if arguments.topology:
        if arguments.chip:
            raise UserError(f"--chip {arguments.chip}: --topology says which chip it is; leave out")
        devices, chip = topology_devices(arguments.topology)
    else:
        devices, chip = virtual_devices(arguments.devices), arguments.chip or "v5e"
    masks = make_objective(config).needs.masks
    if isinstance(masks, MultiBlock):
        check_feasible(masks)
    needs = plan(config, devices, chip, num_images=arguments.images, mfu=arguments.mfu)
    print(table(needs), file=sys.stderr)
    return needs


def main() -> None:
    parser = make_parser("jepa_jax.train", __doc__)
    parser.add_argument(
        "--config", help="a file in configs/ (default: what the run in --workdir was started with)"
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of the run")
    parser.add_argument(
        "--init",
        metavar="PATH",
        help="start from these weights, not at random: a workdir, what jepa_jax.convert wrote, a "
        "Hugging Face folder or hub id, or a file of the reference",
    )
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="resume although the training images are no longer those of the run: from here on, "
        "order and length of the run are of the new ones",
    )
    add_verify_argument(parser)
    parser.add_argument(
        "--distributed",
        metavar="WHERE",
        help="one of several processes: auto (TPU pod, Slurm, Kubernetes), or HOST:PORT,N,I",
    )

    planning = parser.add_argument_group("planning")
    planning.add_argument("--plan", action="store_true", help="print what the run would need")
    planning.add_argument("--devices", type=int, metavar="N", help="for N virtual CPU devices ...")
    planning.add_argument("--chip", help=f"... of {', '.join(CHIPS)} (default: v5e)")
    planning.add_argument(
        "--topology",
        metavar="NAME:SHAPE",
        help="for a TPU slice, as v5e:16x16, or GPUs, as H100:8 or H100:4x8; needs their compiler "
        "(libtpu; jax-cuda12-plugin), none of them",
    )
    planning.add_argument(
        "--images",
        type=int,
        default=1_281_167,
        metavar="N",
        help="training images (default: %(default)s, ImageNet-1k's)",
    )
    planning.add_argument(
        "--mfu", type=float, help="share of the peak to estimate the run's hours from (0.5)"
    )

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any] | None:
        if arguments.init is not None:
            overrides = [*overrides, f"--config.init.weights={arguments.init}"]
        if arguments.plan:  # without data
            assumed = ImageFacts(arguments.images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
            config = read_configuration(
                arguments.config, arguments.workdir, overrides, lambda _: assumed
            )
            return print_plan(config, arguments)
        config = read_configuration(arguments.config, arguments.workdir, overrides)
        for name in ("devices", "chip", "topology", "mfu"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name} goes with --plan")
        if arguments.workdir is None:
            parser.error("the following arguments are required: --workdir")
        if ":/" in str(arguments.workdir):  # for example gs://bucket
            raise UserError(
                f"--workdir {arguments.workdir}: must be a folder; mount a bucket first (gcsfuse)"
            )
        if arguments.distributed:
            join(arguments.distributed)
        if jax.process_index() > 0:  # process 0 speaks for all
            logging.getLogger("jepa_jax").setLevel(logging.WARNING)
        check_agreement(config)
        check_shared(arguments.workdir)
        try:
            result = pretrain(
                config,
                arguments.workdir,
                accept_changed_data=arguments.accept_changed_data,
                verify=arguments.verify,
            )
            result["workdir"] = str(arguments.workdir)
        except PreemptedError as error:  # after the same step in all processes
            if jax.process_count() == 1 and threads_at_work():
                leave(error)
            raise
        except Exception as error:
            if jax.process_count() > 1 or threads_at_work():
                leave(error)
            raise
        return result if jax.process_index() == 0 else None

    run_command(command, parser)


if __name__ == "__main__":
    main()
