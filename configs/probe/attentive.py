"""Attentive probe: a learned query in a cross-attention block, twenty heads in one pass.

V-JEPA's form (Bardes et al., 2024); `self_attention_blocks=3` gives V-JEPA 2's. The grid of
learning rates and weight decays is V-JEPA 2's (Assran et al., 2025).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.protocol = "attentive"
    config.data = {}  # fields of config.data that differ from the checkpoint's: {"path": "..."}
    config.batch_size = 256  # images per forward pass of the encoder
    config.head_batch_size = 1024  # images per step of the heads
    config.epochs = 20
    config.drop_epochs = None  # a cosine to 0
    config.optimizer = "adamw"
    config.lr = (0.005, 0.003, 0.001, 0.0003, 0.0001)
    config.weight_decay = (0.01, 0.1, 0.4, 0.8)
    config.num_heads = 16
    config.self_attention_blocks = 0
    config.validation_fraction = 0.01  # of the training images, to choose the head
    config.augment = True  # False: centre crops, whose features are computed once
    config.controls = True  # also the random initialisation, and raw pixels
    return config
