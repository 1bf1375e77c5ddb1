"""DINO (Caron et al., 2021) on CIFAR-10, with two crops of 32 and four of 16 pixels.

Images as for cifar10.py. No blur, as is usual at 32 pixels.
"""

import ml_collections

from .cifar10 import get_config as ijepa


def get_config() -> ml_collections.ConfigDict:
    config = ijepa()
    config.batch_size = 256
    config.data.crop_scale = (0.4, 1.0)
    config.objective = {
        "name": "dino",
        "num_prototypes": 4096,
        "hidden_dim": 512,
        "output_dim": 128,
        "batch_norm": True,
        "freeze_prototypes_steps": 195,  # an epoch
        "ema": {"kept_share": 1e-3},
        "num_local": 4,
        "local_size": (16, 16),
        "local_crop_scale": (0.05, 0.4),
        "augmentation": {"blur": 0.0},
        "second_augmentation": {"blur": 0.0},
        "local_augmentation": {"blur": 0.0},
    }
    config.optimizer.clip_norm = 3.0
    return config
