"""data2vec (Baevski et al., 2022) with ViT-B/16 on ImageNet-1k, 800 epochs.

The paper's recipe for images. Differences: no LayerScale, no class token, fixed positions in place
of relative ones; exactly 120 patches are masked, where blocks may leave fewer; flips alone.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    encoder, _ = vit_size("b")
    config.model.update(encoder)
    config.model.patch_size = 16  # a 14 x 14 grid
    config.epochs, config.batch_size = 800, 2048
    config.model.drop_path_rate = 0.25
    config.objective = {
        "name": "data2vec",
        "top_blocks": 6,
        "beta": 2.0,
        "ema": {"start_momentum": 0.999, "final_momentum": 0.9998, "rise_share": 0.1},
    }
    config.optimizer = {
        "start_lr": 0.0,
        "lr": 2e-3,
        "final_lr": 1e-6,
        "warmup_epochs": 10.0,
        "weight_decay": 0.05,
        "final_weight_decay": 0.05,
        "b1": 0.9,
        "b2": 0.98,
        "clip_norm": 3.0,
    }
    config.compute.remat = "none"
    config.mesh.fsdp = 1
    # An epoch of ImageNet-1k has 625 steps.
    config.logging = {"diagnostics_every_steps": 625}
    config.checkpoint = {"every_steps": 2500, "keep_every_steps": 62500}
    return config
