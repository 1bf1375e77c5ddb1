"""MSN (Assran et al., 2022) on the bundled images: a masked anchor of 28 pixels, four of 16."""

import ml_collections

from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128  # the mean prediction is that of a batch
    config.objective = {
        "name": "msn",
        "num_prototypes": 100,
        "hidden_dim": 256,
        "output_dim": 64,
        "ema": {"kept_share": 1e-3},
        "num_local": 4,
        "local_size": (16, 16),
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
    config.optimizer.clip_norm = 3.0
    return config
