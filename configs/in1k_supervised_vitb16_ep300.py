"""ViT-B/16 on ImageNet-1k with labels, from scratch, 300 epochs (He et al., 2022, table 11).

The strong baseline of the MAE paper: 82.3 % there. It differs from that run in the initialisation
(`config.init`), in bilinear instead of bicubic resizing, and in that the mean of the patch tokens
is classified, as in the probes.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    encoder, _ = vit_size("b")
    config.epochs = 300
    config.batch_size = 4096
    config.data.crop_scale = (0.08, 1.0)
    config.model.update(encoder)
    config.model.patch_size = 16  # a 14 x 14 grid
    config.model.drop_path_rate = 0.1
    config.objective = {
        "name": "supervised",
        "num_classes": 1000,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "ema": 0.9999,
        "augmentation": {"rand_augment": {"num_ops": 2, "magnitude": 9.0, "magnitude_std": 0.5}},
    }
    config.optimizer = {
        "start_lr": 0.0,
        "lr": 1e-4,  # for 256 images; 1.6e-3 for 4096
        "final_lr": 0.0,
        "reference_batch_size": 256,
        "warmup_epochs": 20.0,
        "weight_decay": 0.3,
        "final_weight_decay": 0.3,
        "b1": 0.9,
        "b2": 0.95,
    }
    config.mesh.fsdp = 1  # the whole state is under 2 GB
    # An epoch of ImageNet-1k has 312 steps.
    config.logging = {"diagnostics_every_steps": 312}
    config.checkpoint = {"every_steps": 1248, "keep_every_steps": 31_200}  # 4 and 100 epochs
    return config
