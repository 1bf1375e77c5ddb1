"""VICReg (Bardes et al., 2022) with ViT-B/16 on ImageNet-1k, 300 epochs.

Loss, expander, crops and colours are VICReg's. It was published with a ResNet-50, LARS, batches of
2048 and 1000 epochs; the optimization of a ViT is that which MoCo v3 published.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    encoder, _ = vit_size("b")
    config.model.update(encoder)
    config.model.patch_size = 16  # a 14 x 14 grid
    config.epochs, config.batch_size = 300, 2048
    config.data.crop_scale = (0.08, 1.0)
    config.objective = {"name": "vicreg"}  # the defaults are the paper's
    # MoCo v3's for ViTs (Chen et al., 2021), in place of LARS, which is for ResNets.
    config.optimizer = {
        "start_lr": 0.0,
        "lr": 1.5e-4,  # for 256 images; 1.2e-3 for 2048
        "final_lr": 0.0,
        "reference_batch_size": 256,
        "warmup_epochs": 40.0,
        "weight_decay": 0.1,
        "final_weight_decay": 0.1,
    }
    config.compute.remat = "none"
    config.mesh.fsdp = 1
    # An epoch of ImageNet-1k has 625 steps.
    config.logging = {"diagnostics_every_steps": 625}
    config.checkpoint = {"every_steps": 2500, "keep_every_steps": 62500}
    return config
