"""Supervised classification of CIFAR-10: the control that sees labels.

Images as for cifar10.py. Crops and flips alone.
"""

import ml_collections

from .cifar10 import get_config as ijepa


def get_config() -> ml_collections.ConfigDict:
    config = ijepa()
    config.objective = {"name": "supervised", "num_classes": 10}
    return config
