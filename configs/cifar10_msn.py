"""MSN (Assran et al., 2022) on CIFAR-10: a masked anchor of 32 pixels and four of 16.

Images as for cifar10.py. No blur, as is usual at 32 pixels.
"""

import ml_collections

from .cifar10 import get_config as ijepa


def get_config() -> ml_collections.ConfigDict:
    config = ijepa()
    config.batch_size = 256
    config.objective = {
        "name": "msn",
        "num_prototypes": 100,
        "hidden_dim": 512,
        "output_dim": 128,
        "ema": {"kept_share": 1e-3},
        "num_local": 4,
        "local_size": (16, 16),
        "local_crop_scale": (0.05, 0.3),
        "augmentation": {"blur": 0.0},
    }
    config.optimizer.clip_norm = 3.0
    return config
