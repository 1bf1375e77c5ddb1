"""LeJEPA (Balestriero & LeCun, 2025) on the bundled images, two crops of 28 and four of 16."""

import ml_collections

from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128  # the embeddings of a batch are to be normally distributed
    config.objective = {
        "name": "lejepa",
        "num_directions": 256,
        "hidden_dim": 256,
        "num_local": 4,
        "local_size": (16, 16),
        # Grey images of 28 pixels: brightness, contrast and solarization are left.
        "augmentation": {
            "flip": 0.0,
            "saturation": 0.0,
            "hue": 0.0,
            "grayscale": 0.0,
            "blur": 0.0,
        },
    }
    config.optimizer.weight_decay = config.optimizer.final_weight_decay = 0.05
    return config
