"""BYOL (Grill et al., 2020) with ViT-B/16 on ImageNet-1k, 300 epochs.

Loss, heads, crops, colours and momentum are BYOL's. It was published with a ResNet-50, LARS and
batches of 4096; the optimization of a ViT is that which MoCo v3 published. Difference: its patch
embedding was frozen, here it is trained.
"""

import ml_collections

from .in1k_simclr_vitb16_ep300 import get_config as simclr


def get_config() -> ml_collections.ConfigDict:
    config = simclr()
    config.objective = {
        "name": "byol",
        "hidden_dim": 4096,
        "output_dim": 256,
        "ema": {"start_momentum": 0.996, "final_momentum": 1.0, "schedule": "cosine"},
    }
    return config
