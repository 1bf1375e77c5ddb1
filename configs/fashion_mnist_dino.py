"""DINO (Caron et al., 2021) on the bundled images, with two crops of 28 and four of 16 pixels."""

import ml_collections

from .fashion_mnist import GREY
from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128
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
        "augmentation": GREY,
        "second_augmentation": GREY,
        "local_augmentation": GREY,
    }
    config.optimizer.clip_norm = 3.0
    return config
