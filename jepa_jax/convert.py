"""Checkpoints of other libraries to ours and back: python -m jepa_jax.convert VERB SRC DST

    official-to-orbax  FILE.pth.tar -> a workdir, whose training can be continued
    orbax-to-official  a workdir or checkpoint -> FILE.pth.tar, which the reference loads
    hf-to-orbax        a folder with model.safetensors (Hugging Face's IJepaModel, or timm's names),
                       or such a file -> a workdir with one encoder; or such a folder of a
                       ViTMAEForPreTraining -> a workdir with the encoder and decoder of `mae`; or
                       the hub id of either, facebook/ijepa_vith14_1k
    orbax-to-hf        a workdir or checkpoint -> a folder for IJepaModel.from_pretrained

Numbers are copied, bit for bit. The architecture is read from the tensors' shapes; what they do not
tell (data, schedules, masks) comes from --config. DST must not exist, and appears when it is whole.
"""

import argparse
import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tqdm

from jepa_jax.command_line import make_parser, new_output, run_command
from jepa_jax.config.files import load_config
from jepa_jax.errors import UserError
from jepa_jax.interop import converted
from jepa_jax.interop.hub import local_path
from jepa_jax.interop.huggingface import (
    HuggingFace,
    huggingface_bytes,
    huggingface_items,
    open_huggingface,
    write_huggingface,
)
from jepa_jax.interop.names import NETWORKS
from jepa_jax.interop.official import Official, official_items, open_official
from jepa_jax.interop.official_writer import official_bytes, write_official
from jepa_jax.interop.vit_mae import VitMae, is_vit_mae, open_vit_mae, vit_mae_items
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint

VERBS = ("official-to-orbax", "orbax-to-official", "hf-to-orbax", "orbax-to-hf")
DEFAULT_CONFIG = "configs/in1k_vith14_ep300.py"
VIT_MAE_CONFIG = "configs/in1k_mae_vitb16_ep1600.py"
log = logging.getLogger("jepa_jax.convert")  # which `python -m` calls __main__


def official_to_orbax(
    source: pathlib.Path, destination: pathlib.Path, **options: Any
) -> dict[str, Any]:
    """Converts a published checkpoint; see `open_official` for options and errors."""
    official = open_official(source, **options)
    items = functools.partial(official_items, official)
    return _to_orbax(destination, official, items) | {"networks": list(official.networks)}


def hf_to_orbax(source: pathlib.Path, destination: pathlib.Path, **options: Any) -> dict[str, Any]:
    """Converts one encoder, or a ViTMAE.

    See `open_huggingface` for options and errors, and `open_vit_mae`.
    """
    if is_vit_mae(source):
        del options["base_is_given"]  # the folder itself says what else would depend on it
        model = open_vit_mae(source, **options)
        parts = functools.partial(vit_mae_items, model)
        return _to_orbax(destination, model, parts) | {"networks": list(model.networks)}
    found = open_huggingface(source, **options)
    items = functools.partial(huggingface_items, found)
    return _to_orbax(destination, found, items) | {"networks": [found.network]}


def orbax_to_official(
    source: pathlib.Path, destination: pathlib.Path, *, epoch: int | None
) -> dict[str, Any]:
    """Converts all networks, and the optimizer; see `write_official` for errors."""
    folder = checkpoint.find(source, checkpoint.all_items)
    num_bytes = official_bytes(folder)
    with new_output(destination) as path, _progress_bar(num_bytes) as progress:
        networks = write_official(folder, path, epoch=epoch, progress=progress)
    return {"networks": networks}


def orbax_to_hf(
    source: pathlib.Path, destination: pathlib.Path, *, network: str | None
) -> dict[str, Any]:
    """Converts one encoder; see `write_huggingface` for errors."""
    folder = checkpoint.find(source, checkpoint.network_items)
    config = checkpoint.read_config(folder)
    network = checkpoint.choose_encoder(folder, network, make_objective(config))
    num_bytes = huggingface_bytes(config)
    with new_output(destination) as path, _progress_bar(num_bytes) as progress:
        write_huggingface(folder, path, network=network, progress=progress)
    return {"networks": [network]}


def _to_orbax(
    destination: pathlib.Path,
    opened: Official | HuggingFace | VitMae,
    items: Callable[[Callable[[int], None]], Iterator[tuple[str, Any]]],
) -> dict[str, Any]:
    """Writes a workdir with one checkpoint; returns what the JSON line says of it."""
    config, step = opened.config, getattr(opened, "step", None)
    for network, lines in opened.source.get("partial", {}).items():
        for line in lines:
            log.warning("%s: %s; left out, or at its random initialisation", network, line)
    with new_output(destination) as workdir, _progress_bar(opened.num_bytes) as progress:
        folder = workdir / "checkpoints" / str(step or 0)
        converted.write(folder, items(progress), config=config, source=opened.source)
    model = config.model
    return {
        "step": step,
        "image_size": config.data.image_size,
        "patch_size": model.patch_size,
        "embed_dim": model.embed_dim,
        "depth": model.depth,
        "num_heads": model.num_heads,
    }


@contextlib.contextmanager
def _progress_bar(num_bytes: int) -> Iterator[Callable[[int], None]]:
    with tqdm.tqdm(total=num_bytes, unit="B", unit_scale=True, desc="converting") as bar:
        yield lambda num_bytes: bar.update(num_bytes)


def main() -> None:
    parser = make_parser("jepa_jax.convert", __doc__)
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of the four above")
    parser.add_argument("source", type=pathlib.Path, metavar="SRC")
    parser.add_argument("destination", type=pathlib.Path, metavar="DST")
    parser.add_argument(
        "--config",
        help="to Orbax: the config file for all but the architecture "
        f"(default: {DEFAULT_CONFIG}; of a ViTMAE: {VIT_MAE_CONFIG})",
    )
    parser.add_argument(
        "--num-heads",
        type=int,
        metavar="N",
        help="to Orbax: attention heads, where the width is that of no published model",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="to Orbax: convert what fits, though tensors are missing, unexpected or misshapen",
    )
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        help="orbax-to-hf: the encoder to convert (default: target_encoder, which the paper "
        "evaluates, or else the only one there). hf-to-orbax, or a bare state dict: the encoder "
        "that it is (default: what the folder says, or else encoder: the public conversions hold "
        "the context encoder)",
    )
    parser.add_argument(
        "--epoch",
        type=int,
        metavar="N",
        help="orbax-to-official: epochs completed, from which the reference goes on (default: "
        "as the checkpoint came, or 0)",
    )

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        jax.config.update("jax_platforms", "cpu")
        source, destination = arguments.source, arguments.destination
        if arguments.verb == "hf-to-orbax":
            source = local_path(source)
        if arguments.num_heads is not None and arguments.num_heads < 1:
            raise UserError(f"--num-heads {arguments.num_heads}: must be at least 1")
        if arguments.verb.endswith("-to-orbax"):
            usual = VIT_MAE_CONFIG if is_vit_mae(source) else DEFAULT_CONFIG
            config = arguments.config or usual
            options = {
                "base": load_config(config, overrides),
                "base_is_given": arguments.config is not None,
                "num_heads": arguments.num_heads,
                "allow_partial": arguments.allow_partial,
                "network": arguments.network,
            }
            convert = official_to_orbax if arguments.verb == "official-to-orbax" else hf_to_orbax
            result = convert(source, destination, **options)
        elif arguments.verb == "orbax-to-official":
            result = orbax_to_official(source, destination, epoch=arguments.epoch)
        else:
            result = orbax_to_hf(source, destination, network=arguments.network)
        return {
            "verb": arguments.verb,
            "source": str(arguments.source),
            "destination": str(destination),
        } | result

    run_command(command, parser)


if __name__ == "__main__":
    main()
