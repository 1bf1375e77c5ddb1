"""data2vec (Baevski et al., 2022) on CIFAR-10.

Images as for cifar10.py. Blocks of 5 patches and more, of 64.
"""

import ml_collections

from .cifar10 import get_config as ijepa


def get_config() -> ml_collections.ConfigDict:
    config = ijepa()
    config.objective = {
        "name": "data2vec",
        "min_block_patches": 5,
        "top_blocks": 2,  # of four
        "ema": {"kept_share": 1e-3, "final_momentum": 1.0, "rise_share": 1.0},
    }
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 3.0
    return config
