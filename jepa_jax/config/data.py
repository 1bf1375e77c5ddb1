"""The configuration of the data."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from jepa_jax.config.schema import (
    AboveZero,
    Bound,
    Positive,
    Ratio,
    Scale,
    Share,
    ShareAboveZero,
    at_least,
)
from jepa_jax.errors import UserError


def _stays_below(name: str) -> bool:
    path = pathlib.PurePath(name)
    return not path.is_absolute() and ".." not in path.parts


Split = Annotated[str, Bound("stay within config.data.path", _stays_below)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """A part of the training images; exactly one of the first three."""

    share: ShareAboveZero | None = None  # of each class's images, at least one
    per_class: Positive | None = None  # images of each class
    # A text file with the name of an image in each line, as "n01440764_10043.JPEG", with as much of
    # its folders as it takes to tell it from others.
    files: str | None = None
    seed: Annotated[int, at_least(0)] = 0  # of the draw; another one gives another split

    def check(self, field: str = "config.data.subset") -> None:
        """Refuses none or several; see `config.resolve`."""
        given = [n for n in ("share", "per_class", "files") if getattr(self, n) is not None]
        if len(given) != 1:
            raise UserError(
                f"{field}: sets {', '.join(given) or 'nothing'}; must set exactly one "
                "of share, per_class and files"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowShotConfig:
    """Few labels, in several draws; as in `SubsetConfig`, exactly one of the first three.

    A probe's hyper-parameter is chosen on a part of the few, unless there is but one candidate.
    """

    share: ShareAboveZero | None = None  # of each class's training images
    per_class: Positive | None = None
    files: str | None = None  # a list of names, which is but one split
    splits: Positive = 1  # split i is drawn with the probe's seed + i

    def subset(self, seed: int) -> SubsetConfig:
        """The images of one split."""
        return SubsetConfig(share=self.share, per_class=self.per_class, files=self.files, seed=seed)

    def check(self) -> None:
        """Refuses none or several, and several splits of a list."""
        self.subset(0).check("config.low_shot")
        if self.files is not None and self.splits > 1:
            raise UserError(
                f"config.low_shot.splits = {self.splits}: must be 1 with config.low_shot.files, "
                "which lists one split"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: Literal[
        "fashion_mnist",
        "cluttered_fashion_mnist",
        "folder",
        "shards",
        "numpy",
        "tfds",
        "synthetic",
    ]
    # folder, shards, numpy (see docs/data.md): the path; tfds: the data set's name; synthetic: how
    # many images; the others are bundled
    path: str | None = None
    tfds_dir: str | None = None  # tfds: where data sets are prepared; None: where TFDS looks
    # folder, shards: a sub-folder, None for the folder itself; tfds: a split; others: "train" ...
    train_split: Split | None = "train"
    test_split: Split | None = "test"  # ... or "test"; read by the probes only
    # tfds: the feature that is the label, or "clevr_count" or "clevr_distance" (see
    # sources/tfds_labels.py); None: "label", or the only class label
    label: str | None = None
    subset: SubsetConfig | None = None  # of the training images; None: all of them
    image_size: tuple[Positive, Positive]  # height, width in pixels, after cropping and resizing
    crop_scale: Scale = (0.3, 1.0)  # random-resized-crop: share of the image's area
    crop_aspect_ratio: Ratio = (3 / 4, 4 / 3)  # random-resized-crop: width / height
    eval_crop: ShareAboveZero = 1.0  # probes: the centre crop's side, of the largest that fits
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of resizing; antialiased
    # JPEGs at 1/2, 1/4 or 1/8 of their size where that suffices: other pixels, by a little, and a
    # camera's images in 0.6 of the time.
    reduced_decoding: bool = False
    # Share of the images that may be bad and be replaced by the next good ones; above, it stops.
    bad_share: Share = 0.01
    mean: tuple[float, ...]  # of each channel's pixels in 0..1, for normalisation
    std: tuple[AboveZero, ...]

    @property
    def channels(self) -> int:
        """Of the images as the model sees them; 0: not known yet."""
        return len(self.mean)
