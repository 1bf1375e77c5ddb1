"""From the bytes of an image file to the pixels of a crop of it, upright and resized.

Pillow reads all headers, and every kind of image but JPEG (`jpeg.py`) and PNG of 16 bits.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from jepa_jax.data.jpeg import read_crops
from jepa_jax.data.resize import Interpolation, resize

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 100_000_000  # of one image: 300 MB decoded; a header can claim any size
_PIXELS_AT_ONCE = 50_000_000  # of several images; more are decoded one after the other
_ORIENTATION = 0x0112  # EXIF tag

BoxOf = Callable[[int, int], np.ndarray]  # (height, width) -> top, left, height, width


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


def decode_crops(
    headers: Sequence[Header], boxes: np.ndarray, size: tuple[int, int], wanted: Pixels
) -> tuple[np.ndarray, dict[int, BadImageError]]:
    """`decode_crop` of several images at once.

    Args:
      boxes: int64 [n, 4].

    Returns:
      The pixels [n, height, width, channels], and of those that can't be used, why: their pixels
      are left as they happen to be.
    """
    kinds = {_jpeg_kind(h, box, size, wanted) for h, box in zip(headers, boxes, strict=True)}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is not None and np.prod(boxes[:, 2:], axis=1).sum() <= _PIXELS_AT_ONCE * kind.ratio**2:
        try:
            return _read_jpegs(headers, boxes, size, wanted, kind), {}
        except BadImageError:
            pass  # one of them, and here is which
    out, problems = np.empty((len(headers), *size, wanted.channels), wanted.dtype), {}
    for i, (header, box) in enumerate(zip(headers, boxes, strict=True)):
        try:
            out[i] = decode_crop(header, box, size, wanted)
        except BadImageError as error:
            problems[i] = error
    return out, problems


def decode_crop(
    header: Header, box: np.ndarray, size: tuple[int, int], wanted: Pixels
) -> np.ndarray:
    """Decodes, turns upright as EXIF says, cuts, converts and resizes.

    Args:
      box: int64 [4], top, left, height, width of what to cut, in upright coordinates.
      size: height, width of the result.

    Returns:
      [height, width, channels] of `wanted.dtype`.

    Raises:
      BadImageError: the image is damaged.
    """
    kind = _jpeg_kind(header, box, size, wanted)
    if kind is not None:
        return _read_jpegs([header], box[None], size, wanted, kind)[0]
    upright = (header.height, header.width)
    top, left, height, width = stored_box(box, upright, header.orientation)
    x = _decode_whole(header)[top : top + height, left : left + width]
    x = to_dtype(to_channels(turn_upright(x, header.orientation), wanted.channels), wanted.dtype)
    return resize(x, size, wanted.interpolation)


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


class _JpegKind(NamedTuple):
    """What images that are read at once must share."""

    orientation: int
    ratio: int  # they are decoded at 1 / ratio of their size


def _jpeg_kind(
    header: Header, box: np.ndarray, size: tuple[int, int], wanted: Pixels
) -> _JpegKind | None:
    """None of what `jpeg.read_crops` does not read."""
    image = header.image
    as_wanted = {"L": (1, 3), "RGB": (3,)}.get(image.mode, ())
    jpeg = image.format in ("JPEG", "MPO") and wanted.channels in as_wanted
    if not jpeg or wanted.dtype != np.uint8:
        return None
    fits = min(int(box[2]) // size[0], int(box[3]) // size[1]) if wanted.reduced_decoding else 1
    return _JpegKind(
        header.orientation, max(ratio for ratio in (1, 2, 4, 8) if ratio <= fits or ratio == 1)
    )


def _read_jpegs(
    headers: Sequence[Header],
    boxes: np.ndarray,
    size: tuple[int, int],
    wanted: Pixels,
    kind: _JpegKind,
) -> np.ndarray:
    stored = []
    for header, box in zip(headers, boxes, strict=True):
        # The mark of the end does not occur in the compressed data; Pillow has read up to those.
        if header.data.rfind(b"\xff\xd9") < header.image.fp.tell():
            raise BadImageError("truncated")
        stored.append(stored_box(box, (header.height, header.width), kind.orientation))
    try:
        x = read_crops(
            [header.data for header in headers],
            np.array(stored),
            size[::-1] if kind.orientation > 4 else size,
            channels=wanted.channels,
            interpolation=wanted.interpolation,
            ratio=kind.ratio,
        )
    except tf.errors.OpError as error:
        raise BadImageError("damaged") from error
    if kind.orientation == 1:
        return x
    return np.stack([turn_upright(image, kind.orientation) for image in x])


def _decode_whole(header: Header) -> np.ndarray:
    """The first frame: uint8 or uint16 [h, w, 1 to 4]."""
    if bits_of(header) == 16:
        try:
            return tf.io.decode_png(header.data, dtype=tf.uint16).numpy()
        except tf.errors.OpError as error:
            raise BadImageError("damaged") from error
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
