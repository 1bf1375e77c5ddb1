"""The configuration of the dense probes: a class or a distance for each pixel."""

import dataclasses
from typing import Annotated, Literal

from jepa_jax.config.probe_fields import NotEmpty, ProbeFields
from jepa_jax.config.schema import AboveZero, NotNegative, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig(ProbeFields):
    """A linear head on each patch token of a frozen encoder, trained with AdamW."""

    protocol: Literal["segmentation", "depth"]
    # Where the maps are. tfds: a feature; numpy: `<split>_<target>.npy`, [n, H, W]; folder:
    # `<split>_<target>/`, with a PNG file for each image, called as that is.
    target: str
    target_scale: AboveZero = 1.0  # depth: the stored numbers times this; 0.001: mm to m
    blocks: Literal["last", "last_four"] = "last"  # whose tokens are seen; of four, concatenated
    batch_size: Positive = 16  # images per forward pass, and per step of the heads
    epochs: Positive = 10  # over the training images less those to choose with
    lr: Annotated[tuple[AboveZero, ...], NotEmpty] = (0.01, 0.001, 0.0001)  # to choose from
    weight_decay: NotNegative = 0.0001
