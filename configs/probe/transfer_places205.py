"""Places205 by the paper's transfer probe (Assran et al., 2023, table 3).

TFDS does not have Places205: its places365_small and placesfull are other sets. So this reads a
folder, with a sub-folder for each class in train/ and in val/: --config.data.path=PLACES205
"""

import ml_collections

from .linear_lars import get_config as linear_lars


def get_config() -> ml_collections.ConfigDict:
    config = linear_lars()
    config.data = {
        "source": "folder",
        "train_split": "train",
        "test_split": "val",
        "label": None,
        "subset": None,
    }
    return config
