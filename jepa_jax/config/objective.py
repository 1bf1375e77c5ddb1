"""The configuration of an objective. `config.objective.name` says which one it is."""

import dataclasses
from typing import TYPE_CHECKING, Literal

from jepa_jax.config.augmentation import AugmentationConfig
from jepa_jax.config.clustering import DinoConfig, MsnConfig, SwavConfig
from jepa_jax.config.invariance import ByolConfig, LejepaConfig, SimclrConfig, VicregConfig
from jepa_jax.config.prediction import Data2vecConfig, IJepaConfig, MaeConfig
from jepa_jax.config.schema import NotNegative, Positive, ShareBelowOne

if TYPE_CHECKING:
    from jepa_jax.config.run import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Classification with labels: the control (Dosovitskiy et al., 2021), and fine-tuning."""

    name: Literal["supervised"] = "supervised"
    num_classes: Positive  # labels are 0 .. num_classes - 1
    label_smoothing: ShareBelowOne = 0.1  # share of the target spread over all classes
    # Of Beta(alpha, alpha); 0: off. If both are on, each step is one of the two.
    mixup: NotNegative = 0.0  # alpha of the share (Zhang et al., 2018)
    cutmix: NotNegative = 0.0  # alpha of the box's share of the area (Yun et al., 2019)
    # Momentum of a moving average of encoder and head, which is what classifies then; None: none.
    ema: ShareBelowOne | None = None
    augmentation: AugmentationConfig = AugmentationConfig(flip=0.5)

    def check(self, config: "Config") -> None:
        """Nothing to fit; see `config.resolve`."""


ObjectiveConfig = (
    IJepaConfig
    | SupervisedConfig
    | MaeConfig
    | VicregConfig
    | SwavConfig
    | SimclrConfig
    | ByolConfig
    | LejepaConfig
    | DinoConfig
    | MsnConfig
    | Data2vecConfig
)
