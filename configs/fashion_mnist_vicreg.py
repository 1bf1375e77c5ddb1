"""VICReg (Bardes et al., 2022) on the bundled images."""

import ml_collections

from .fashion_mnist import get_config as quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart()
    config.batch_size = 128  # variances and covariances are those of a batch
    # Grey images of 28 pixels: of the published augmentations, brightness and contrast are left.
    grey = {"flip": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "blur": 0.0}
    config.objective = {
        "name": "vicreg",
        "expander_dim": 256,
        "augmentation": grey,
        "second_augmentation": grey,
    }
    return config
