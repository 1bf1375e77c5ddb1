"""An encoder for other programs: python -m jepa_jax.export --checkpoint DIR --out DIR2

They need not have this project. DIR2 receives the function as StableHLO, which JAX and other
runtimes compile, its parameters as plain arrays, and a description:

    encoder.stablehlo   of jax.export: (parameters by name, images) -> patches [B, N, D]
    params.npz          the parameters, float32
    encoder.json        shapes, network, preprocessing

With JAX and NumPy alone, on any of CPU, GPU and TPU:

    import jax, numpy as np
    encode = jax.export.deserialize(open("DIR2/encoder.stablehlo", "rb").read()).call
    params = dict(np.load("DIR2/params.npz"))
    patches = encode(params, images)  # float32 [B, H, W, 3], normalised as encoder.json says
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import flax
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jepa_jax.command_line import (
    add_checkpoint_arguments,
    check_size,
    make_parser,
    new_output,
    parse_size,
    run_command,
)
from jepa_jax.encoder import Encoder, load_encoder
from jepa_jax.errors import UserError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_encoder(
    encode: Encoder, params: Any, *, batch_size: int | None, image_size: tuple[int, int]
) -> jax.export.Exported:
    """The encoder as StableHLO.

    Args:
      params: its parameters, of which only the shapes matter: they stay an argument, a flat
        dictionary "transformer/norm/bias" -> array.
      batch_size: images per call; None: any number, as a symbol of the exported shape.
      image_size: height and width, multiples of the patch size.
    """
    # A fused attention of one platform would be none on the others.
    compute = dataclasses.replace(encode.config.compute, attention="xla")
    config = dataclasses.replace(encode.config, compute=compute)
    encode = dataclasses.replace(encode, config=config)

    def call(flat: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        return encode(flax.traverse_util.unflatten_dict(flat, sep="/"), images)

    flat = flax.traverse_util.flatten_dict(params, sep="/")
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}
    B = jax.export.symbolic_shape("B")[0] if batch_size is None else batch_size
    images = jax.ShapeDtypeStruct((B, *image_size, encode.config.data.channels), jnp.float32)
    return jax.export.export(jax.jit(call), platforms=PLATFORMS)(shapes, images)


def write(
    encode: Encoder,
    params: Any,
    folder: pathlib.Path,
    *,
    batch_size: int | None,
    image_size: tuple[int, int],
) -> None:
    """Writes the three files; see `export_encoder`."""
    exported = export_encoder(encode, params, batch_size=batch_size, image_size=image_size)
    folder.mkdir()
    (folder / "encoder.stablehlo").write_bytes(exported.serialize())
    flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    np.savez(folder / "params.npz", **flat)
    data, model = encode.config.data, encode.config.model
    description = {
        "network": encode.network,
        "images": ["B" if batch_size is None else batch_size, *image_size, 3],
        "patches": [
            "B" if batch_size is None else batch_size,
            (image_size[0] // model.patch_size) * (image_size[1] // model.patch_size),
            model.embed_dim,
        ],
        "platforms": PLATFORMS,
        "preprocessing": {
            "crop": f"the largest centred one of this shape, times {data.eval_crop} a side",
            "resize": "bilinear, antialiased",
            "scale": "0..255 to 0..1",
            "mean": data.mean,
            "std": data.std,
        },
        "jax": jax.__version__,
    }
    (folder / "encoder.json").write_text(json.dumps(description, indent=2) + "\n")


def main() -> None:
    parser = make_parser("jepa_jax.export", __doc__)
    add_checkpoint_arguments(parser)
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR2")
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="images per call (default: any number)"
    )
    parser.add_argument(
        "--image-size",
        type=parse_size,
        metavar="H,W",
        help="(default: as the model was trained); at another, positions are interpolated",
    )

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        if overrides:
            parser.error(f"unknown argument {overrides[0]}")
        if arguments.batch_size is not None and arguments.batch_size < 1:
            raise UserError(f"--batch-size {arguments.batch_size}: must be at least 1")
        encode, params = load_encoder(arguments.checkpoint, network=arguments.network)
        size = arguments.image_size or encode.config.data.image_size
        check_size(size, encode.config.model.patch_size)
        with new_output(arguments.out) as folder:
            write(encode, params, folder, batch_size=arguments.batch_size, image_size=size)
        return {
            "network": encode.network,
            "images": [arguments.batch_size or "B", *size, 3],
            "checkpoint": str(arguments.checkpoint),
            "out": str(arguments.out),
        }

    run_command(command, parser)


if __name__ == "__main__":
    main()
