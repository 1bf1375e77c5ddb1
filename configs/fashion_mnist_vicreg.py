"""VICReg (Bardes et al., 2022) on the bundled images."""

import ml_collections

from .fashion_mnist import GREY
from .fashion_mnist import get_config as quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart()
    config.batch_size = 128  # variances and covariances are those of a batch
    config.objective = {
        "name": "vicreg",
        "expander_dim": 256,
        "augmentation": GREY,
        "second_augmentation": GREY,
    }
    return config
