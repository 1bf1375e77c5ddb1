"""Depth from frozen tokens: a linear head on each patch, enlarged bilinearly."""

import ml_collections

from .segmentation import get_config as segmentation


def get_config() -> ml_collections.ConfigDict:
    config = segmentation()
    config.protocol = "depth"
    config.target = "depth"  # name of the maps of distances, 0 or not finite: none
    config.target_scale = 1.0  # of the stored numbers; 0.001: from mm to m
    return config
