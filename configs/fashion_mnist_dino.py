"""DINO (Caron et al., 2021) on the bundled images, with two crops of 28 and four of 16 pixels."""

import ml_collections

from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128
    # Grey images of 28 pixels: of the published augmentations, brightness and contrast are left.
    grey = {"flip": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "blur": 0.0}
    config.objective = {
        "name": "dino",
        "num_prototypes": 512,
        "hidden_dim": 256,
        "output_dim": 64,
        "batch_norm": True,
        "freeze_prototypes_steps": 78,  # an epoch
        "ema": {"kept_share": 1e-3},
        "num_local": 4,
        "local_size": (16, 16),
        "local_crop_scale": (0.05, 0.3),
        "augmentation": grey,
        "second_augmentation": grey,
        "local_augmentation": grey,
    }
    config.optimizer.clip_norm = 3.0
    return config
