"""Opening a checkpoint's encoder, wherever it comes from."""

import os
import pathlib
from typing import Any, NamedTuple

from jepa_jax.config import Config
from jepa_jax.encoder import find_encoder, is_huggingface, load_encoder
from jepa_jax.interop.hub import local_path
from jepa_jax.objectives.objective import Objective
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint


class Opened(NamedTuple):
    """An encoder of a checkpoint, and what it was trained as.

    Attributes:
      folder: of the checkpoint; workdir: of the run that it is part of, None of converted ones.
      step: that it was saved after, None of converted ones.
    """

    folder: pathlib.Path
    workdir: pathlib.Path | None
    step: int | None
    config: Config
    objective: Objective
    network: str
    weights: Any


def open_checkpoint(
    path: str | os.PathLike, network: str | None = None, *, verify: bool = True
) -> Opened:
    """Reads one encoder of a checkpoint.

    Args:
      path: workdir, folder of one checkpoint, or a Hugging Face folder or hub id.
      network: which encoder; None: see `checkpoint.choose_encoder`.
      verify: compare the files that are read with the digests that were taken when they were saved.

    Raises:
      UserError: the checkpoint can't be read.
    """
    path = local_path(path)
    if is_huggingface(path):
        encode, weights = load_encoder(path, network=network)
        objective = make_objective(encode.config)
        return Opened(path, None, None, encode.config, objective, encode.network, weights)
    folder = find_encoder(path, network, verify=verify)
    trained = checkpoint.read_config(folder)
    objective = make_objective(trained)
    network = checkpoint.choose_encoder(folder, network, objective)
    weights = checkpoint.restore_encoder(folder, network, objective)
    of_run = folder.parent.name == "checkpoints" and folder.name.isdecimal()
    workdir, step = (folder.parent.parent, int(folder.name)) if of_run else (None, None)
    return Opened(folder, workdir, step, trained, objective, network, weights)
