"""I-JEPA on CIFAR-10's 50,000 colour images of 32 x 32 pixels, from TFDS or from image folders.

TFDS downloads it on the first run. From folders `DIR/train/<class>/*` and `DIR/test/<class>/*`:
    --config.data.source=folder --config.data.path=DIR
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.epochs = 20
    config.batch_size = 128  # images per optimizer step

    config.data = ml_collections.ConfigDict()
    config.data.source = "tfds"
    config.data.path = "cifar10"
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.image_size = (32, 32)  # height, width in pixels
    config.data.crop_scale = (0.3, 1.0)  # share of the image's area
    config.data.crop_aspect_ratio = (3 / 4, 4 / 3)  # width / height
    config.data.eval_crop = 1.0  # probes see the whole image
    config.data.mean = (0.491, 0.482, 0.447)  # of the training images, in 0..1
    config.data.std = (0.247, 0.243, 0.262)

    config.model = ml_collections.ConfigDict()
    config.model.patch_size = 4  # pixels: an 8 x 8 grid
    config.model.embed_dim = 96
    config.model.depth = 4
    config.model.num_heads = 3
    config.model.mlp_ratio = 4.0
    config.model.drop_path_rate = 0.0
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.scan_layers = False  # four blocks compile fast enough unrolled

    config.predictor = ml_collections.ConfigDict()
    config.predictor.embed_dim = 48
    config.predictor.depth = 2
    config.predictor.num_heads = 3

    config.init = ml_collections.ConfigDict()
    config.init.std = 0.025  # the published 0.02 is for much wider models; see fashion_mnist.py
    config.init.depth_rescale = False

    config.masks = ml_collections.ConfigDict()
    config.masks.context_tokens = 18  # of 64 patches
    config.masks.context_scale = (0.85, 1.0)
    config.masks.num_targets = 4
    config.masks.target_scale = (0.15, 0.2)
    config.masks.target_aspect_ratio = (0.75, 1.5)  # height / width
    config.masks.allow_overlap = False
    config.masks.published = False

    config.objective = ml_collections.ConfigDict()
    config.objective.name = "ijepa"
    config.objective.loss = "l2"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.start_lr = 2e-4
    config.optimizer.lr = 1.5e-3
    config.optimizer.final_lr = 1e-6
    config.optimizer.warmup_epochs = 2.0
    config.optimizer.reference_batch_size = 0  # the rates are for this batch size
    config.optimizer.weight_decay = 0.04
    config.optimizer.final_weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 0.0  # no clipping
    config.optimizer.ipe_scale = 1.0
    config.optimizer.accumulation_steps = 1

    config.ema = ml_collections.ConfigDict()
    config.ema.start_momentum = 0.996
    config.ema.final_momentum = 1.0

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # all devices
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.logging = ml_collections.ConfigDict()
    config.logging.every_steps = 50
    config.logging.diagnostics_every_steps = 200
    config.logging.knn_every_steps = 2000

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every_steps = 0
    return config
