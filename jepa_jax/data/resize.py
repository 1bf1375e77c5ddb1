"""Resizing with an antialiasing filter, by libraries that do not hold Python's lock.

The bytes are the same on every processor, but for Linux on ARM, for which `cykooz_resizer` has no
wheel: Pillow's filter is the same one, and some of its bytes differ by 1.
"""

import threading
from typing import Literal

import numpy as np
from PIL import Image

try:
    import cykooz_resizer
except ImportError:  # see requirements.txt
    cykooz_resizer = None

Interpolation = Literal["bilinear", "bicubic"]  # bicubic: Keys, 1981, with a = -1/2
_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_of_thread = threading.local()  # its resizer, which can't be shared


def resize(
    x: np.ndarray,
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """An image at another size, with an antialiasing filter where it gets smaller.

    Args:
      x: uint8 or uint16 [h, w, C].
      size: height, width of the result.
      box: left, top, width, height of the part to resize; None: all of it. Samples beside it, where
        `x` has some, count for the pixels of its edge.

    Returns:
      [height, width, C] of the same type.
    """
    whole = (0.0, 0.0, float(x.shape[1]), float(x.shape[0]))
    if x.shape[:2] == size and box in (None, whole):
        return x
    bytes_of_colours = x.dtype == np.uint8 and x.shape[-1] in (1, 3)
    if bytes_of_colours and cykooz_resizer is not None:
        return _by_cykooz(x, size, interpolation, box or whole)
    left, top, width, height = box or whole
    corners = (left, top, left + width, top + height)

    def by_pillow(image: np.ndarray) -> np.ndarray:
        resized = Image.fromarray(image).resize(size[::-1], _METHODS[interpolation], corners)
        return np.asarray(resized)

    if bytes_of_colours:
        return by_pillow(x if x.shape[-1] == 3 else x[..., 0]).reshape(*size, x.shape[-1])
    # No library resizes 16 bits of several channels and leaves opacity alone.
    planes = [by_pillow(x[..., c].astype(np.float32)) for c in range(x.shape[-1])]
    most = np.iinfo(x.dtype).max
    return np.stack(planes, axis=-1).round().clip(0, most).astype(x.dtype)


def _by_cykooz(
    x: np.ndarray,
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[float, float, float, float],
) -> np.ndarray:
    if not hasattr(_of_thread, "resizer"):
        _of_thread.resizer = cykooz_resizer.Resizer()
    kind = cykooz_resizer.PixelType.U8x3 if x.shape[-1] == 3 else cykooz_resizer.PixelType.U8
    kernel = cykooz_resizer.FilterType.bilinear
    if interpolation == "bicubic":
        kernel = cykooz_resizer.FilterType.catmull_rom
    options = cykooz_resizer.ResizeOptions(
        resize_alg=cykooz_resizer.ResizeAlg.convolution(kernel),
        crop_box=cykooz_resizer.CropBox(*box),
    )
    source = cykooz_resizer.ImageData(x.shape[1], x.shape[0], kind, x.tobytes())
    resized = cykooz_resizer.ImageData(size[1], size[0], kind)
    _of_thread.resizer.resize(source, resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(*size, x.shape[-1])
