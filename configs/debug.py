"""The quickstart's model on one batch, learnt by heart in a minute on a CPU, with NaN checks."""

import ml_collections
from fashion_mnist import get_config as quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart()
    config.debug = True
    config.epochs = 1
    config.batch_size = 50  # 200 steps
    config.optimizer.warmup_epochs = 0.1
    config.ema.start_momentum = 0.99  # at 0.996 the targets hardly move in 200 steps
    config.logging.update({"every_steps": 10, "diagnostics_every_steps": 10, "knn_every_steps": 0})
    return config
