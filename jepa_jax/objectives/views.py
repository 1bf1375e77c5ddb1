"""Features of the views of images: what all objectives do that compare views."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jepa_jax.batch.spec import View, image_view
from jepa_jax.config import AugmentationConfig, Config
from jepa_jax.models.flops import encoder_flops
from jepa_jax.models.heads import init_prototypes
from jepa_jax.models.vision_transformer import VisionTransformer, init_encoder


def init_networks(
    config: Config,
    encoder: VisionTransformer,
    head: nn.Module,
    key: Array,
    *,
    head_name: str = "projector",
    prototypes: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Parameters of the encoder and of a head on its features; and {"prototypes": ...}.

    Args:
      prototypes: number and width; None: there are none.
    """
    encoder_key, head_key, *rest = jax.random.split(key, 2 if prototypes is None else 3)
    params = {
        "encoder": init_encoder(encoder, config, encoder_key),
        head_name: head.init(head_key, jnp.zeros((1, config.model.embed_dim)))["params"],
    }
    if prototypes is not None:
        params["prototypes"] = init_prototypes(rest[0], *prototypes)
    return params


def image_features(
    encoder: VisionTransformer,
    weights: Any,
    images: Float[Array, "B H W C"],
    *,
    key: Array | None = None,
    index: Int[Array, "B K"] | None = None,
) -> Float[Array, "B D"]:
    """One feature of each image: the class token, or the mean of the patch tokens without one.

    Args:
      key: of stochastic depth; None: without.
      index: the patches that are seen; None: all.
    """
    tokens: Any = encoder.apply(
        {"params": weights},
        images,
        index,
        deterministic=key is None,
        rngs=None if key is None else {"drop_path": key},
        with_class_token=True,
    )  # [B, N, D], or [B, 1 + N, D]
    return tokens[:, 0] if encoder.class_token else jnp.mean(tokens, axis=1)


def view_features(
    encoder: VisionTransformer,
    weights: Any,
    views: Float[Array, "B V H W C"],
    *,
    key: Array | None = None,
) -> Float[Array, "B V D"]:
    """The features of several views, in one pass. See `image_features`."""
    B, V = views.shape[:2]
    # Examples first, as everywhere: each device keeps its own, and nothing moves between them.
    features = image_features(encoder, weights, views.reshape(B * V, *views.shape[2:]), key=key)
    return features.reshape(B, V, -1)


def crop_features(
    encoder: VisionTransformer, weights: Any, batch: dict[str, Array], *, key: Array
) -> Float[Array, "B V D"]:
    """The features of the large crops, then of the small ones. See `large_and_small_crops`."""
    features = [view_features(encoder, weights, batch["global"], key=jax.random.fold_in(key, 0))]
    if "local" in batch:
        local_key = jax.random.fold_in(key, 1)
        features.append(view_features(encoder, weights, batch["local"], key=local_key))
    return jnp.concatenate(features, axis=1)


def large_and_small_crops(
    config: Config,
    settings: Any,
    *,
    num_global: int,
    global_augmentations: tuple[AugmentationConfig, ...],
    local_augmentation: AugmentationConfig,
) -> tuple[View, ...]:
    """Multi-crop views (Caron et al., 2020, section 3.2): "global", and "local" if there are any.

    Args:
      settings: with num_local, local_size and local_crop_scale.
      global_augmentations: of each large crop, or one for all.
    """
    large = image_view("global", config.data, number=num_global, augmentations=global_augmentations)
    return (large, *small_crops(config, settings, local_augmentation))


def small_crops(
    config: Config, settings: Any, augmentation: AugmentationConfig
) -> tuple[View, ...]:
    """The view "local"; none if `settings.num_local` is 0."""
    if not settings.num_local:
        return ()
    small = View(
        "local",
        settings.local_size,
        number=settings.num_local,
        crop_scale=settings.local_crop_scale,
        crop_aspect_ratio=config.data.crop_aspect_ratio,
        augmentations=(augmentation,),
        channels=config.data.channels,
    )
    return (small,)


def view_flops(
    config: Config, size: tuple[int, int], *, backward: bool = True, tokens: int | None = None
) -> float:
    """Of an encoder's pass over one view.

    Args:
      size: height, width in pixels.
      tokens: patches that are seen; None: all.
    """
    patch = config.model.patch_size
    if tokens is None:
        tokens = (size[0] // patch) * (size[1] // patch)
    return encoder_flops(config.model, tokens, backward=backward, channels=config.data.channels)


def crop_flops(config: Config, settings: Any, *, num_global: int) -> float:
    """Of an encoder's forward and backward passes over all crops of one image."""
    large = num_global * view_flops(config, config.data.image_size)
    return large + settings.num_local * view_flops(config, settings.local_size)


def apply_to_views(
    head: nn.Module, weights: Any, features: Float[Array, "B V D"]
) -> Float[Array, "B V E"]:
    """A head on all views at once: its batch normalisation, if any, is over all of them."""
    B, V, D = features.shape
    z: Any = head.apply({"params": weights}, features.reshape(B * V, D))
    return z.reshape(B, V, -1)
