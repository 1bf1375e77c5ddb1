"""MSN (Assran et al., 2022) on the bundled images: a masked anchor of 28 pixels, four of 16."""

import ml_collections

from .fashion_mnist import GREY
from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128  # the mean prediction is that of a batch
    config.objective = {
        "name": "msn",
        "num_prototypes": 100,
        "hidden_dim": 256,
        "output_dim": 64,
        "ema": {"kept_share": 1e-3},
        "num_local": 4,
        "local_size": (16, 16),
        "augmentation": GREY,
    }
    config.optimizer.clip_norm = 3.0
    return config
