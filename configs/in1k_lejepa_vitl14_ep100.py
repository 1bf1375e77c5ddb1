"""LeJEPA (Balestriero & LeCun, 2025) with ViT-L/14 on ImageNet-1k, 100 epochs.

Crops, colours, rates and lambda are those of the paper's repository, which has no number for the
batch: lambda is for its size, times which the statistic is multiplied, so tune it again with
another one.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    encoder, _ = vit_size("l")
    config.model.update(encoder)
    config.model.patch_size = 14  # a 16 x 16 grid
    config.epochs, config.batch_size = 100, 512
    config.objective = {
        "name": "lejepa",
        "regularization": 0.05,
        "num_directions": 1024,
        "hidden_dim": 2048,
        "output_dim": 16,
        "num_global": 2,
        "num_local": 6,
        "local_size": (98, 98),  # 7 x 7 patches
        "local_crop_scale": (0.05, 0.3),
    }
    config.optimizer = {
        "start_lr": 0.0,
        "lr": 5e-4,
        "final_lr": 5e-7,
        "warmup_epochs": 10.0,
        "weight_decay": 0.05,
        "final_weight_decay": 0.05,
    }
    config.compute.remat = "dots"
    config.mesh.fsdp = 8
    # An epoch of ImageNet-1k has 2,502 steps.
    config.logging = {"diagnostics_every_steps": 2502}
    config.checkpoint = {"every_steps": 10008, "keep_every_steps": 50040}
    return config
