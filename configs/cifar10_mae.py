"""Masked autoencoder (He et al., 2022) on CIFAR-10.

Images as for cifar10.py. On raw pixels, as small public runs have it; without class token.
"""

import ml_collections

from .cifar10 import get_config as ijepa


def get_config() -> ml_collections.ConfigDict:
    config = ijepa()
    config.objective = {
        "name": "mae",
        "normalize_pixels": False,
        "decoder": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    }
    config.optimizer.b2 = 0.95
    return config
