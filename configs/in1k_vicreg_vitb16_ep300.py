"""VICReg (Bardes et al., 2022) with ViT-B/16 on ImageNet-1k, 300 epochs.

Loss, expander, crops and colours are VICReg's. It was published with a ResNet-50, LARS, batches of
2048 and 1000 epochs; the optimization of a ViT is that which MoCo v3 published.
"""

import ml_collections

from .in1k_simclr_vitb16_ep300 import get_config as simclr


def get_config() -> ml_collections.ConfigDict:
    config = simclr()
    config.batch_size = 2048
    # An epoch of ImageNet-1k has 625 steps.
    config.logging = {"diagnostics_every_steps": 625}
    config.checkpoint = {"every_steps": 2500, "keep_every_steps": 62_500}
    config.objective = {"name": "vicreg"}  # the defaults are the paper's
    return config
