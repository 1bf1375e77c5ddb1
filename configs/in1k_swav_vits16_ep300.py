"""SwAV (Caron et al., 2020) with ViT-S/16 on ImageNet-1k, 300 epochs.

Loss, head, crops and colours are SwAV's. It was published with a ResNet-50, LARS, batches of 4096
and 800 epochs; the optimization of a ViT is that which MoCo v3 published.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_simclr_vitb16_ep300 import get_config as simclr


def get_config() -> ml_collections.ConfigDict:
    config = simclr()
    encoder, _ = vit_size("s")
    config.model.update(encoder)
    config.data.crop_scale = (0.14, 1.0)
    config.objective = {"name": "swav", "freeze_prototypes_steps": 312}  # an epoch
    return config
