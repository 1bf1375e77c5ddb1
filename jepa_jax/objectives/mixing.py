"""Mixup and CutMix: two images in one, and their labels in the same proportion."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def mix(
    images: Float[Array, "B H W C"],
    targets: Float[Array, "B classes"],
    *,
    mixup: float,
    cutmix: float,
    key: Array,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B classes"]]:
    """Mixes each image with the one before it in the batch, whose order is random.

    One share and one box are drawn per step, for all images. With both, each step is one of the two
    with probability 1/2.

    Args:
      targets: probabilities of each class.
      mixup: alpha, the share being of Beta(alpha, alpha) (Zhang et al., 2018); 0: none.
      cutmix: alpha of the box's area (Yun et al., 2019); 0: none.
      key: of the step.
    """
    if not mixup and not cutmix:
        return images, targets
    other_images, other_targets = jnp.roll(images, 1, axis=0), jnp.roll(targets, 1, axis=0)
    size = images.shape[1], images.shape[2]
    choice_key, share_key, box_key = jax.random.split(key, 3)
    # [H, W, 1], how much of the first image each pixel holds.
    if mixup and cutmix:
        kept = jax.lax.cond(
            jax.random.bernoulli(choice_key),
            lambda: cutmix_weights(size, cutmix, share_key, box_key),
            lambda: mixup_weights(size, mixup, share_key),
        )
    elif cutmix:
        kept = cutmix_weights(size, cutmix, share_key, box_key)
    else:
        kept = mixup_weights(size, mixup, share_key)
    share = jnp.mean(kept)  # of a box, its exact area, and not the one that was drawn
    kept = kept[None]
    mixed = kept * images + (1.0 - kept) * other_images
    return mixed, share * targets + (1.0 - share) * other_targets


def mixup_weights(size: tuple[int, int], alpha: float, key: Array) -> Float[Array, "H W 1"]:
    """The same share everywhere."""
    return jnp.full((*size, 1), jax.random.beta(key, alpha, alpha))


def cutmix_weights(
    size: tuple[int, int], alpha: float, share_key: Array, box_key: Array
) -> Float[Array, "H W 1"]:
    """0 in a box, 1 around it.

    The box has the image's aspect ratio, and its centre is drawn uniformly: what lies outside of
    the image is cut off (Yun et al., 2019, section 3.1, and their supplement's algorithm).
    """
    share = jax.random.beta(share_key, alpha, alpha)
    inside = []
    for pixels, key in zip(size, jax.random.split(box_key), strict=True):
        half = jnp.floor(pixels * jnp.sqrt(1.0 - share)).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, pixels)
        place = jnp.arange(pixels)
        inside.append((place >= centre - half) & (place < centre + half))
    return 1.0 - (inside[0][:, None, None] & inside[1][None, :, None]).astype(jnp.float32)
