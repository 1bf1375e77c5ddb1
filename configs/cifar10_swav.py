"""SwAV (Caron et al., 2020) on CIFAR-10, with two crops of 32 and four of 16 pixels.

Images as for cifar10.py. No blur, as is usual at 32 pixels.
"""

import ml_collections

from .cifar10 import get_config as ijepa


def get_config() -> ml_collections.ConfigDict:
    config = ijepa()
    config.batch_size = 256
    config.objective = {
        "name": "swav",
        "num_prototypes": 100,
        "hidden_dim": 512,
        "output_dim": 128,
        "freeze_prototypes_steps": 195,  # an epoch
        "queue_length": 3840,
        "queue_start_step": 585,
        "num_local": 4,
        "local_size": (16, 16),
        "local_crop_scale": (0.05, 0.3),
        "augmentation": {"blur": 0.0},
    }
    return config
