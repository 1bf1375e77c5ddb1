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
Box = tuple[float, float, float, float]  # top, left, height, width
_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class BadImageError(Exception):
    """An image can't be used; says why."""


class Pixels(NamedTuple):
    """What pixels are wanted.

    Attributes:
      channels: 1, gray; 3, red, green and blue; 4, and opacity; other numbers only if an image has
        as many.
      dtype: uint8, or uint16 for images of 16 bits.
      reduced_decoding: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, where a crop of it is
        that much larger than what is wanted.
    """

    channels: int
    dtype: np.dtype
    interpolation: Interpolation = "bilinear"
    reduced_decoding: bool = False


class Header(NamedTuple):
    """An image file of which nothing is decoded yet.

    Attributes:
      image: as Pillow opens it.
      orientation: EXIF's, 1 to 8; 1, upright, where there is none.
      height, width: of the upright image.
    """

    data: bytes
    image: Any
    orientation: int
    height: int
    width: int


def read_header(data: bytes) -> Header:
    """Opens an image.

    Raises:
      BadImageError: it is no image, or an unreasonably large one.
    """
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
    orientation = _orientation_of(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    return Header(data, image, orientation, height, width)


def decode_crop(
    header: Header, box: np.ndarray, size: tuple[int, int], wanted: Pixels
) -> np.ndarray:
    """Decodes, turns upright as EXIF says, cuts, converts and resizes.

    Args:
      box: top, left, height, width of what to cut, in upright coordinates.
      size: height, width of the result.

    Returns:
      [height, width, channels] of `wanted.dtype`.

    Raises:
      BadImageError: the image is damaged.
    """
    upright = (header.height, header.width)
    stored = stored_box(box, upright, header.orientation)
    top, left, height, width = stored
    if _is_plain_jpeg(header.image):
        ratio = _reduction(box, size) if wanted.reduced_decoding else 1
        x, within = _decode_jpeg(header, stored, ratio)
    else:
        x, within = _decode_whole(header)[top : top + height, left : left + width], None
    x = to_dtype(to_channels(turn_upright(x, header.orientation), wanted.channels), wanted.dtype)
    if within is not None:
        within = _upright_box(within, x.shape[:2], header.orientation)
    return resize(x, size, wanted.interpolation, within)


def read_crop(data: bytes, box_of: BoxOf, size: tuple[int, int], wanted: Pixels) -> np.ndarray:
    """`read_header` and `decode_crop` in one, with the box as a function of height and width."""
    header = read_header(data)
    return decode_crop(header, box_of(header.height, header.width), size, wanted)


def read_whole(data: bytes, wanted: Pixels) -> np.ndarray:
    """All of an image, upright, at its own size: [height, width, channels] of `wanted.dtype`.

    Raises:
      BadImageError: as `read_crop`.
    """
    header = read_header(data)
    size = (header.height, header.width)
    return decode_crop(header, np.array([0, 0, *size]), size, wanted)


def _orientation_of(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to leave out an image
        return 1
    return value if value in range(1, 9) else 1


def bits_of(header: Header) -> int:
    """Bits of a channel, 8 or 16."""
    return 16 if header.image.format == "PNG" and header.data[24:25] == b"\x10" else 8


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")


def _reduction(box: np.ndarray, size: tuple[int, int]) -> int:
    """By how much a JPEG can be decoded smaller, its crop staying as large as the result."""
    fits = min(int(box[2]) // size[0], int(box[3]) // size[1])
    return max(ratio for ratio in (1, 2, 4, 8) if ratio <= max(fits, 1))


def _decode_jpeg(
    header: Header, box: tuple[int, int, int, int], ratio: int
) -> tuple[np.ndarray, Box | None]:
    """No more of the image than a box, in stored coordinates, at 1 / ratio of its size.

    Returns:
      pixels [h, w, 1 or 3], and where the box lies in them, if it is not just them.
    """
    data, image = header.data, header.image
    # The mark of the end does not occur in the compressed data, which begin where Pillow has read.
    if data.rfind(b"\xff\xd9") < image.fp.tell():
        raise BadImageError("truncated")
    top, left, height, width = box
    within = None
    if ratio > 1:
        scaled = np.array(box) / ratio
        top, left = np.floor(scaled[:2]).astype(int)
        bottom, right = np.ceil(scaled[:2] + scaled[2:]).astype(int)  # not beyond: TF rounds up too
        height, width = bottom - top, right - left
        within = (scaled[0] - top, scaled[1] - left, scaled[2], scaled[3])
    x = _by_tensorflow(
        tf.raw_ops.DecodeAndCropJpeg,  # without tf.io's wrapper, a tenth of the time
        contents=data,
        crop_window=(top, left, height, width),
        channels=len(image.getbands()),
        ratio=ratio,
    )
    return x, within


def _decode_whole(header: Header) -> np.ndarray:
    """The first frame: uint8 or uint16 [h, w, 1 to 4]."""
    if bits_of(header) == 16:
        return _by_tensorflow(tf.raw_ops.DecodePng, contents=header.data, dtype=tf.uint16)
    image = header.image
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


def _by_tensorflow(decode: Callable, **arguments: object) -> np.ndarray:
    try:
        return np.asarray(memoryview(decode(**arguments)))  # without a copy
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


def resize(
    x: np.ndarray, size: tuple[int, int], interpolation: Interpolation, within: Box | None = None
) -> np.ndarray:
    """[h, w, C] to another height and width, with an antialiasing filter where it gets smaller.

    Args:
      within: the part of it to take; None: all.
    """
    if x.shape[:2] == size and within is None:
        return x
    top, left, height, width = within or (0, 0, *x.shape[:2])
    box = (left, top, left + width, top + height)

    def by_pillow(plane: np.ndarray) -> np.ndarray:
        image = Image.fromarray(plane)
        return np.asarray(image.resize((size[1], size[0]), _METHODS[interpolation], box))

    channels = x.shape[-1]
    if x.dtype == np.uint8 and channels in (1, 3):
        return by_pillow(x[..., 0] if channels == 1 else x).reshape(*size, channels)
    # Pillow has no images of 16 bits and several channels, and weighs colours by opacity.
    planes = [by_pillow(x[..., c].astype(np.float32)) for c in range(channels)]
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


def _upright_box(box: Box, size: tuple[int, ...], orientation: int) -> Box:
    """Where a box of stored pixels lies once they are turned upright, to height, width `size`."""
    top, left, height, width = box
    if orientation > 4:
        top, left, height, width = left, top, width, height
    if orientation in (3, 4, 7, 8):
        top = size[0] - top - height
    if orientation in (2, 3, 6, 7):
        left = size[1] - left - width
    return top, left, height, width
