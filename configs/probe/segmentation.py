"""Semantic segmentation from frozen tokens: a linear head on each patch, enlarged bilinearly."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.protocol = "segmentation"
    config.data = {}  # fields of config.data that differ from the checkpoint's: {"path": "..."}
    config.target = "segmentation"  # name of the maps of classes, 255: none; see docs/evaluation.md
    config.blocks = "last"  # or last_four: their tokens, concatenated
    config.batch_size = 16  # images per forward pass, and per step of the heads
    config.epochs = 10
    config.lr = (0.01, 0.001, 0.0001)  # AdamW's, to choose from; a cosine to 0
    config.weight_decay = 0.0001
    config.validation_fraction = 0.1  # of the training images, to choose the rate
    config.seed = 0  # of that split, and of the images' order
    config.controls = True  # also the random initialisation, and the pixels of each patch
    return config
