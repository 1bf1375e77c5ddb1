"""Small pictures side by side in one PNG, as an image for a page that may be a phone's."""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image

_SIDE, _GAP = 120, 6  # least pixels of a tile's shorter side; between tiles
_BLANK = np.array([0.93, 0.93, 0.92], np.float32)
_MARK = np.array([0.9, 0.1, 0.1], np.float32)


def save_strip(path: pathlib.Path, pictures: Sequence[np.ndarray]) -> None:
    """Writes pictures [h, w, 3] of colours in 0..1 beside each other, each enlarged to one height.

    Pixels stay squares: nothing is smoothed that the model does not see smoothed.
    """
    height = max(_SIDE, max(picture.shape[0] for picture in pictures))
    tiles = []
    for picture in pictures:
        image = Image.fromarray(np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8))
        width = round(height * picture.shape[1] / picture.shape[0])
        tiles.append(np.asarray(image.resize((width, height), Image.Resampling.NEAREST)))
        tiles.append(np.full((height, _GAP, 3), 255, np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(tiles[:-1], axis=1)).save(path, optimize=True)


def heat(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Cosines as colours: red 1, white 0, blue -1; grey where there is none (NaN)."""
    colours = matplotlib.colormaps["RdBu_r"]((values + 1) / 2)[..., :3].astype(np.float32)
    return np.where(np.isnan(values)[..., None], _BLANK, colours)


def marked(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The picture, enlarged, with a frame around a box of its pixels: top, left, height, width."""
    factor = -(-2 * _SIDE // picture.shape[0])
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    top, left, height, width = (factor * number for number in box)
    inner = np.zeros(large.shape[:2], bool)
    inner[top : top + height, left : left + width] = True
    line = max(2, large.shape[0] // 60)
    inner[top + line : top + height - line, left + line : left + width - line] = False
    return np.where(inner[..., None], _MARK, large)
