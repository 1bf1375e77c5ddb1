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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jepa_jax.batch.pixels import standardize
from jepa_jax.config import Config, resolve, to_dict
from jepa_jax.config.sizes import vit_size
from jepa_jax.errors import UserError
from jepa_jax.interop.hub import local_path
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import initial_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint

# The published shapes: size, patch size.
_MODELS = (("ti", 16), ("s", 16), ("b", 16), ("l", 16), ("h", 14), ("h", 16), ("g", 16))

Images = Float[Array, "*B H W C"] | Float[np.ndarray, "*B H W C"]


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
          images: one image [H, W, C] or a batch [B, H, W, C], normalised as `preprocess` does. H
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
        model, channels = self.config.model, self.config.data.channels
        if images.ndim not in (3, 4) or images.shape[-1] != channels:
            raise ValueError(
                f"images of shape {images.shape}: must be [H, W, {channels}] or "
                f"[B, H, W, {channels}]"
            )
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
        with _exact() if self.config.compute.dtype == "float32" else contextlib.nullcontext():
            tokens: Any = make_encoder(self.config).apply({"params": params}, batch, layers=layers)
        return tokens if images.ndim == 4 else jnp.squeeze(tokens, axis=-3)

    def preprocess(
        self, images: np.ndarray | Array, image_size: tuple[int, int] | None = None
    ) -> Float[Array, "*B H W C"]:
        """Raw images as the model wants them; the probes round them to 8 bits besides.

        The largest centred crop of the right shape is taken, less the margin that
        `config.data.eval_crop` says (0.875: 224 of 256 pixels); it is resized as
        `config.data.interpolation` says, with an antialiasing filter; then pixels are
        scaled to 0..1, less `config.data.mean`, divided by `config.data.std`.

        Args:
          images: uint8 [h, w, C] or [B, h, w, C], of any size; RGB, where C is 3.
          image_size: (H, W) to resize to; None: that which the model was trained at.

        Returns:
          float32 [H, W, C] or [B, H, W, C].

        Raises:
          ValueError: the images are of another type or shape.
        """
        data, channels = self.config.data, self.config.data.channels
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != channels:
            raise ValueError(
                f"images of {images.dtype} {images.shape}: must be uint8 [h, w, {channels}] or "
                f"[B, h, w, {channels}]"
            )
        size = image_size or data.image_size
        top, left, height, width = _centre(images.shape[-3], images.shape[-2], size, data.eval_crop)
        x = images[..., top : top + height, left : left + width, :]
        x = jnp.asarray(x, jnp.float32)
        method = {"bilinear": "linear", "bicubic": "cubic"}[data.interpolation]
        x = jax.image.resize(x, (*x.shape[:-3], *size, channels), method=method, antialias=True)
        return standardize(x / np.float32(255), data.mean, data.std)


def load_encoder(
    path: str | os.PathLike,
    *,
    network: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    verify: bool = True,
) -> tuple[Encoder, Any]:
    """An encoder from a checkpoint: a function of parameters and images, and its parameters.

    Args:
      path: a workdir of `jepa_jax.train` (its newest checkpoint is taken), one step's folder in it,
        what `jepa_jax.convert` wrote, or a Hugging Face folder or hub id of an `IJepaModel`, such
        as "facebook/ijepa_vith14_1k".
      network: "target_encoder", the average that the paper evaluates, or "encoder", the context
        encoder; None: the first, or the only one that a converted checkpoint holds.
      dtype: of the matrix products. "bfloat16" is faster on accelerators, and less exact; float32
        is computed as such even where the hardware has a faster approximation.
      verify: compare the files that are read with the digests that were taken when they were saved.

    Returns:
      (encode, params): see `Encoder`.

    Raises:
      UserError: there is no such checkpoint, it is damaged, it does not hold that network, or the
        hub can't be reached.
    """
    path = local_path(path)
    if is_huggingface(path):
        return _from_huggingface(path, network, dtype)
    folder = find_encoder(path, network, verify=verify)
    config = checkpoint.read_config(folder)
    objective = make_objective(config)
    network = checkpoint.choose_encoder(folder, network, objective)
    params = checkpoint.restore_encoder(folder, network, objective)
    return Encoder(_for_inference(config, dtype), network), params


def find_encoder(path: pathlib.Path, network: str | None, *, verify: bool = True) -> pathlib.Path:
    """The folder of the checkpoint whose encoder is to be read; see `checkpoint.find`.

    Args:
      network: see `checkpoint.choose_encoder`.
      verify: compare SHA-256 too, not only names and sizes.

    Raises:
      UserError: there is none that is good, or it does not hold that network.
    """

    def items(folder: pathlib.Path) -> tuple[str, ...]:
        objective = make_objective(checkpoint.read_config(folder))
        name = checkpoint.choose_encoder(folder, network, objective)
        return (name if (folder / name).is_dir() else "params",)

    return checkpoint.find(path, items, digests=verify)


def is_huggingface(path: pathlib.Path) -> bool:
    """Whether a folder is not one of ours, but one that `save_pretrained` wrote."""
    return (path / "config.json").is_file()


def _from_huggingface(path: pathlib.Path, network: str | None, dtype: str) -> tuple[Encoder, Any]:
    config, network, params = read_huggingface(path, network=network)
    return Encoder(_for_inference(config, dtype), network), params


def read_huggingface(
    path: pathlib.Path, *, network: str | None = None, num_heads: int | None = None
) -> tuple[Config, str, Any]:
    """An encoder from a folder that `IJepaModel.save_pretrained` wrote, or from a .safetensors.

    Args:
      network: which encoder it is; None: what the folder says, or else the context encoder.
      num_heads: of its attention, where neither the folder nor the width tells.

    Returns:
      (configuration, network, parameters).

    Raises:
      UserError: see `open_huggingface`.
    """
    from jepa_jax.interop.huggingface import huggingface_items, open_huggingface

    found = open_huggingface(
        path,
        to_dict(architecture_of("h", 14, (224, 224))),  # the tensors' shapes overrule it
        num_heads=num_heads,
        base_is_given=False,
        allow_partial=False,
        network=network,
    )
    ((network, lazy),) = huggingface_items(found, lambda _: None)
    params = jax.tree.map(lambda array: jnp.asarray(array.read()), lazy)
    return found.config, network, params


def list_models() -> list[str]:
    """Names for `create_encoder`: the published shapes, "vit_b16" for ViT-B/16."""
    return [f"vit_{size}{patch}" for size, patch in _MODELS]


def create_encoder(
    name: str, *, image_size: int | tuple[int, int] = 224, seed: int = 0, dtype: str = "float32"
) -> tuple[Encoder, Any]:
    """An encoder at its random initialisation, as a run starts from it.

    Args:
      name: of `list_models()`.
      image_size: height and width in pixels, or one number for both.
      seed: of the initialisation.
      dtype: of the matrix products; see `load_encoder`.

    Returns:
      (encode, params): see `Encoder`. `encode.preprocess` normalises as for ImageNet.

    Raises:
      UserError: there is no such model, or the size is no multiple of its patch size.
    """
    models = dict(zip(list_models(), _MODELS, strict=True))
    if name not in models:
        raise UserError(f"model {name!r}: must be one of {', '.join(models)}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    config = architecture_of(*models[name], size)
    params = initial_encoder(make_objective(config), seed, "encoder")
    return Encoder(_for_inference(config, dtype), "encoder"), params


def _for_inference(config: Config, dtype: str) -> Config:
    fields = to_dict(config)
    fields["compute"] |= {"dtype": dtype, "remat": "none"}
    return resolve(fields)


def architecture_of(size: str, patch_size: int, image_size: tuple[int, int]) -> Config:
    """A run's configuration around a published shape, of which an encoder uses little."""
    encoder, predictor = vit_size(size)
    return resolve(
        {
            "epochs": 1,
            "batch_size": 1,
            "data": {
                "source": "folder",
                "image_size": image_size,
                "eval_crop": 0.875,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
            },
            "model": {**encoder, "patch_size": patch_size},
            "objective": {"name": "ijepa", "masks": {"context_tokens": 1}, "predictor": predictor},
        }
    )


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
