"""k-nearest-neighbour probe: majority vote among standardised, average-pooled features."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.protocol = "knn"
    config.data = {}  # fields of config.data that differ from the checkpoint's: {"path": "..."}
    config.batch_size = 250  # images per forward pass
    config.validation_fraction = 0.2  # of the training images, to choose k; then all are used
    config.seed = 0  # of that split
    config.controls = True  # also probe the random initialisation, and raw pixels
    config.candidates = (1, 5, 10, 20, 50)  # values of k to choose from
    return config
