"""Opening a checkpoint's encoder, wherever it comes from."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jepa_jax.batch.pixels import normalize
from jepa_jax.config import Config, resolve, to_dict
from jepa_jax.config.files import override
from jepa_jax.data.facts import image_facts
from jepa_jax.encoder import Encoder, find_encoder, is_huggingface, load_encoder
from jepa_jax.errors import UserError
from jepa_jax.interop.hub import local_path
from jepa_jax.objectives.objective import Objective
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint


class Opened(NamedTuple):
    """An encoder of a checkpoint, and what it was trained as.

    Attributes:
      folder: of the checkpoint; workdir: of the run that it is part of, None of converted ones.
      step: that it was saved after, None of converted ones.
      trained: the configuration of the run; config: the same, with the images that are looked at.
      encode: the encoder as a function, in float32.
    """

    folder: pathlib.Path
    workdir: pathlib.Path | None
    step: int | None
    trained: Config
    config: Config
    objective: Objective
    encode: Encoder
    weights: Any

    @property
    def network(self) -> str:
        """Which encoder it is."""
        return self.encode.network

    @property
    def tokens(self) -> Callable[[Any, Any], Any]:
        """(weights, pixels [B, H, W, C]) -> tokens [B, N, D]."""
        data = self.config.data
        return lambda weights, pixels: self.encode(weights, normalize(pixels, data.mean, data.std))


def open_checkpoint(
    path: str | os.PathLike,
    network: str | None = None,
    overrides: Sequence[str] = (),
    *,
    verify: bool = True,
) -> Opened:
    """Reads one encoder of a checkpoint.

    Args:
      path: workdir, folder of one checkpoint, or a Hugging Face folder or hub id.
      network: which encoder; None: see `checkpoint.choose_encoder`.
      overrides: `--config.data.a=value`: other images than the checkpoint's.
      verify: compare the files that are read with the digests that were taken when they were saved.

    Raises:
      UserError: the checkpoint can't be read, or another field is overridden.
    """
    for argument in overrides:
        if not argument.startswith("--config.data."):
            raise UserError(f"{argument}: a checkpoint's features depend on --config.data.… alone")
    path = local_path(path)
    workdir = step = None
    if is_huggingface(path):
        folder = path
        encode, weights = load_encoder(folder, network=network)
        trained = encode.config
    else:
        folder = find_encoder(path, network, verify=verify)
        encode, weights = load_encoder(folder, network=network, verify=False)  # they were, just now
        trained = checkpoint.read_config(folder)  # which may compute in bfloat16
        if folder.parent.name == "checkpoints" and folder.name.isdecimal():
            workdir, step = folder.parent.parent, int(folder.name)
    config = trained
    if overrides:
        config = resolve(override(to_dict(trained), list(overrides)), image_facts)
    return Opened(folder, workdir, step, trained, config, make_objective(trained), encode, weights)
