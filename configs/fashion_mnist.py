"""I-JEPA in its published form on the bundled Fashion-MNIST images, minutes on a laptop's CPU.

With so little data other targets learn more: see quickstart.py.
"""

import ml_collections

# For the objectives that augment. Grey images of 28 pixels: of the published changes, brightness,
# contrast and solarization are left. No flip: the bundled clothes all point one way.
GREY = {"flip": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "blur": 0.0}


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.epochs = 24
    config.batch_size = 64  # images per optimizer step
    config.data = {
        "source": "fashion_mnist",  # 10,000 training and 2,000 test images, in the package
        "image_size": (28, 28),
        "mean": (0.286, 0.286, 0.286),  # of the training images
        "std": (0.354, 0.354, 0.354),
    }
    config.model = {
        "patch_size": 4,  # a 7 x 7 grid
        "embed_dim": 64,
        "depth": 3,
        "num_heads": 2,
    }
    # The published 0.02 is for 12 to 22 times this width: here a patch's content is then so faint
    # beside its position that the features collapse onto positions (an effective rank of 3 to 4).
    config.init = {"std": 0.025}
    config.objective = {
        "name": "ijepa",
        "masks": {"context_tokens": 14},  # of 49 patches
        "predictor": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    }
    config.optimizer = {"lr": 1.5e-3, "warmup_epochs": 2.0, "final_weight_decay": 0.05}
    config.compute = {"scan_layers": False}  # three blocks compile fast enough unrolled
    config.logging = {
        "diagnostics_every_steps": 50,
        "knn_every_steps": 500,  # with the next, under 3 % of the run's time
        "linear_every_steps": 500,
    }
    return config
