"""Images by number, which makes their order a pure function of (seed, step), and a resume exact."""

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tensorflow as tf

from jepa_jax.data.crops import Crop
from jepa_jax.data.decode import (
    BadImageError,
    Header,
    Pixels,
    decode_crops,
    read_crop,
    read_header,
)
from jepa_jax.data.resize import Interpolation, resize
from jepa_jax.errors import UserError

log = logging.getLogger(__name__)

_NAMED = 10  # bad images in the log; the others are counted
# Python's part of an image is short, but a call from TensorFlow costs as much again.
_IMAGES_PER_CALL = 16


@dataclasses.dataclass(frozen=True)
class Source:
    """Images by number.

    Attributes:
      num_examples: how many.
      load: (index int64 [n], crop, (height, width)) -> pixels [n, height, width, channels] of
        `dtype`, and the examples int64 [n] that they are of: the same ones, or where an image is
        bad, the next good one.
      problem: number -> what is wrong with an image, or None; it is read for that.
      channels, dtype: of the pixels, uint8 or uint16.
      labels: classes int64 [num_examples]; of several labels bool [num_examples, K]; numbers
        float32 [num_examples, K]; or None where there are none.
      class_names: what the labels stand for.
      images_per_call: how many `load` wants at once, in parallel calls; None: a whole batch.
      describe: an example's name for messages, for example a path.
      digest: tells whether these are the same examples in the same order (see `names_digest`).
      left_out: files beside the images that were not taken: why -> how many.
      read: number -> an image's file as bytes; called from several threads. Raises BadImageError
        or OSError. Of images in memory, a PNG file is made; None of more channels than PNG has.
      name: number -> what the digest takes as its name; None where images have no names.
    """

    num_examples: int
    load: Callable[[tf.Tensor, Crop, tuple[int, int]], tuple[tf.Tensor, tf.Tensor]]
    problem: Callable[[int], str | None]
    channels: int
    dtype: np.dtype
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    images_per_call: int | None
    describe: Callable[[int], str]
    digest: str
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    read: Callable[[int], bytes] | None = None
    name: Callable[[int], bytes] | None = None

    @property
    def classes(self) -> np.ndarray | None:
        """The class of each example, int64 [num_examples]; None without labels, or of others."""
        return self.labels if self.labels is not None and self.labels.ndim == 1 else None


def names_digest(names: Iterable[bytes]) -> str:
    """Of the examples' names in their order, 16 hexadecimal digits; the same wherever they lie."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name + b"\0")
    return digest.hexdigest()[:16]


def encoded_source(
    read: Callable[[int], bytes],
    *,
    num_examples: int,
    pixels: Pixels,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    describe: Callable[[int], str],
    digest: str,
    left_out: Mapping[str, int] | None = None,
    name: Callable[[int], bytes] | None = None,
) -> Source:
    """Images as the bytes of files, decoded when they are needed.

    Args:
      read: number -> bytes; called from several threads.
    """
    complained: set[int] = set()
    lock = threading.Lock()

    def good(number: int, draws: np.ndarray, crop: Crop, size: tuple[int, int]):
        """The crop of the first good image after a bad one."""

        def box_of(height: int, width: int) -> np.ndarray:
            return crop.boxes(draws[None], np.array([height]), np.array([width]))[0]

        for used in range(number + 1, number + num_examples):
            used %= num_examples
            try:
                return read_crop(read(used), box_of, size, pixels), used
            except (BadImageError, OSError) as error:
                _complain(used, str(error))
        raise ValueError("no image can be read")  # reaches the log through TensorFlow

    def _complain(number: int, why: str) -> None:
        with lock:
            if number in complained:
                return
            complained.add(number)
        if len(complained) <= _NAMED:
            log.warning("%s: %s; the next good image takes its place", describe(number), why)

    def load(index: tf.Tensor, crop: Crop, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
        def call(numbers: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            headers, problems = dict[int, Header](), dict[int, Exception]()
            for i, number in enumerate(numbers):
                try:
                    headers[i] = read_header(read(int(number)))
                except (BadImageError, OSError) as error:
                    problems[i] = error
            used = numbers.astype(np.int64)
            found = list(headers)
            out = np.empty((0, *size, pixels.channels), pixels.dtype)
            if headers:
                sizes = np.array([(header.height, header.width) for header in headers.values()])
                boxes = crop.boxes(draws[found], *sizes.T)
                out, bad = decode_crops(list(headers.values()), boxes, size, pixels)
                problems |= {found[i]: error for i, error in bad.items()}
            if len(found) < len(numbers):
                of_found = out
                out = np.empty((len(numbers), *size, pixels.channels), pixels.dtype)
                out[found] = of_found
            for i, problem in problems.items():
                _complain(int(numbers[i]), str(problem))
                out[i], used[i] = good(int(numbers[i]), draws[i], crop, size)
            return out, used

        types = (tf.as_dtype(pixels.dtype), tf.int64)
        x, used = tf.numpy_function(call, [index, crop.draws(index)], types, stateful=False)
        n = index.shape[0]
        return tf.ensure_shape(x, [n, *size, pixels.channels]), tf.ensure_shape(used, [n])

    def problem(number: int) -> str | None:
        try:
            read_crop(read(number), lambda h, w: np.array([0, 0, h, w]), (8, 8), pixels)
        except (BadImageError, OSError) as error:
            return str(error)
        return None

    return Source(
        num_examples=num_examples,
        load=load,
        problem=problem,
        channels=pixels.channels,
        dtype=pixels.dtype,
        labels=labels,
        class_names=class_names,
        images_per_call=_IMAGES_PER_CALL,
        describe=describe,
        digest=digest,
        left_out=left_out or {},
        read=read,
        name=name,
    )


def array_source(
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    image_size: tuple[int, int],
    *,
    channels: int = 3,
    interpolation: Interpolation = "bilinear",
    held: bool = True,
) -> Source:
    """Images in memory: uint8 or uint16 [n, H, W, C]; of one channel, gray.

    Args:
      image_size: that crops are resized to: whole batches at once where that enlarges, bilinearly.
      channels: as `DataConfig.channels`.
      held: False: the array is a file, of which only the crops that are needed are to be read.

    Raises:
      UserError: they have other channels than the configuration.
    """
    height, width, have = images.shape[1:]
    channels = channels or have
    if have != channels and (have, channels) != (1, 3):
        raise UserError(
            f"config.data.mean: has {channels} values, and the images have {have} channels; set "
            "mean and std of each, or None to measure them"
        )
    in_memory = tf.constant(images) if held else None
    most = np.iinfo(images.dtype).max

    def load_enlarged(index: tf.Tensor, boxes: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
        """Bilinear, as `tf.image.resize` of each crop would be, but one call for all."""
        boxes = tf.cast(boxes, tf.float32)
        top_left, extent = boxes[:, :2], boxes[:, 2:]
        # crop_and_resize wants the first and last points to sample, as shares of the padded image;
        # an output pixel samples at its centre, which can lie half a pixel outside: hence the pad.
        margin = 0.5 * extent / tf.constant(size, tf.float32)
        scale = tf.constant([height + 1, width + 1], tf.float32)
        first = (top_left + margin + 0.5) / scale
        last = (top_left + extent - margin + 0.5) / scale
        padded = tf.pad(tf.gather(in_memory, index), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        corners, n = tf.concat([first, last], axis=1), tf.range(tf.size(index))
        x = tf.image.crop_and_resize(padded, corners, n, size, method="bilinear")
        return tf.cast(tf.clip_by_value(tf.round(x), 0, most), tf.as_dtype(images.dtype))

    def load_others(numbers: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        out = np.empty((len(numbers), *size, have), images.dtype)
        for i, (number, (top, left, h, w)) in enumerate(zip(numbers, boxes, strict=True)):
            crop = images[number, top : top + h, left : left + w]
            out[i] = resize(crop, size, interpolation)
        return out

    def enlarges(size: tuple[int, int]) -> bool:  # else there must be an antialiasing filter
        at_once = held and interpolation == "bilinear"
        return size[0] >= height and size[1] >= width and at_once

    def load(index: tf.Tensor, crop: Crop, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
        def boxes_of(draws: np.ndarray) -> np.ndarray:
            n = len(draws)
            return crop.boxes(draws, np.full(n, height), np.full(n, width))

        boxes = tf.numpy_function(boxes_of, [crop.draws(index)], tf.int64, stateful=False)
        n = index.shape[0]
        boxes = tf.ensure_shape(boxes, [n, 4])
        if enlarges(size):
            x = load_enlarged(index, boxes, size)
        else:
            x = tf.numpy_function(
                lambda i, b: load_others(i, b, size),
                [index, boxes],
                tf.as_dtype(images.dtype),
                stateful=False,
            )
            x = tf.ensure_shape(x, [n, *size, have])
        if have < channels:
            x = tf.gather(x, [0] * channels, axis=-1)  # tf.repeat has no uint16
        return x, index

    return Source(
        num_examples=len(images),
        load=load,
        problem=lambda _: None,
        channels=channels,
        dtype=images.dtype,
        labels=labels,
        class_names=class_names,
        images_per_call=None if enlarges(image_size) else _IMAGES_PER_CALL,
        describe=lambda i: f"example {i}",
        digest=_arrays_digest(images),
        read=(lambda i: tf.io.encode_png(images[i]).numpy()) if have <= 4 else None,
    )


def _arrays_digest(images: np.ndarray) -> str:
    """From up to 1,000 of the images, spread evenly."""
    looked_at = np.unique(np.linspace(0, len(images) - 1, 1000).astype(int))
    kind = f"{images.shape} {images.dtype}".encode()
    return names_digest([kind, *(images[i].tobytes() for i in looked_at)])
