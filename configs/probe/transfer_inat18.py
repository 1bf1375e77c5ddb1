"""iNaturalist 2018 by the paper's transfer probe (Assran et al., 2023, table 3)."""

import ml_collections

from .linear_lars import get_config as linear_lars


def get_config() -> ml_collections.ConfigDict:
    config = linear_lars()
    config.data = {
        "source": "tfds",
        "path": "i_naturalist2018",  # TFDS downloads 120 GB; folders: as transfer_places205.py
        "train_split": "train",
        "test_split": "validation",
        "label": "label",  # the species
        "subset": None,
    }
    return config
