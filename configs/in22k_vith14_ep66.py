"""ViT-H/14 on ImageNet-22k, 66 epochs (Assran et al., 2023).

As in1k_vith14_ep300.py, but on more images, fewer times.
"""

import ml_collections

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    config.epochs = 66
    config.compute.remat = "none"  # published: 64 devices, with only 32 images each
    config.optimizer = {"warmup_epochs": 3.0}
    # An epoch of 14.2 million images has 6,932 steps.
    config.logging.diagnostics_every_steps = 1000
    config.checkpoint.every_steps = 2000
    config.checkpoint.keep_every_steps = 50_000
    return config
