"""SimCLR (Chen et al., 2020) on the bundled images."""

import ml_collections

from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128  # each example is told from the 127 others
    config.objective = {
        "name": "simclr",
        "temperature": 0.2,
        "hidden_dim": 256,
        "output_dim": 64,
        # Grey images of 28 pixels: of the published augmentations, brightness and contrast are
        # left. No flip: the bundled clothes all point one way.
        "augmentation": {
            "flip": 0.0,
            "saturation": 0.0,
            "hue": 0.0,
            "grayscale": 0.0,
            "blur": 0.0,
        },
    }
    return config
