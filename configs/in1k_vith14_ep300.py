"""ViT-H/14 on ImageNet-1k, 300 epochs: the main published run (Assran et al., 2023).

    python -m jepa_jax.train --config configs/in1k_vith14_ep300.py --workdir DIR \
        --config.data.path=/data/imagenet

with /data/imagenet/train/CLASS/*.JPEG and /data/imagenet/val/CLASS/*.JPEG. What it needs, before
any of it exists: `--plan --topology v5e:16x16` in place of `--workdir DIR`. What makes it faster on
TPUs: docs/pods.md.

The numbers, here and in the defaults of the optimizer, the masks and the moving average, are those
that the reference ran with; the paper's text says 15 warm-up epochs, a start at 1e-4 and a linear
ramp of the weight decay. Five neighbours start from this file.
"""

import ml_collections

from jepa_jax.config.sizes import vit_size


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    encoder, predictor = vit_size("h")
    config.epochs = 300
    config.batch_size = 2048  # images per optimizer step, over all devices; published: 16 x 128
    config.data = {
        "source": "folder",
        "path": None,  # give it: --config.data.path=/data/imagenet
        "test_split": "val",
        "image_size": (224, 224),  # a 16 x 16 grid
        "eval_crop": 0.875,  # 224 of 256 pixels, as is usual on ImageNet
        "mean": (0.485, 0.456, 0.406),  # of ImageNet's pixels
        "std": (0.229, 0.224, 0.225),
    }
    config.model = {**encoder, "patch_size": 14}
    config.objective = {
        "name": "ijepa",
        "loss": "l2",  # as in the paper; the published weights used "smooth_l1"
        # Of 256 patches. The reference cuts each context to the smallest of its device's 128
        # images, which leaves 69 on average; `published` also keeps the first ones, as it does.
        "masks": {"context_tokens": 69, "published": False},
        "predictor": predictor,
    }
    config.compute = {
        "dtype": "bfloat16",
        # About as fast as "none" by the TPU compiler's estimates, in half of the memory, as long as
        # blocks run in a loop; unrolled, "none" is faster. See docs/pods.md and benchmarks/PLAN.md.
        "remat": "dots",
    }
    config.mesh = {"fsdp": 8}  # the GPUs of a host; see benchmarks/PLAN.md for what fits where
    # An epoch of ImageNet-1k has 625 steps. Checkpoints are probed elsewhere.
    config.logging = {"diagnostics_every_steps": 625}
    config.checkpoint = {"every_steps": 1250, "keep_every_steps": 31_250}  # 2 and 50 epochs
    return config
