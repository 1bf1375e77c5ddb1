"""Linear probe: L2-regularised multinomial logistic regression on average-pooled features."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.protocol = "linear"
    config.data = {}  # fields of config.data that differ from the checkpoint's: {"path": "..."}
    config.batch_size = 250  # images per forward pass
    config.validation_fraction = 0.2  # of the training images, to choose C; then all are used
    config.seed = 0  # of that split
    config.controls = True  # also probe the random initialisation, and raw pixels
    config.candidates = (0.001, 0.01, 0.1, 1.0)  # of C, 1 / strength of the L2 term
    return config
