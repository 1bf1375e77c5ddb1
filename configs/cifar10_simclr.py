"""SimCLR (Chen et al., 2020) on CIFAR-10.

Images as for cifar10.py. Temperature and crops as in solo-learn; no blur, as is usual at 32 pixels.
"""

import ml_collections

from .cifar10 import get_config as ijepa


def get_config() -> ml_collections.ConfigDict:
    config = ijepa()
    config.batch_size = 256
    config.data.crop_scale = (0.08, 1.0)
    config.objective = {
        "name": "simclr",
        "temperature": 0.2,
        "hidden_dim": 512,
        "output_dim": 128,
        "augmentation": {"blur": 0.0},
    }
    return config
