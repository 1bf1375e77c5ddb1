"""Supervised classification of the bundled images: the control that sees labels."""

import ml_collections

from .fashion_mnist import get_config as quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart()
    config.objective = {
        "name": "supervised",
        "num_classes": 10,
        # No flip: the bundled clothes all point one way.
        "augmentation": {"flip": 0.0},
    }
    return config
