"""ViT-H/14 on ImageNet-1k, 300 epochs: the main published run (Assran et al., 2023).

    python -m jepa_jax.train --config configs/in1k_vith14_ep300.py --workdir DIR \
        --config.data.path=/data/imagenet

with /data/imagenet/train/CLASS/*.JPEG and /data/imagenet/val/CLASS/*.JPEG. What it needs, before
any of it is there: `--plan --topology v5e:16x16` in place of `--workdir DIR`.

The numbers are those that the published code ran with; the paper's text says 15 warm-up epochs, a
start at 1e-4 and a linear ramp of the weight decay. Five neighbours start from this file.
"""

import ml_collections

from jepa_jax.models.sizes import vit_size


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    encoder, predictor = vit_size("h")
    config.seed = 0
    config.epochs = 300
    config.batch_size = 2048  # images per optimizer step, over all devices; published: 16 x 128

    config.data = ml_collections.ConfigDict()
    config.data.source = "folder"
    config.data.path = ""  # give it: --config.data.path=/data/imagenet
    config.data.train_split = "train"
    config.data.test_split = "val"
    config.data.image_size = (224, 224)  # height, width in pixels: a 16 x 16 grid
    config.data.crop_scale = (0.3, 1.0)  # share of the image's area
    config.data.crop_aspect_ratio = (3 / 4, 4 / 3)  # width / height
    config.data.eval_crop = 0.875  # 224 of 256 pixels, as is usual on ImageNet
    config.data.mean = (0.485, 0.456, 0.406)  # of ImageNet's pixels, in 0..1
    config.data.std = (0.229, 0.224, 0.225)

    config.model = ml_collections.ConfigDict(encoder)  # width, depth, heads, MLP ratio
    config.model.patch_size = 14  # pixels
    config.model.drop_path_rate = 0.0
    config.model.dtype = "bfloat16"  # of the matrix products; parameters stay float32
    # What the published 16 devices need for 128 images each; with fewer a device, "none" is faster.
    config.model.remat = "dots"
    config.model.scan_layers = True  # 32 blocks: unrolled they take minutes to compile

    config.predictor = ml_collections.ConfigDict(predictor)

    config.init = ml_collections.ConfigDict()
    config.init.std = 0.02
    config.init.depth_rescale = False  # the published code means to, but undoes it

    config.masks = ml_collections.ConfigDict()
    # Of 256. The published code cuts each context to the smallest of its device's 128 images, which
    # leaves 69 on average; `published = True` also keeps the first ones, as it does.
    config.masks.context_tokens = 69
    config.masks.context_scale = (0.85, 1.0)
    config.masks.num_targets = 4
    config.masks.target_scale = (0.15, 0.2)
    config.masks.target_aspect_ratio = (0.75, 1.5)  # height / width
    config.masks.allow_overlap = False
    config.masks.published = False

    config.objective = ml_collections.ConfigDict()
    config.objective.name = "ijepa"
    config.objective.loss = "l2"  # as in the paper; the published weights used "smooth_l1"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.start_lr = 2e-4
    config.optimizer.lr = 1e-3
    config.optimizer.final_lr = 1e-6
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.reference_batch_size = 0  # the rates are for this batch size
    config.optimizer.weight_decay = 0.04
    config.optimizer.final_weight_decay = 0.4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 0.0  # no clipping
    config.optimizer.ipe_scale = 1.0  # in all four published configurations
    config.optimizer.accumulation_steps = 1

    config.ema = ml_collections.ConfigDict()
    config.ema.start_momentum = 0.996
    config.ema.final_momentum = 1.0

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # all that fsdp leaves: 2 of 16 devices, 32 of 256
    config.mesh.fsdp = 8  # the GPUs of a host; see benchmarks/PLAN.md for what fits where
    config.mesh.tensor = 1

    config.logging = ml_collections.ConfigDict()
    config.logging.every_steps = 50  # an epoch of ImageNet-1k has 625
    config.logging.diagnostics_every_steps = 625
    config.logging.knn_every_steps = 0  # probe checkpoints instead, elsewhere

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 1250  # two epochs
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every_steps = 31_250  # 50 epochs
    return config
