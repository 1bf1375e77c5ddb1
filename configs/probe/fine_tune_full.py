"""Fine-tuning on all labels, as I-JEPA of ViT-H/16 at 448 pixels (Assran et al., 2023, D)."""

import ml_collections

from .fine_tune import get_config as one_percent


def get_config() -> ml_collections.ConfigDict:
    config = one_percent()
    config.low_shot = None  # all labels
    config.batch_size = 528
    config.lr = 1e-4
    config.weight_decay = 0.04
    config.mixup = 0.8
    config.cutmix = 1.0
    config.drop_path_rate = 0.25
    return config
