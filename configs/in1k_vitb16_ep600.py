"""ViT-B/16 on ImageNet-1k, 600 epochs (Assran et al., 2023): in1k_vith14_ep300.py, but smaller.

The reference's file for this run is not public; the recipe is taken to be that of ViT-H/14.
What makes it faster on TPUs: docs/pods.md.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size

from .in1k_vith14_ep300 import get_config as published


def get_config() -> ml_collections.ConfigDict:
    config = published()
    encoder, predictor = vit_size("b")
    config.model.update(encoder)
    config.objective.predictor.update(predictor)
    config.epochs = 600
    config.model.patch_size = 16  # a 14 x 14 grid
    config.compute.remat = "none"  # 128 images fit into 80 GB as they are
    # Of 196: what 128 images per device leave of it in the reference, as measured.
    config.objective.masks.context_tokens = 51
    config.mesh.fsdp = 1  # the whole state is 1.5 GB
    return config
