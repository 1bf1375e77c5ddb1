"""How far a CLEVR scene's closest object is, in six classes (VTAB's task: Zhai et al., 2019).

A low-level task of the paper (Assran et al., 2023, table 4): centre crops and flips only.
"""

import ml_collections

from .clevr_count import get_config as clevr_count


def get_config() -> ml_collections.ConfigDict:
    config = clevr_count()
    config.data["label"] = "clevr_distance"
    return config
