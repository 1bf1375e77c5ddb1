"""The paper's linear probe of ImageNet: a grid of heads by LARS (Assran et al., 2023, A.2).

Pooled tokens of the last block, or of the last four, with and without a batch norm ahead; three
learning rates (for a batch of 256, scaled by the batch as VISSL does) and two weight decays: 24
heads in one pass of the encoder over random-resized crops and flips.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.protocol = "linear_lars"
    config.data = {}  # fields of config.data that differ from the checkpoint's: {"path": "..."}
    config.batch_size = 256  # images per forward pass of the encoder
    config.head_batch_size = 16_384  # images per step of the heads
    config.epochs = 50
    config.drop_epochs = 15  # the rates are divided by 10 after so many
    config.optimizer = "lars"
    config.lr = (0.01, 0.05, 0.001)
    config.weight_decay = (0.0005, 0.0)
    config.features = ("last", "last_four")
    config.batch_norm = (False, True)
    config.validation_fraction = 0.01  # of the training images, to choose the head
    config.augment = True  # False: centre crops, whose features are computed once
    config.controls = True  # also the random initialisation, and raw pixels
    return config
