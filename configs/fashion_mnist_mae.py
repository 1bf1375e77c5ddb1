"""Masked autoencoder (He et al., 2022) on the bundled images."""

import ml_collections

from .fashion_mnist import get_config as quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart()
    config.model.class_token = True
    config.objective = {
        "name": "mae",
        "decoder": {"embed_dim": 32, "depth": 2, "num_heads": 2},
        # No flip: the bundled clothes all point one way.
        "augmentation": {"flip": 0.0},
    }
    config.optimizer.b2 = 0.95
    return config
