"""A pretrained encoder in your own code.

    encode, params = jepa_jax.load_encoder("runs/quickstart")
    images = encode.preprocess(photos)                      # uint8 [B, h, w, 3], of any size
    patches = encode(params, images)                        # [B, N, D]
    pooled = patches.mean(axis=1)                           # [B, D]
    last_four = encode(params, images, layers=(-4, -3, -2, -1))  # [4, B, N, D]

`encode` is a pure function of its arguments: jit it, differentiate it, vmap it.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jepa_jax.config import Config
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.ijepa import make_objective
from jepa_jax.training import checkpoint

Images = Float[Array, "*B H W 3"] | Float[np.ndarray, "*B H W 3"]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Images to patch features. Hashable, and without arrays: the parameters are an argument.

    Attributes:
      config: of the run that trained it, but for the type of the matrix products.
      network: which of the two encoders: "target_encoder", which the paper evaluates, or "encoder",
        the context encoder.
    """

    config: Config
    network: str

    def __call__(
        self, params: Any, images: Images, *, layers: tuple[int, ...] | None = None
    ) -> Float[Array, "*B N D"] | Float[Array, "L *B N D"]:
        """Features of every patch, in raster order, after the final LayerNorm.

        Args:
          params: the parameters that `load_encoder` gave, or any like them.
          images: one image [H, W, 3] or a batch [B, H, W, 3], normalised as `preprocess` does. H
            and W may be any multiples of the patch size; at another size than the model was trained
            at, its positions are interpolated bicubically.
          layers: blocks whose features are wanted, ascending; -1 is the last. Each goes through the
            final LayerNorm.

        Returns:
          float32 [B, N, D], or [N, D] of a single image; with `layers`, [L, B, N, D] or [L, N, D].

        Raises:
          ValueError: the images are raw, a size is no multiple of the patch size, or there is no
            such block.
        """
        model = self.config.model
        if images.ndim not in (3, 4) or images.shape[-1] != 3:
            raise ValueError(f"images of shape {images.shape}: must be [H, W, 3] or [B, H, W, 3]")
        if images.shape[-3] % model.patch_size or images.shape[-2] % model.patch_size:
            raise ValueError(
                f"images of {images.shape[-3]} x {images.shape[-2]} pixels: both must be multiples "
                f"of the patch size, {model.patch_size}"
            )
        if layers is not None:
            wanted = [layer % model.depth for layer in layers]
            if not layers or not all(-model.depth <= layer < model.depth for layer in layers):
                raise ValueError(f"layers = {layers}: must be of -{model.depth}..{model.depth - 1}")
            if any(low >= high for low, high in itertools.pairwise(wanted)):
                raise ValueError(f"layers = {layers}: must ascend")
            layers = tuple(wanted)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images of {images.dtype}: must be normalised first; see preprocess")
        images = jnp.asarray(images)
        batch = images if images.ndim == 4 else images[None]
        with _exact() if model.dtype == "float32" else contextlib.nullcontext():
            tokens = make_encoder(self.config).apply({"params": params}, batch, layers=layers)
        return tokens if images.ndim == 4 else jnp.squeeze(tokens, axis=-3)

    def preprocess(
        self, images: np.ndarray | Array, image_size: tuple[int, int] | None = None
    ) -> Float[Array, "*B H W 3"]:
        """Raw images as the model wants them, and as the probes prepare them.

        The largest centred crop of the right shape is taken, less the margin that
        `config.data.eval_crop` says (0.875: 224 of 256 pixels); it is resized, bilinearly and with
        an antialiasing filter; then pixels are scaled to 0..1, less `config.data.mean`, divided by
        `config.data.std`.

        Args:
          images: uint8 [h, w, 3] or [B, h, w, 3], RGB, of any size.
          image_size: (H, W) to resize to; None: that which the model was trained at.

        Returns:
          float32 [H, W, 3] or [B, H, W, 3].

        Raises:
          ValueError: the images are of another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
            raise ValueError(
                f"images of {images.dtype} {images.shape}: must be uint8 [h, w, 3] or [B, h, w, 3]"
            )
        data = self.config.data
        size = image_size or data.image_size
        top, left, height, width = _centre(*images.shape[-3:-1], size, data.eval_crop)
        x = images[..., top : top + height, left : left + width, :]
        x = jnp.asarray(x, jnp.float32)
        x = jax.image.resize(x, (*x.shape[:-3], *size, 3), method="linear", antialias=True)
        mean, std = np.float32(data.mean), np.float32(data.std)
        return (x / np.float32(255) - mean) / std


def load_encoder(
    path: str | os.PathLike,
    *,
    network: str | None = None,
    dtype: str = "float32",
) -> tuple[Encoder, Any]:
    """An encoder from a checkpoint: a function of parameters and images, and its parameters.

    Args:
      path: a workdir of `jepa_jax.train` (its newest checkpoint is taken), one step's folder in it,
        or what `jepa_jax.convert` wrote.
      network: "target_encoder", the average that the paper evaluates, or "encoder", the context
        encoder; None: the first, or else the only one that a converted checkpoint holds.
      dtype: of the matrix products. "bfloat16" is faster on accelerators, and less exact; float32
        is computed as such even where the hardware has a faster approximation.

    Returns:
      (encode, params): see `Encoder`.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or it does not hold that network.
    """
    folder = checkpoint.find(pathlib.Path(path))
    config = checkpoint.read_config(folder)
    network = checkpoint.choose_network(folder, network)
    params = checkpoint.restore_network(folder, network, make_objective(config))
    model = dataclasses.replace(config.model, dtype=dtype, remat="none")
    return Encoder(dataclasses.replace(config, model=model), network), params


def _exact() -> contextlib.AbstractContextManager:
    """Matrix products of float32 in float32: TPUs and GPUs would use fewer bits."""
    return jax.default_matmul_precision("float32")


def _centre(
    height: int, width: int, size: tuple[int, int], share: float
) -> tuple[int, int, int, int]:
    """Top, left, height and width of the crop; as `data.crops.center_crop`, without TensorFlow."""
    aspect_ratio = size[1] / size[0]
    crop_height = max(round(share * min(height, width / aspect_ratio)), 1)
    crop_width = max(round(share * min(width, height * aspect_ratio)), 1)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
