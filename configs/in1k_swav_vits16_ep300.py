"""SwAV (Caron et al., 2020) with ViT-S/16 on ImageNet-1k, 300 epochs.

Loss, head, crops and colours are SwAV's. It was published with a ResNet-50, LARS, batches of 4096
and 800 epochs; the optimization of a ViT is that which MoCo v3 published.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    encoder, _ = vit_size("s")
    config.model.update(encoder)
    config.model.patch_size = 16  # a 14 x 14 grid
    config.epochs, config.batch_size = 300, 4096
    config.data.crop_scale = (0.14, 1.0)
    config.objective = {"name": "swav", "freeze_prototypes_steps": 312}  # an epoch
    # MoCo v3's for ViTs (Chen et al., 2021), in place of LARS, which is for ResNets.
    config.optimizer = {
        "start_lr": 0.0,
        "lr": 1.5e-4,  # for 256 images; 2.4e-3 for 4096
        "final_lr": 0.0,
        "reference_batch_size": 256,
        "warmup_epochs": 40.0,
        "weight_decay": 0.1,
        "final_weight_decay": 0.1,
    }
    config.compute.remat = "none"
    config.mesh.fsdp = 1
    # An epoch of ImageNet-1k has 312 steps.
    config.logging = {"diagnostics_every_steps": 312}
    config.checkpoint = {"every_steps": 1248, "keep_every_steps": 31200}
    return config
