"""BYOL (Grill et al., 2020) on the bundled images."""

import ml_collections

from .fashion_mnist import GREY
from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128  # statistics of the heads' normalisation are those of a batch
    config.objective = {
        "name": "byol",
        "hidden_dim": 256,
        "output_dim": 64,
        "ema": {"kept_share": 1e-3},
        "augmentation": GREY,
        "second_augmentation": GREY,
    }
    return config
