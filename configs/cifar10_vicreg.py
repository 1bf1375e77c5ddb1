"""VICReg (Bardes et al., 2022) on CIFAR-10.

Images as for cifar10.py. No blur, as is usual at 32 pixels.
"""

import ml_collections

from .cifar10 import get_config as ijepa


def get_config() -> ml_collections.ConfigDict:
    config = ijepa()
    config.batch_size = 256
    config.data.crop_scale = (0.08, 1.0)
    config.objective = {
        "name": "vicreg",
        "expander_dim": 1024,
        "augmentation": {"blur": 0.0},
        "second_augmentation": {"blur": 0.0},
    }
    return config
