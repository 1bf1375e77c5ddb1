"""The configuration of fine-tuning a pretrained encoder, with labels."""

import dataclasses
from typing import Annotated, Any, Literal

from jepa_jax.config.data import LowShotConfig
from jepa_jax.config.run import Config, resolve
from jepa_jax.config.schema import (
    AboveZero,
    Bound,
    NotNegative,
    Positive,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    at_least,
    from_mapping,
    to_dict,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """The defaults are I-JEPA's recipe for 1 % of ImageNet, of ViT-H (Assran et al., 2023, A.2).

    What the paper does not say is as in MAE's fine-tuning (He et al., 2022, A.1): crops, flip and
    warm-up.
    """

    protocol: Literal["fine_tune"] = "fine_tune"
    low_shot: LowShotConfig | None = None  # None: all labels
    seed: Annotated[int, at_least(0)] = 0
    # Fields of DataConfig that differ from what the checkpoint was trained on.
    data: dict = dataclasses.field(default_factory=lambda: {"crop_scale": (0.08, 1.0)})
    # Also train the encoder from its random initialisation, and a linear probe of raw pixels.
    controls: bool = True
    supervised: str | None = None  # also fine-tune this checkpoint, which saw labels
    flip: Share = 0.5  # probability of a horizontal flip
    epochs: Positive = 50
    batch_size: Positive = 512
    lr: AboveZero = 3e-5  # after the warm-up; from there along a cosine to 0
    warmup_epochs: NotNegative = 5.0
    weight_decay: NotNegative = 0.4
    layer_decay: ShareAboveZero = 0.75
    label_smoothing: ShareBelowOne = 0.1
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    # RandAugment's magnitude, each operation's own being normal around it by 0.5; None: off.
    rand_augment: Annotated[float, Bound("lie in 0..10", lambda x: 0 <= x <= 10)] | None = 9.0
    erase: Share = 0.0  # probability of random erasing
    drop_path_rate: ShareBelowOne = 0.0
    ema: ShareBelowOne | None = None  # momentum of the weights that classify; None: the last ones


def resolve_fine_tune(config: Any) -> FineTuneConfig:
    """Checks the configuration of fine-tuning; see `resolve` for the errors."""
    resolved = from_mapping(FineTuneConfig, config)
    if resolved.low_shot is not None:
        resolved.low_shot.check()
    return resolved


def fine_tuning_run(
    config: FineTuneConfig,
    trained: Config,
    *,
    weights: str,
    network: str,
    num_classes: int,
    split: int,
) -> Config:
    """The run that fine-tunes on one split.

    Args:
      trained: of the checkpoint, whose encoder's shape, data, normalisation and arithmetic are
        taken over.
      weights, network: where its encoder is.

    Raises:
      UserError: as `resolve`.
    """
    fields = to_dict(trained)
    augmentation: dict[str, Any] = {"flip": config.flip, "erase": config.erase}
    if config.rand_augment is not None:
        augmentation["rand_augment"] = {"magnitude": config.rand_augment, "magnitude_std": 0.5}
    subset = None if config.low_shot is None else config.low_shot.subset(config.seed + split)
    return resolve(
        {
            "seed": config.seed + split,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "data": fields["data"]
            | config.data
            | {"subset": None if subset is None else to_dict(subset)},
            "model": fields["model"] | {"drop_path_rate": config.drop_path_rate},
            "init": {"weights": weights, "network": network},
            "objective": {
                "name": "supervised",
                "num_classes": num_classes,
                "label_smoothing": config.label_smoothing,
                "mixup": config.mixup,
                "cutmix": config.cutmix,
                "ema": config.ema,
                "augmentation": augmentation,
            },
            "optimizer": {
                "start_lr": 0.0,
                "lr": config.lr,
                "final_lr": 0.0,
                "warmup_epochs": config.warmup_epochs,
                "weight_decay": config.weight_decay,
                "final_weight_decay": config.weight_decay,
                "layer_decay": config.layer_decay,
            },
            "compute": fields["compute"],
        }
    )
