"""I-JEPA on CIFAR-10's 50,000 colour images of 32 x 32 pixels, from TFDS or from image folders.

TFDS downloads it on the first run. From folders `DIR/train/<class>/*` and `DIR/test/<class>/*`:
    --config.data.source=folder --config.data.path=DIR
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.epochs = 12
    config.batch_size = 128  # images per optimizer step
    config.data = {
        "source": "tfds",
        "path": "cifar10",
        "image_size": (32, 32),
        "mean": (0.491, 0.482, 0.447),  # of the training images
        "std": (0.247, 0.243, 0.262),
    }
    config.model = {"size": "mini", "patch_size": 4}  # an 8 x 8 grid
    # What follows differs from the published recipe: docs/results/small_recipes.md says why.
    config.init = {"std": 0.06}
    config.objective = {
        "name": "ijepa",
        "target_norm": "batch",
        "regularizer": {"name": "variance_covariance"},
        "masks": {"context_share": 0.3},  # of the 64 patches
        "ema": {"kept_share": 1e-3},
    }
    config.optimizer = {"lr": 1.5e-3, "warmup_epochs": 2.0, "final_weight_decay": 0.05}
    config.compute = {"scan_layers": False}  # four blocks compile fast enough unrolled
    config.logging = {
        "diagnostics_every_steps": 200,
        "knn_every_steps": 2000,  # with the next, under 3 % of the run's time
        "linear_every_steps": 2000,
    }
    return config
