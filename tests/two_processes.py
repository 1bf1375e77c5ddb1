"""Starts a real run of several processes, each with four devices."""

import os
import socket
import subprocess

from conftest import QUICK_COMPILER, REPOSITORY, as_module

CONFIG = str(REPOSITORY / "configs" / "fashion_mnist.py")
FIELDS = [
    "--config.epochs=2",
    "--config.batch_size=200",
    "--config.data.subset.per_class=200",
    "--config.model.patch_size=7",
    "--config.model.embed_dim=16",
    "--config.model.depth=1",
    "--config.compute.scan_layers=True",
    "--config.objective.predictor.embed_dim=8",
    "--config.objective.predictor.depth=1",
    "--config.objective.masks.context_tokens=4",
    "--config.objective.masks.num_targets=2",
    "--config.objective.masks.target_scale=(0.25,0.25)",
    "--config.objective.masks.target_aspect_ratio=(1.0,1.0)",
    "--config.optimizer.eps=1e-3",  # Adam's first steps divide gradients by their own size
    "--config.logging.every_steps=1",
    "--config.logging.diagnostics_every_steps=5",
    "--config.logging.knn_every_steps=10",
    "--config.logging.linear_every_steps=10",
    "--config.mesh.fsdp=2",
]
STEPS = 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, *more_of_each, folders=(REPOSITORY, REPOSITORY)):
    """Starts one process for each list of arguments, each in a folder; the first speaks for all."""
    port = free_port()
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4" + QUICK_COMPILER,
    }
    command = [*as_module(), "jepa_jax.train", "--config", CONFIG, *FIELDS]
    return [
        subprocess.Popen(
            [
                *command,
                f"--workdir={workdir}",
                f"--distributed=127.0.0.1:{port},{len(more_of_each)},{number}",
                *more,
            ],
            cwd=folders[number],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, more in enumerate(more_of_each)
    ]


def finish(processes):
    return [process.communicate(timeout=180) for process in processes]
