"""SimCLR (Chen et al., 2020) on the bundled images."""

import ml_collections

from .fashion_mnist import GREY
from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128  # each example is told from the 127 others
    config.objective = {
        "name": "simclr",
        "temperature": 0.2,
        "hidden_dim": 256,
        "output_dim": 64,
        "augmentation": GREY,
    }
    return config
