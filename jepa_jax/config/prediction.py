"""The configuration of the objectives that predict what is hidden: I-JEPA, data2vec, MAE."""

import dataclasses
from typing import TYPE_CHECKING, Literal

from jepa_jax.config.augmentation import AugmentationConfig
from jepa_jax.config.checks import check_width
from jepa_jax.config.ema import DATA2VEC, LINEAR, EmaConfig
from jepa_jax.config.schema import (
    AboveZero,
    NotNegative,
    Positive,
    Ratio,
    Scale,
    ShareBelowOne,
    ShareBetween,
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
    ema: EmaConfig = LINEAR

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        grid = config.grid
        check_width("objective.predictor", self.predictor.embed_dim, self.predictor.num_heads)
        self.ema.check()
        if self.masks.context_tokens > grid[0] * grid[1]:
            raise UserError(
                f"config.objective.masks.context_tokens = {self.masks.context_tokens}: the grid "
                f"has only {grid[0]} x {grid[1]} = {grid[0] * grid[1]} patches"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data2vecConfig:
    """data2vec for images (Baevski et al., 2022, sections 3 and 4.1)."""

    name: Literal["data2vec"] = "data2vec"
    # Share of the patches that are replaced by the mask token: 120 of 196, as published.
    mask_ratio: ShareBetween = 0.6125
    min_block_patches: Positive = 16  # of a masked block (Bao et al., 2022)
    block_aspect_ratio: Ratio = (0.3, 1 / 0.3)  # height / width
    top_blocks: Positive = 6  # K: the last blocks of the target encoder, which are averaged
    # What is standardised without parameters, over the features of a token: the average of the
    # blocks' outputs, as the paper's code for images does, or each block's output before they are
    # averaged (section 3.3).
    target_norm: Literal["average", "blocks"] = "average"
    beta: AboveZero = 2.0  # of the smooth L1 loss
    ema: EmaConfig = DATA2VEC
    augmentation: AugmentationConfig = AugmentationConfig(flip=0.5)

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        self.ema.check()
        rows, columns = config.grid
        num_masked = int(rows * columns * self.mask_ratio)
        if not 0 < num_masked < rows * columns:
            raise UserError(
                f"config.objective.mask_ratio = {self.mask_ratio}: must hide at least one of the "
                f"{rows} x {columns} patches, and not all"
            )
        if self.min_block_patches > num_masked:  # no block fits: all would be single patches
            raise UserError(
                f"config.objective.min_block_patches = {self.min_block_patches}: must be at most "
                f"{num_masked}, the patches of the {rows} x {columns} that are masked"
            )
        if self.top_blocks > config.model.depth:
            raise UserError(
                f"config.objective.top_blocks = {self.top_blocks}: must be at most "
                f"config.model.depth = {config.model.depth}"
            )


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
