"""Fine-tuning on 1 % of the labels, as I-JEPA of ViT-H (Assran et al., 2023, appendix A.2)."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.protocol = "fine_tune"
    # Of each class's training images; or per_class; or files, a list of names as the published one.
    config.low_shot = {"share": 0.01, "splits": 1}
    config.seed = 0  # of the first; the next one's is 1
    # Fields of config.data that differ from the checkpoint's: {"path": "..."}
    config.data = {"crop_scale": (0.08, 1.0)}
    config.controls = True  # also from scratch, as long; and a linear probe of raw pixels
    config.flip = 0.5
    config.rand_augment = 9.0  # magnitude; None: off
    config.epochs = 50
    config.batch_size = 512
    config.lr = 3e-5
    config.warmup_epochs = 5.0
    config.weight_decay = 0.4  # of ViT-L/16: 0.05
    config.layer_decay = 0.75
    config.label_smoothing = 0.1
    return config
