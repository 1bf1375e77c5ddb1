"""MSN (Assran et al., 2022) with ViT-S/16 on ImageNet-1k, 800 epochs: 76.9 % linear.

The paper code's recipe. Differences: an image's feature is the mean of its patch tokens, which is
what the probes take, and not a class token (--config.model.class_token=True); the prototypes have
weight decay, which only changes their length, and their gradients are clipped with all others.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    encoder, _ = vit_size("s")
    config.model.update(encoder)
    config.model.patch_size = 16  # a 14 x 14 grid
    config.epochs, config.batch_size = 800, 1024
    config.objective = {"name": "msn"}  # the defaults are the paper's
    config.optimizer = {
        "start_lr": 2e-4,
        "lr": 1e-3,
        "final_lr": 1e-6,
        "warmup_epochs": 15.0,
        "weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "clip_norm": 3.0,
        "ipe_scale": 1.25,
    }
    config.compute.remat = "none"
    config.mesh.fsdp = 1
    # An epoch of ImageNet-1k has 1,251 steps.
    config.logging = {"diagnostics_every_steps": 1251}
    config.checkpoint = {"every_steps": 5004, "keep_every_steps": 125100}
    return config
