"""How many objects a CLEVR scene has, 3 to 10 (VTAB's task: Zhai et al., 2019).

A low-level task of the paper (Assran et al., 2023, table 4): centre crops and flips only.
"""

import ml_collections

from .linear_lars import get_config as linear_lars


def get_config() -> ml_collections.ConfigDict:
    config = linear_lars()
    config.data = {
        "source": "tfds",
        "path": "clevr",
        "train_split": "train",
        "test_split": "validation",  # the test scenes are not published
        "label": "clevr_count",
        "subset": None,
        "crop_aspect_ratio": (1.0, 1.0),  # with crop_scale: the largest centred square
    }
    config.crop_scale = (1.0, 1.0)
    return config
