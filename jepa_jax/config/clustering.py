"""The configuration of the objectives that compare assignments to prototypes: SwAV, DINO, MSN."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from jepa_jax.config.augmentation import FIRST_VIEW, SECOND_VIEW, STRONG, AugmentationConfig
from jepa_jax.config.checks import check_patches
from jepa_jax.config.ema import COSINE, LINEAR, EmaConfig
from jepa_jax.config.schema import (
    AboveZero,
    NotNegative,
    Positive,
    Scale,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    at_least,
)
from jepa_jax.errors import UserError

if TYPE_CHECKING:
    from jepa_jax.config.run import Config


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
    augmentation: AugmentationConfig = STRONG

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        if self.num_local:
            check_patches("objective.local_size", self.local_size, config.model.patch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """DINO (Caron et al., 2021). The two large crops are those of `config.data`."""

    name: Literal["dino"] = "dino"
    num_prototypes: Positive = 65536  # K, the last layer's outputs
    hidden_dim: Positive = 2048  # of the projector, whose hidden layers are two
    output_dim: Positive = 256  # of the projector, before the last layer
    # In the projector; off in the published runs. Small ones need it: at their start all images
    # have nearly the same embedding, and the student learns that before the center is known.
    batch_norm: bool = False
    temperature: AboveZero = 0.1  # of the student
    # Of the teacher: from this along a straight line to the next, over a share of the horizon.
    start_teacher_temperature: AboveZero = 0.04
    teacher_temperature: AboveZero = 0.04
    teacher_warmup_share: Share = 0.0
    # Of the teacher's mean output, the center, which is taken from its outputs. 1: none, since it
    # starts at 0; then the features collapse, so for ablations alone.
    center_momentum: Share = 0.9
    freeze_prototypes_steps: Annotated[int, at_least(0)] = 2502  # at the start: an epoch
    ema: EmaConfig = COSINE
    num_local: Annotated[int, at_least(0)] = 8  # small crops
    local_size: tuple[Positive, Positive] = (96, 96)  # height, width in pixels
    local_crop_scale: Scale = (0.05, 0.4)  # share of the image's area
    # Of the first large crop, of the second, and of the small ones.
    augmentation: AugmentationConfig = FIRST_VIEW
    second_augmentation: AugmentationConfig = SECOND_VIEW
    local_augmentation: AugmentationConfig = AugmentationConfig(
        flip=0.5, jitter=0.8, grayscale=0.2, blur=0.5
    )

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        self.ema.check()
        if self.num_local:
            check_patches("objective.local_size", self.local_size, config.model.patch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MsnConfig:
    """MSN (Assran et al., 2022). The target and the large anchor are crops of `config.data`."""

    name: Literal["msn"] = "msn"
    num_prototypes: Positive = 1024  # K
    hidden_dim: Positive = 2048  # of the projector, whose hidden layers are two
    output_dim: Positive = 256
    temperature: AboveZero = 0.1  # of the anchors
    sharpening: ShareAboveZero = 0.25  # T: the targets are p^(1/T), normalised
    sinkhorn_iterations: Annotated[int, at_least(0)] = 3  # on the targets; 0: none
    entropy_weight: NotNegative = 1.0  # of log K less the entropy of the mean prediction
    mask_ratio: ShareBelowOne = 0.15  # share of the large anchor's patches that are left out
    ema: EmaConfig = LINEAR
    num_local: Annotated[int, at_least(0)] = 10  # small anchors, of which no patch is left out
    local_size: tuple[Positive, Positive] = (96, 96)  # height, width in pixels
    local_crop_scale: Scale = (0.05, 0.3)  # share of the image's area
    augmentation: AugmentationConfig = AugmentationConfig(
        flip=0.5, jitter=0.8, saturation=0.4, grayscale=0.2, blur=0.5
    )

    def check(self, config: "Config") -> None:
        """Numbers that must fit each other; see `config.resolve`."""
        self.ema.check()
        if self.num_local:
            check_patches("objective.local_size", self.local_size, config.model.patch_size)
        rows, columns = config.grid
        if int(rows * columns * (1 - self.mask_ratio)) < 1:
            raise UserError(
                f"config.objective.mask_ratio = {self.mask_ratio}: must leave at least one of the "
                f"{rows} x {columns} patches"
            )
