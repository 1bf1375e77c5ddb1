"""SwAV (Caron et al., 2020) on the bundled images, with two crops of 28 and four of 16 pixels."""

import ml_collections

from .fashion_mnist import GREY
from .fashion_mnist import get_config as quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart()
    config.batch_size = 128
    config.objective = {
        "name": "swav",
        "num_prototypes": 100,
        "hidden_dim": 256,
        "output_dim": 64,
        "freeze_prototypes_steps": 78,  # an epoch
        "queue_length": 512,
        "queue_start_step": 156,
        "num_local": 4,
        "local_size": (16, 16),
        "local_crop_scale": (0.05, 0.3),
        "augmentation": {**GREY, "brightness": 0.4, "contrast": 0.4},
    }
    return config
