"""BYOL (Grill et al., 2020) on the bundled images."""

import ml_collections

from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128  # statistics of the heads' normalisation are those of a batch
    # Grey images of 28 pixels: of the published augmentations, brightness and contrast are left.
    grey = {"flip": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "blur": 0.0}
    config.objective = {
        "name": "byol",
        "hidden_dim": 256,
        "output_dim": 64,
        "ema": {"kept_share": 1e-3},
        "augmentation": grey,
        "second_augmentation": grey,
    }
    return config
