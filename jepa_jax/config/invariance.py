"""The configuration of the objectives whose views agree: VICReg, SimCLR, BYOL, LeJEPA."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from jepa_jax.config.augmentation import FIRST_VIEW, SECOND_VIEW, STRONG, AugmentationConfig
from jepa_jax.config.checks import check_patches
from jepa_jax.config.ema import COSINE, EmaConfig
from jepa_jax.config.schema import (
    AboveZero,
    NotNegative,
    Positive,
    Scale,
    Share,
    at_least,
)
from jepa_jax.errors import UserError

if TYPE_CHECKING:
    from jepa_jax.config.run import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class VicregConfig:
    """VICReg (Bardes et al., 2022)."""

    name: Literal["vicreg"] = "vicreg"
    invariance_weight: NotNegative = 25.0
    variance_weight: NotNegative = 25.0  # of the mean of both views' terms
    covariance_weight: NotNegative = 1.0  # of the sum of both views' terms
    # Normalisations on which forks disagree; these two are the paper's code's. Of the variance
    # terms of both views: their mean, or, as in solo-learn, their sum.
    variance_over_views: Literal["mean", "sum"] = "mean"
    # What divides the sum of squared covariances: the width D, or, as in EB-JEPA, D (D - 1).
    covariance_divisor: Literal["width", "pairs"] = "width"
    expander_dim: Positive = 8192  # width of all three layers
    # Of the first view and of the second (BYOL's, which the paper takes over).
    augmentation: AugmentationConfig = FIRST_VIEW
    second_augmentation: AugmentationConfig = SECOND_VIEW

    def check(self, config: "Config") -> None:
        """Nothing to fit; see `config.resolve`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimclrConfig:
    """SimCLR (Chen et al., 2020)."""

    name: Literal["simclr"] = "simclr"
    temperature: AboveZero = 0.1
    hidden_dim: Positive = 2048  # of the projector
    output_dim: Positive = 256
    augmentation: AugmentationConfig = STRONG

    def check(self, config: "Config") -> None:
        """Nothing to fit; see `config.resolve`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByolConfig:
    """BYOL (Grill et al., 2020)."""

    name: Literal["byol"] = "byol"
    hidden_dim: Positive = 4096  # of projector and predictor
    output_dim: Positive = 256
    # Without it the features collapse (Grill et al., 2020, table 5b): for ablations alone.
    use_predictor: bool = True
    ema: EmaConfig = COSINE
    augmentation: AugmentationConfig = FIRST_VIEW
    second_augmentation: AugmentationConfig = SECOND_VIEW

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        del config
        self.ema.check()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LejepaConfig:
    """LeJEPA (Balestriero & LeCun, 2025). The large crops are those of `config.data`."""

    name: Literal["lejepa"] = "lejepa"
    # lambda, of SIGReg; 1 - lambda of the distance between views.
    regularization: Share = 0.05
    num_directions: Positive = 1024  # of SIGReg, drawn anew at each step
    # Whether the statistic is multiplied by the number of images in a batch, as in the paper's
    # code; lambda then depends on the batch size.
    times_batch_size: bool = True
    hidden_dim: Positive = 2048  # of the projector
    output_dim: Positive = 16
    num_global: Positive = 2  # large crops, whose mean all crops are to match
    num_local: Annotated[int, at_least(0)] = 6  # small crops
    local_size: tuple[Positive, Positive] = (96, 96)  # height, width in pixels
    local_crop_scale: Scale = (0.05, 0.3)  # share of the image's area
    augmentation: AugmentationConfig = AugmentationConfig(
        flip=0.5, jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.2
    )

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        if self.num_local:
            check_patches("objective.local_size", self.local_size, config.model.patch_size)
        if self.num_global + self.num_local < 2:
            raise UserError(
                f"config.objective.num_global = {self.num_global}: must be at least 2 without "
                "small crops, or there is nothing to match"
            )
