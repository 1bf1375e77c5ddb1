"""The configuration of each objective. `config.objective.name` says which one it is."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from jepa_jax.config.augmentation import AugmentationConfig
from jepa_jax.config.schema import (
    AboveZero,
    NotNegative,
    Positive,
    Ratio,
    Scale,
    Share,
    ShareBelowOne,
    ShareBetween,
    at_least,
)
from jepa_jax.errors import UserError

if TYPE_CHECKING:
    from jepa_jax.config.run import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Multi-block masks (Assran et al., 2023, section 3)."""

    context_tokens: Positive  # K: patches that the context encoder sees, exactly
    context_scale: Scale = (0.85, 1.0)  # share of the grid's area; aspect ratio 1
    num_targets: Positive = 4  # M
    target_scale: Scale = (0.15, 0.2)
    target_aspect_ratio: Ratio = (0.75, 1.5)  # height / width
    allow_overlap: bool = False  # let the context see patches of the targets
    published: bool = False  # the reference's off-by-one corners and raster-order truncation


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    embed_dim: Positive
    depth: Positive  # transformer blocks
    num_heads: Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    start_momentum: Share = 0.996  # of the target encoder, rising linearly ...
    final_momentum: Share = 1.0  # ... to this
    # In place of `start_momentum`, which then follows from the number of steps: the share of its
    # start that the target keeps at the schedules' end, the product of all momenta. At .996, a run
    # of 60 steps keeps 89 %, one of 460 steps 40 %, and one of 3,700 steps 0.06 %.
    kept_share: ShareBetween | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceCovarianceConfig:
    """VICReg's two terms on the context encoder's features (C-JEPA: Mo & Tong, 2024)."""

    name: Literal["variance_covariance"] = "variance_covariance"
    variance_weight: NotNegative = 0.2
    # Five times VICReg's share beside the variance; docs/results/small_recipes.md says why.
    covariance_weight: NotNegative = 0.04


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigregConfig:
    """SIGReg on the context encoder's features (LeJEPA: Balestriero & LeCun, 2025)."""

    name: Literal["sigreg"] = "sigreg"
    weight: AboveZero = 0.2  # of the statistic divided by the number of images
    num_directions: Positive = 256  # drawn anew at each step


@dataclasses.dataclass(frozen=True, kw_only=True)
class IJepaConfig:
    """I-JEPA (Assran et al., 2023)."""

    name: Literal["ijepa"] = "ijepa"
    loss: Literal["l2", "smooth_l1"] = "l2"  # as in the paper; published weights: "smooth_l1"
    # How the targets are standardised: each token over its features, as published, or each feature
    # over the images of the batch, at each position: then what all images share at a position (most
    # of a small model's features) is not there to be predicted.
    target_norm: Literal["layer_norm", "batch"] = "layer_norm"
    # Keeps the mean of the context encoder's tokens from collapsing; None, as published: nothing.
    regularizer: VarianceCovarianceConfig | SigregConfig | None = None
    masks: MaskConfig
    predictor: PredictorConfig
    ema: EmaConfig = EmaConfig()

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        grid = config.grid
        check_width("objective.predictor", self.predictor.embed_dim, self.predictor.num_heads)
        if self.ema.kept_share is not None and self.ema.final_momentum != 1.0:
            raise UserError(
                f"config.objective.ema.final_momentum = {self.ema.final_momentum}: must be 1.0 "
                "with config.objective.ema.kept_share"
            )
        if self.masks.context_tokens > grid[0] * grid[1]:
            raise UserError(
                f"config.objective.masks.context_tokens = {self.masks.context_tokens}: the grid "
                f"has only {grid[0]} x {grid[1]} = {grid[0] * grid[1]} patches"
            )


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """Masked autoencoder (He et al., 2022)."""

    name: Literal["mae"] = "mae"
    # Share of the patches that are hidden; int(N * (1 - mask_ratio)) are seen.
    mask_ratio: ShareBelowOne = 0.75
    normalize_pixels: bool = True  # each patch's own mean and standard deviation (section 4.1)
    decoder: PredictorConfig
    augmentation: AugmentationConfig = AugmentationConfig(flip=0.5)

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        grid = config.grid
        check_width("objective.decoder", self.decoder.embed_dim, self.decoder.num_heads)
        num_patches = grid[0] * grid[1]
        if not 0 < int(num_patches * (1 - self.mask_ratio)) < num_patches:
            raise UserError(
                f"config.objective.mask_ratio = {self.mask_ratio}: must leave at least one of the "
                f"{grid[0]} x {grid[1]} patches visible, and hide at least one"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VicregConfig:
    """VICReg (Bardes et al., 2022)."""

    name: Literal["vicreg"] = "vicreg"
    invariance_weight: NotNegative = 25.0
    variance_weight: NotNegative = 25.0  # of the mean of both views' terms
    covariance_weight: NotNegative = 1.0  # of the sum of both views' terms
    expander_dim: Positive = 8192  # width of all three layers
    # Of the first view and of the second (BYOL's, which the paper takes over).
    augmentation: AugmentationConfig = AugmentationConfig(
        flip=0.5, jitter=0.8, grayscale=0.2, blur=1.0
    )
    second_augmentation: AugmentationConfig = AugmentationConfig(
        flip=0.5, jitter=0.8, grayscale=0.2, blur=0.1, solarize=0.2
    )

    def check(self, config: "Config") -> None:
        """Nothing to fit; see `config.resolve`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwavConfig:
    """SwAV (Caron et al., 2020). The two large crops are those of `config.data`."""

    name: Literal["swav"] = "swav"
    num_prototypes: Positive = 3000  # K
    hidden_dim: Positive = 2048  # of the projector
    output_dim: Positive = 128  # E, of what is compared with the prototypes
    temperature: AboveZero = 0.1
    epsilon: AboveZero = 0.05  # entropy of the assignments
    sinkhorn_iterations: Positive = 3
    freeze_prototypes_steps: Annotated[int, at_least(0)] = 313  # at the start
    # Embeddings of earlier batches, L, where the batch is smaller than K; published: 3840 for
    # batches of 256, from epoch 15 on. 0: none.
    queue_length: Annotated[int, at_least(0)] = 0
    queue_start_step: Annotated[int, at_least(0)] = 0  # when it begins to be filled
    num_local: Annotated[int, at_least(0)] = 6  # small crops
    local_size: tuple[Positive, Positive] = (96, 96)  # height, width in pixels
    local_crop_scale: Scale = (0.05, 0.14)  # share of the image's area
    augmentation: AugmentationConfig = AugmentationConfig(
        flip=0.5,
        jitter=0.8,
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        grayscale=0.2,
        blur=0.5,
    )

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        if self.num_local:
            check_patches("objective.local_size", self.local_size, config.model.patch_size)


ObjectiveConfig = IJepaConfig | SupervisedConfig | MaeConfig | VicregConfig | SwavConfig


def check_width(section: str, width: int, num_heads: int) -> None:
    """Refuses a width that its positions or its attention heads do not divide.

    Raises:
      UserError: with the field.
    """
    if width % 4:
        raise UserError(
            f"config.{section}.embed_dim = {width}: must be a positive multiple of 4 "
            "(sine and cosine of two coordinates)"
        )
    if width % num_heads:
        raise UserError(
            f"config.{section}.num_heads = {num_heads}: must divide config.{section}.embed_dim = "
            f"{width}"
        )


def check_patches(field: str, size: tuple[int, int], patch_size: int) -> None:
    """Refuses a height or width in pixels that patches do not fill.

    Raises:
      UserError: with the field and the side.
    """
    for side, pixels in zip(("height", "width"), size, strict=True):
        if pixels % patch_size:
            raise UserError(
                f"config.{field} = {size}: the {side} must be a positive multiple of "
                f"config.model.patch_size = {patch_size}"
            )
