"""data2vec (Baevski et al., 2022) on the bundled images."""

import ml_collections

from .fashion_mnist import get_config as bundled


def get_config() -> ml_collections.ConfigDict:
    config = bundled()
    config.objective = {
        "name": "data2vec",
        "min_block_patches": 4,  # of 49; published: 16 of 196
        "top_blocks": 2,  # of three
        "ema": {"kept_share": 1e-3, "final_momentum": 1.0, "rise_share": 1.0},
        "augmentation": {"flip": 0.0},  # the bundled clothes all point one way
    }
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 3.0
    return config
