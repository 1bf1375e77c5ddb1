"""Features of a whole split of a data set, in files that the probes reuse."""

import pathlib
from typing import Any, Literal

from jepa_jax.data.sources import open_source
from jepa_jax.errors import UserError
from jepa_jax.evaluation.extraction import encode_images, on_all_devices
from jepa_jax.evaluation.feature_files import (
    Taken,
    chosen_blocks,
    files_of,
    save_array,
    write_bytes,
)
from jepa_jax.opened import Opened


def extract_split(
    opened: Opened,
    root: pathlib.Path,
    *,
    split: Literal["train", "test"] = "train",
    layers: tuple[int, ...] = (-1,),
    pooled: bool = True,
    dtype: Literal["float16", "float32"] = "float32",
    batch_size: int = 64,
) -> dict[str, Any]:
    """Writes the features of all images of a split; goes on where an earlier call was stopped.

    Beside them lie `labels.npy` and `files.txt`, a line an image, where there are any.

    Args:
      root: each encoder, split and choice of features has its own folder in it.
      layers, pooled, dtype: see `Taken`; blocks are counted from the end here.

    Returns:
      out: the folder; images; features: the shape of one image's.

    Raises:
      UserError: the folder can't be written, or the encoder has no such blocks.
      StoppedRunError: more images are bad than `data.bad_share`.
    """
    data, trained = opened.config.data, opened.trained
    taken = Taken(chosen_blocks(layers, trained.model.depth, field="--layers"), pooled, dtype)
    source = open_source(data, split)
    files = files_of(root, trained, opened.weights, data, source, split, taken)
    encoders = on_all_devices(
        opened.objective,
        {opened.network: opened.weights},
        batch_size=batch_size,
        layers=taken.layers,
        pooled=pooled,
    )
    rows, _ = encode_images(data, source, split, encoders, sink=lambda _: files)
    try:
        if source.labels is not None:
            save_array(files.folder / "labels.npy", source.labels)
        if source.name is not None:
            names = (source.describe(i).replace("\n", " ") for i in range(source.num_examples))
            text = "".join(f"{name}\n" for name in names)
            write_bytes(files.folder / "files.txt", text.encode(errors="surrogateescape"))
    except OSError as error:
        raise UserError(f"--out {root}: can't be written: {error.strerror}") from error
    shape = rows[opened.network].shape
    return {"out": str(files.folder), "images": source.num_examples, "features": shape[1:]}
