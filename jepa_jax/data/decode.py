"""From the bytes of an image file to the pixels of a crop of it, upright and resized.

Pillow reads the header and every kind of image but two, for which TensorFlow is better: JPEG, of
which it decodes no more than the crop, and PNG of 16 bits.
"""

import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 100_000_000  # of one image: 300 MB decoded; a header can claim any size
_ORIENTATION = 0x0112  # EXIF tag

Interpolation = Literal["bilinear", "bicubic"]
BoxOf = Callable[[int, int], np.ndarray]  # (height, width) -> top, left, height, width
_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class BadImageError(Exception):
    """An image can't be used; says why."""


class Pixels(NamedTuple):
    """What pixels are wanted.

    Attributes:
      channels: 1, gray; 3, red, green and blue; 4, and opacity; other numbers only if an image has
        as many.
      dtype: uint8, or uint16 for images of 16 bits.
    """

    channels: int
    dtype: np.dtype
    interpolation: Interpolation = "bilinear"


def read_crop(data: bytes, box_of: BoxOf, size: tuple[int, int], wanted: Pixels) -> np.ndarray:
    """Decodes, turns upright as EXIF says, cuts, converts and resizes.

    Args:
      box_of: where to cut, in upright coordinates.
      size: height, width of the result.

    Returns:
      [height, width, channels] of `wanted.dtype`.

    Raises:
      BadImageError: it is no image, or a damaged or unreasonably large one.
    """
    image = open_image(data)
    orientation = orientation_of(image)
    turned = orientation > 4
    height, width = image.size if turned else image.size[::-1]
    box = stored_box(box_of(height, width), (height, width), orientation)
    top, left, box_height, box_width = box
    if _is_plain_jpeg(image):
        if data.rfind(b"\xff\xd9") < _header_end(image):  # the first does not occur in image data
            raise BadImageError("truncated")
        channels = len(image.getbands())
        x = _by_tensorflow(tf.io.decode_and_crop_jpeg, data, box, channels=channels)
    else:
        x = _decode_whole(data, image)
        x = x[top : top + box_height, left : left + box_width]
    x = to_dtype(to_channels(turn_upright(x, orientation), wanted.channels), wanted.dtype)
    return resize(x, size, wanted.interpolation)


def read_whole(data: bytes, wanted: Pixels) -> np.ndarray:
    """All of an image, upright, at its own size: [height, width, channels] of `wanted.dtype`.

    Raises:
      BadImageError: as `read_crop`.
    """
    image = open_image(data)
    size = image.size if orientation_of(image) > 4 else image.size[::-1]
    return read_crop(data, lambda h, w: np.array([0, 0, h, w]), size, wanted)


def open_image(data: bytes) -> Image.Image:
    """Reads the header alone."""
    if not data:
        raise BadImageError("empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too large: {error}") from error
    except Exception as error:  # Pillow raises of many types on damaged headers
        raise BadImageError(f"no image that can be read ({', '.join(FORMATS)})") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(
            f"too large: {image.width} x {image.height} pixels; at most {MAX_PIXELS // 10**6} "
            "million are read"
        )
    return image


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1, upright, where there is none."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to leave out an image
        return 1
    return value if value in range(1, 9) else 1


def bits_of(data: bytes, image: Image.Image) -> int:
    """Bits of a channel, 8 or 16."""
    return 16 if image.format == "PNG" and data[24:25] == b"\x10" else 8


def _header_end(image: Any) -> int:
    """Where a JPEG file's compressed data begin: Pillow has read up to there."""
    return image.fp.tell()


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")


def _decode_whole(data: bytes, image: Image.Image) -> np.ndarray:
    """The first frame: uint8 or uint16 [h, w, 1 to 4]."""
    if bits_of(data, image) == 16:
        return _by_tensorflow(tf.io.decode_png, data, dtype=tf.uint16)
    try:
        image.load()
    except Exception as error:  # as above
        raise BadImageError(f"damaged: {error}") from error
    if image.mode in ("I", "F"):
        raise BadImageError("pixels of 32 bits; must have 8 or 16")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        plain = {"1": "L", "P": "RGB", "PA": "RGB"}.get(image.mode, "RGB")
        image = image.convert("RGBA" if "transparency" in image.info else plain)
    x = np.asarray(image)
    return x if x.ndim == 3 else x[..., None]


def _by_tensorflow(decode: Callable, data: bytes, *arguments: object, **options: object):
    try:
        return decode(data, *arguments, **options).numpy()
    except tf.errors.OpError as error:
        raise BadImageError("damaged") from error


def to_channels(x: np.ndarray, channels: int) -> np.ndarray:
    """[h, w, C] of other channels: opacity is left out, gray repeated, colour made gray."""
    have = x.shape[-1]
    if have == channels:
        return x
    if have in (2, 4) and channels in (1, 3):
        x, have = x[..., : have - 1], have - 1
    if (have, channels) == (1, 3):
        return np.repeat(x, 3, axis=-1)
    if (have, channels) == (3, 1):  # ITU-R BT.601
        gray = x @ np.array([0.299, 0.587, 0.114], np.float32)
        return np.round(gray)[..., None].astype(x.dtype)
    if (have, channels) == (3, 4):
        return np.concatenate([x, np.full_like(x[..., :1], np.iinfo(x.dtype).max)], axis=-1)
    if have != channels:
        raise BadImageError(f"{have} channels; must have {channels}")
    return x


def to_dtype(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """8 bits to 16 and back, black to black and white to white."""
    if x.dtype == dtype:
        return x
    if dtype == np.uint16:
        return x.astype(np.uint16) * np.uint16(257)
    return ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)


def resize(x: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """[h, w, C] to another height and width, with an antialiasing filter where it gets smaller."""
    method, new = _METHODS[interpolation], (size[1], size[0])
    if x.shape[:2] == size:
        return x
    channels = x.shape[-1]
    if x.dtype == np.uint8 and channels in (1, 3):
        image = Image.fromarray(x[..., 0] if channels == 1 else x)
        return np.asarray(image.resize(new, method)).reshape(*size, channels)
    # Pillow has no images of 16 bits and several channels, and weighs colours by opacity.
    planes = [
        np.asarray(Image.fromarray(x[..., c].astype(np.float32)).resize(new, method))
        for c in range(channels)
    ]
    most = np.iinfo(x.dtype).max
    return np.stack(planes, axis=-1).round().clip(0, most).astype(x.dtype)


def turn_upright(x: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels [h, w, C] as they should be seen (EXIF 2.32, tag 0x0112)."""
    if orientation > 4:
        x = x.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        x = x[::-1]
    if orientation in (2, 3, 6, 7):
        x = x[:, ::-1]
    return x


def stored_box(
    box: np.ndarray, size: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Where a box of the upright image lies in the stored one.

    Args:
      size: height, width of the upright image.
    """
    top, left, height, width = (int(side) for side in box)
    if orientation in (3, 4, 7, 8):
        top = size[0] - top - height
    if orientation in (2, 3, 6, 7):
        left = size[1] - left - width
    return (left, top, width, height) if orientation > 4 else (top, left, height, width)
