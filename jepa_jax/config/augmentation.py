"""What is done to one view of an image; `jepa_jax.data.augment` does it."""

import dataclasses
from typing import Annotated

from jepa_jax.config.schema import Bound, NotNegative, Positive, Share


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """RandAugment (Cubuk et al., 2020) as in MAE's fine-tuning; see `data/rand_augment.py`."""

    num_ops: Positive = 2  # each is carried out with probability 1/2
    # Strength, of 0..10; each operation's own is normal around it.
    magnitude: Annotated[float, Bound("lie in 0..10", lambda x: 0 <= x <= 10)] = 9.0
    magnitude_std: NotNegative = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """The augmentations of the self-supervised literature; every probability 0 means never.

    They are carried out in this order: flip, RandAugment, colour jitter, grayscale, blur, solarize,
    erasing. Flip, jitter, grayscale and blur are the set of SimCLR (Chen et al., 2020) and of SwAV
    (Caron et al., 2020). BYOL (Grill et al., 2020) added solarize, and gave the two views different
    probabilities, as VICReg (Bardes et al., 2022) and DINO (Caron et al., 2021) do. The strengths
    below are those of the latter three. RandAugment and erasing are for training with labels.
    """

    flip: Share = 0.0  # probability of a horizontal flip
    rand_augment: RandAugmentConfig | None = None
    jitter: Share = 0.0  # probability of colour jitter: the four changes below, in random order
    brightness: NotNegative = 0.4  # half-range of the factor around 1; 0 leaves it out, as below
    contrast: NotNegative = 0.4  # half-range of the factor around 1
    saturation: NotNegative = 0.2  # half-range of the factor around 1
    # Half-range of the shift, as a share of the colour circle.
    hue: Annotated[float, Bound("lie in 0..0.5", lambda x: 0 <= x <= 0.5)] = 0.1
    grayscale: Share = 0.0  # probability of a gray image
    blur: Share = 0.0  # probability of a Gaussian blur
    blur_sigma: Annotated[  # standard deviation, pixels, drawn uniformly
        tuple[float, float], Bound("satisfy 0 < low <= high", lambda x: 0 < x[0] <= x[1])
    ] = (0.1, 2.0)
    solarize: Share = 0.0  # probability of solarization
    solarize_threshold: Share = 0.5  # of pixels in 0..1; those at or above it are inverted
    # Probability of random erasing (Zhong et al., 2020); see `data/erasing.py`.
    erase: Share = 0.0


# Published sets: SimCLR's and SwAV's; and BYOL's for its first view and its second.
STRONG = AugmentationConfig(
    flip=0.5,
    jitter=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    grayscale=0.2,
    blur=0.5,
)
FIRST_VIEW = AugmentationConfig(flip=0.5, jitter=0.8, grayscale=0.2, blur=1.0)
SECOND_VIEW = AugmentationConfig(flip=0.5, jitter=0.8, grayscale=0.2, blur=0.1, solarize=0.2)
