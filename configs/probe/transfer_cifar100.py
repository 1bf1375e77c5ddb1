"""CIFAR-100 by the paper's transfer probe (Assran et al., 2023, table 3).

The images are resized to the encoder's size.
"""

import ml_collections

from .linear_lars import get_config as linear_lars


def get_config() -> ml_collections.ConfigDict:
    config = linear_lars()
    config.data = {
        "source": "tfds",
        "path": "cifar100",
        "train_split": "train",
        "test_split": "test",
        "label": "label",  # the fine one
        "subset": None,
    }
    return config
