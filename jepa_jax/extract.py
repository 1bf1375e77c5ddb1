"""Features of images: python -m jepa_jax.extract --checkpoint DIR --images PATH --out F.npz

PATH is a folder of images (JPEG, PNG, GIF, BMP; all in it, or one sub-folder a class), or a .npy
array: uint8 [n, h, w, 3] is raw and prepared like the probes' images, float32 [n, H, W, 3] is taken
as already normalised. The file holds, for n images of N patches and width D:

    patches  float32 [n, N, D]   after the encoder's last LayerNorm (without --pooled-only)
    pooled   float32 [n, D]      their mean over the patches
    files    the images' paths;  labels: numbers of their sub-folders, if there are any
    network  the encoder that was used

With --out DIR, without --images, the features of the checkpoint's own data (or of others:
--config.data.path=PHOTOS) go to a folder in DIR that `jepa_jax.probe --features DIR` reuses; a run
that was stopped is gone on with. `features-*.npy` hold [n, L * D] of L blocks of --layers, or with
--patches [n, N, L * D], of each token its blocks one after another; see `feature_files`.

All devices of this machine share the work.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from jepa_jax.batch.pixels import normalize
from jepa_jax.command_line import (
    add_checkpoint_arguments,
    add_verify_argument,
    check_size,
    make_parser,
    new_output,
    parse_size,
    run_command,
)
from jepa_jax.config import MeshConfig
from jepa_jax.encoder import Encoder, load_encoder
from jepa_jax.errors import UserError
from jepa_jax.extract_split import extract_split
from jepa_jax.opened import open_checkpoint
from jepa_jax.training.compilation import use_compilation_cache
from jepa_jax.training.sharding import batch_sharding, make_mesh, replicated, traced_on


@dataclasses.dataclass(frozen=True)
class ImageBatches:
    """Images that are ready to be encoded.

    Attributes:
      count: how many.
      size: their height and width.
      batches: of float32 [B, H, W, 3]; the last may be shorter.
      files, labels: of a folder; None where there are none.
    """

    count: int
    size: tuple[int, int]
    batches: Iterator[np.ndarray]
    files: list[str] | None
    labels: np.ndarray | None


def extract(
    encode: Encoder,
    params: Any,
    images: ImageBatches,
    path: pathlib.Path,
    *,
    batch_size: int,
    pooled_only: bool,
) -> dict[str, tuple[int, ...]]:
    """Writes the features of all images, batch by batch: few of them are ever in memory.

    Args:
      path: the .npz file to write.
      batch_size: of `images.batches`, a multiple of the number of devices.
      pooled_only: leave out the patches, which take N times the space.

    Returns:
      Shapes of what was written.
    """
    mesh = make_mesh(MeshConfig())
    params = jax.device_put(params, replicated(mesh))
    encode_divided = jax.jit(traced_on(mesh, encode), out_shardings=batch_sharding(mesh))
    model = encode.config.model
    num_patches = (images.size[0] // model.patch_size) * (images.size[1] // model.patch_size)
    shape, pooled = (images.count, num_patches, model.embed_dim), []
    with zipfile.ZipFile(path, "w") as archive, tqdm.tqdm(total=images.count, unit="img") as bar:
        with contextlib.ExitStack() as stack:
            patches = None
            if not pooled_only:
                patches = stack.enter_context(archive.open("patches.npy", "w", force_zip64=True))
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(patches, header)
            for batch in images.batches:
                n = len(batch)
                padded = np.pad(batch, [(0, batch_size - n), (0, 0), (0, 0), (0, 0)])
                device_batch = jax.device_put(padded, batch_sharding(mesh))
                tokens = np.asarray(encode_divided(params, device_batch))[:n]  # [n, N, D]
                pooled.append(tokens.mean(axis=1))
                if patches is not None:
                    patches.write(np.ascontiguousarray(tokens, "<f4").data)
                bar.update(n)
        arrays = {"pooled": np.concatenate(pooled), "network": np.array(encode.network)}
        if images.files is not None:
            arrays["files"] = np.array(images.files)
        if images.labels is not None:
            arrays["labels"] = images.labels
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    shapes: dict[str, tuple[int, ...]] = {} if pooled_only else {"patches": shape}
    return shapes | {"pooled": arrays["pooled"].shape}


def open_images(
    path: pathlib.Path, encode: Encoder, *, batch_size: int, image_size: tuple[int, int] | None
) -> ImageBatches:
    """Opens a folder or an array.

    Args:
      image_size: that raw images are resized to; None: that which the model was trained at.

    Raises:
      UserError: it is neither, or its images don't suit the model.
    """
    patch_size = encode.config.model.patch_size
    if image_size:
        check_size(image_size, patch_size)
    if path.is_dir():
        return _open_folder(path, encode, batch_size, image_size)
    if path.suffix != ".npy" or not path.is_file():
        raise UserError(f"--images {path}: must be a folder of images, or a .npy file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"--images {path}: can't be read: {error}") from error
    channels = encode.config.data.channels
    given = f"--images {path}: {array.dtype} {list(array.shape)}"
    if array.ndim != 4 or array.shape[-1] != channels or 0 in array.shape:
        raise UserError(f"{given}: must be [n, H, W, {channels}]")
    if array.dtype == np.uint8:
        size = image_size or encode.config.data.image_size

        def prepare(batch: np.ndarray) -> np.ndarray:
            return np.asarray(encode.preprocess(batch, size))

    elif array.dtype == np.float32:
        size = array.shape[1:3]
        if image_size:
            raise UserError(f"{given}: is taken as already prepared; leave --image-size out")
        if size[0] % patch_size or size[1] % patch_size:
            raise UserError(f"{given}: H and W must be multiples of the patch size, {patch_size}")

        def prepare(batch: np.ndarray) -> np.ndarray:
            return np.asarray(batch)

    else:
        raise UserError(f"{given}: must be uint8 (raw) or float32 (already normalised)")
    starts = range(0, len(array), batch_size)
    batches = (prepare(array[start : start + batch_size]) for start in starts)
    return ImageBatches(len(array), size, batches, files=None, labels=None)


def _open_folder(
    path: pathlib.Path, encode: Encoder, batch_size: int, image_size: tuple[int, int] | None
) -> ImageBatches:
    try:
        from jepa_jax.data.pipeline import eval_batches
        from jepa_jax.data.sources import open_source
    except ImportError as error:
        raise UserError(
            f"--images {path}: TensorFlow reads image files, and is not installed; install "
            "requirements.txt, or give the images as a .npy array"
        ) from error
    data = encode.config.data
    data = dataclasses.replace(
        data,
        source="folder",
        path=str(path),
        train_split=None,
        image_size=image_size or data.image_size,
    )
    source = open_source(data, "train")
    index = np.arange(source.num_examples)
    files = [source.describe(int(i)) for i in index]
    pixels = eval_batches(data, source, index=index, batch_size=batch_size)
    batches = (normalize(images, data.mean, data.std) for images in pixels)
    return ImageBatches(source.num_examples, data.image_size, batches, files, source.labels)


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(layer) for layer in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas") from None


def main() -> None:
    parser = make_parser("jepa_jax.extract", __doc__)
    add_checkpoint_arguments(parser)
    add_verify_argument(parser)
    parser.add_argument("--images", type=pathlib.Path, metavar="PATH")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="F.npz|DIR")
    parser.add_argument("--batch-size", type=int, default=64, metavar="B", help="%(default)s")
    parser.add_argument(
        "--image-size",
        type=parse_size,
        metavar="H,W",
        help="resize raw images to this (default: as the model was trained); positions are "
        "interpolated",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the matrix products (default: %(default)s)",
    )
    parser.add_argument("--pooled-only", action="store_true", help="leave out the patches")
    of_split = parser.add_argument_group("with --out DIR")
    of_split.add_argument("--split", choices=("train", "test"), help="(default: train)")
    of_split.add_argument(
        "--layers", type=_layers, metavar="-4,-3,-2,-1", help="blocks from the end (default: -1)"
    )
    of_split.add_argument("--patches", action="store_true", help="all tokens, not their mean")
    of_split.add_argument("--store", choices=("float16", "float32"), help="(default: float32)")

    def whole_split(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        if arguments.image_size or arguments.pooled_only or arguments.dtype != "float32":
            raise UserError("--image-size, --pooled-only, --dtype: go with --images")
        opened = open_checkpoint(
            arguments.checkpoint, arguments.network, overrides, verify=arguments.verify
        )
        written = extract_split(
            opened,
            arguments.out,
            split=arguments.split or "train",
            layers=arguments.layers or (-1,),
            pooled=not arguments.patches,
            dtype=arguments.store or "float32",
            batch_size=arguments.batch_size,
        )
        return {**written, "network": opened.network, "checkpoint": str(opened.folder)}

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        if arguments.batch_size < 1:
            raise UserError(f"--batch-size {arguments.batch_size}: must be at least 1")
        use_compilation_cache()
        if arguments.images is None and arguments.out.suffix != ".npz":
            return whole_split(arguments, overrides)
        if overrides:
            parser.error(f"unknown argument {overrides[0]}")
        if arguments.images is None:
            raise UserError(f"--images PATH: is needed with --out {arguments.out}")
        if arguments.out.suffix != ".npz":
            raise UserError(f"--out {arguments.out}: must end in .npz")
        if arguments.split or arguments.layers or arguments.patches or arguments.store:
            raise UserError("--split, --layers, --patches, --store: go without --images")
        encode, params = load_encoder(
            arguments.checkpoint,
            network=arguments.network,
            dtype=arguments.dtype,
            verify=arguments.verify,
        )
        devices = jax.device_count()
        batch_size = -(-arguments.batch_size // devices) * devices  # the same number on each
        images = open_images(
            arguments.images, encode, batch_size=batch_size, image_size=arguments.image_size
        )
        with new_output(arguments.out) as path:
            shapes = extract(
                encode,
                params,
                images,
                path,
                batch_size=batch_size,
                pooled_only=arguments.pooled_only,
            )
        return {
            "images": images.count,
            **shapes,
            "network": encode.network,
            "checkpoint": str(arguments.checkpoint),
            "out": str(arguments.out),
        }

    run_command(command, parser)


if __name__ == "__main__":
    main()
