"""I-JEPA on your own images: 300 to 100,000 of them, on two cores or one GPU.

    python -m jepa_jax.train --config configs/photos.py --workdir runs/photos \\
        --config.data.path=photos

DIR/train/<class>/*.jpg, or DIR/train/*.jpg without classes. Epochs, warm-up, momentum, the number
of context tokens and the normalisation follow from the images. On a GPU a larger model, on larger
images: --config.model.size=s --config.data.image_size=224,224 --config.model.patch_size=16
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.images_seen = 100_000  # epochs follow: 34 of 3,000 images, 4 of 30,000
    config.batch_size = 64  # images per optimizer step
    config.data = {
        "source": "folder",
        "image_size": (96, 96),
        "mean": None,  # measured on the training images
        "std": None,
        "reduced_decoding": True,  # a camera's JPEGs are many times larger than image_size
    }
    config.model = {
        "size": "mini",  # for a CPU; on a GPU: ti, s, b
        "patch_size": 12,  # an 8 x 8 grid
    }
    # What follows differs from the published recipe: docs/results/small_recipes.md says why.
    config.init = {"std": 0.06}
    config.objective = {
        "name": "ijepa",
        "target_norm": "batch",
        "regularizer": {"name": "variance_covariance"},
        "masks": {"context_share": 0.3},  # of the grid's patches
        # A fixed momentum would leave a short run's target at its random start.
        "ema": {"kept_share": 1e-3},
    }
    config.optimizer = {"lr": 1.5e-3, "warmup_share": 0.1, "final_weight_decay": 0.05}
    config.compute = {"scan_layers": False}
    config.logging = {
        "diagnostics_every_steps": 50,
        "knn_every_steps": 500,  # with the next, under 3 % of the run's time
        "linear_every_steps": 500,
    }
    return config
