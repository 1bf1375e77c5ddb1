"""ViT-B/16 on ImageNet-1k as a masked autoencoder, 1600 epochs (He et al., 2022, appendix A.1).

Two things differ from the published run: kernels start from a normal distribution (`config.init`),
not from Xavier's uniform one, and crops are resized bilinearly, not bicubically.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    encoder, _ = vit_size("b")
    config.epochs = 1600
    config.batch_size = 4096
    config.data.crop_scale = (0.2, 1.0)
    config.model.update(encoder)
    config.model.patch_size = 16  # a 14 x 14 grid
    config.model.class_token = True
    config.objective = {
        "name": "mae",
        "mask_ratio": 0.75,
        "normalize_pixels": True,
        "decoder": {"embed_dim": 512, "depth": 8, "num_heads": 16},
        "augmentation": {"flip": 0.5},
    }
    config.optimizer = {
        "start_lr": 0.0,
        "lr": 1.5e-4,  # for 256 images; 2.4e-3 for 4096
        "final_lr": 0.0,
        "reference_batch_size": 256,
        "warmup_epochs": 40.0,
        "weight_decay": 0.05,
        "final_weight_decay": 0.05,
        "b1": 0.9,
        "b2": 0.95,
    }
    config.compute.remat = "none"  # a quarter of the patches is encoded
    config.mesh.fsdp = 1  # the whole state is under 2 GB
    # An epoch of ImageNet-1k has 312 steps.
    config.logging = {"diagnostics_every_steps": 312}
    config.checkpoint = {"every_steps": 1248, "keep_every_steps": 31_200}  # 4 and 100 epochs
    return config
