"""LeJEPA (Balestriero & LeCun, 2025) on the bundled images, two crops of 28 and four of 16."""

import ml_collections

from .fashion_mnist import GREY
from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.batch_size = 128  # the embeddings of a batch are to be normally distributed
    config.objective = {
        "name": "lejepa",
        "num_directions": 256,
        "hidden_dim": 256,
        "num_local": 4,
        "local_size": (16, 16),
        "augmentation": GREY,
    }
    config.optimizer.weight_decay = config.optimizer.final_weight_decay = 0.05
    return config
