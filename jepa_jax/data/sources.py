"""Where images come from: bundled Fashion-MNIST, TensorFlow Datasets, a folder of image files.

A source gives random access by example number, which is what makes the order of the examples a pure
function of (seed, step) and a resume exact.
"""

import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import tensorflow as tf

from jepa_jax.config import DataConfig
from jepa_jax.data.clutter import clutter
from jepa_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
# TFDS data sets are held decoded, as uint8 (CIFAR-10 has 0.15 GB).
_MEMORY_LIMIT_BYTES = 8 << 30

# (heights [n], widths [n], example numbers [n]) -> boxes [n, 4]: top, left, height, width
Crop = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Source:
    """Images by number.

    Attributes:
      num_examples: how many.
      load: (index int64 [n], crop, (height, width)) -> float32 [n, height, width, 3] in 0..255.
      labels: int64 [num_examples], or None where there are none.
      class_names: what the labels stand for.
      whole_batches: `load` is cheap for many examples in one call; otherwise it wants n = 1, and
        parallel calls.
      describe: an example's name for messages, for example a path.
      left_out: files beside the images that were not taken: why -> how many.
    """

    num_examples: int
    load: Callable[[tf.Tensor, Crop, tuple[int, int]], tf.Tensor]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    whole_batches: bool
    describe: Callable[[int], str]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)


def open_source(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """Opens one split of the configured data.

    Raises:
      UserError: there is no such data, or it can't be read.
    """
    name = data.train_split if split == "train" else data.test_split
    if data.source in ("fashion_mnist", "cluttered_fashion_mnist"):
        cluttered = data.source == "cluttered_fashion_mnist"
        return _fashion_mnist(name, split, data.image_size, cluttered=cluttered)
    if data.source == "tfds":
        return _tfds(data.path, name, data.image_size)
    return _folder(data.path, name, split)


def _fashion_mnist(
    name: str | None, split: str, image_size: tuple[int, int], *, cluttered: bool
) -> Source:
    """The 10,000 + 2,000 images that come with the package (Xiao et al., 2017)."""
    if name not in ("train", "test"):
        raise UserError(f"config.data.{split}_split = {name!r}: must be train or test")
    path = pathlib.Path(__file__).parent / "bundled" / "fashion_mnist" / "fashion_mnist.npz"
    with np.load(path) as arrays:
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
    if cluttered:
        images = clutter(images, seed=("train", "test").index(name))
    class_names: tuple[str, ...] = ("T-shirt", "trouser", "pullover", "dress", "coat")
    class_names += ("sandal", "shirt", "sneaker", "bag", "ankle boot")
    return array_source(images[..., None], labels.astype(np.int64), class_names, image_size)


def _tfds(path: str | None, name: str | None, image_size: tuple[int, int]) -> Source:
    """A labelled data set of TFDS whose images all have one size and fit in memory."""
    import tensorflow_datasets as tfds  # takes a second, and only this source needs it

    try:
        builder = tfds.builder(path)
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"config.data.path = {path!r}: TFDS knows no such data set") from error
    except Exception as error:  # downloads fail in as many ways as there are hosts
        raise UserError(f"config.data.path = {path!r}: TFDS can't prepare it: {error}") from error
    if name not in builder.info.splits:
        allowed = ", ".join(sorted(builder.info.splits))
        raise UserError(f"TFDS split {name!r} of {path}: must be one of {allowed}")
    image = builder.info.features["image"]
    if None in image.shape:
        raise UserError(
            f"config.data.path = {path!r}: its images differ in size; export them to a folder of "
            "files and use config.data.source = 'folder'"
        )
    count = builder.info.splits[name].num_examples
    if count * np.prod(image.shape) > _MEMORY_LIMIT_BYTES:
        raise UserError(
            f"config.data.path = {path!r}: {count} images of {image.shape} do not fit into "
            f"{_MEMORY_LIMIT_BYTES >> 30} GiB of memory; use config.data.source = 'folder'"
        )
    arrays = tfds.as_numpy(builder.as_dataset(split=name, batch_size=-1, shuffle_files=False))
    labels, class_names = None, ()
    if "label" in arrays:
        labels = arrays["label"].astype(np.int64)
        class_names = tuple(builder.info.features["label"].names)
    return array_source(arrays["image"], labels, class_names, image_size)


def array_source(
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    image_size: tuple[int, int],
) -> Source:
    """Images in memory: uint8 [n, H, W, 1 or 3]."""
    height, width = images.shape[1:3]
    images = tf.constant(images)

    def load_batch(index: tf.Tensor, crop: Crop, size: tuple[int, int]) -> tf.Tensor:
        """Bilinear, as `tf.image.resize` of each crop would be, but one call for all."""
        n = tf.size(index)
        boxes = crop(tf.fill([n], height), tf.fill([n], width), index)  # [n, 4]
        boxes = tf.cast(boxes, tf.float32)
        top_left, extent = boxes[:, :2], boxes[:, 2:]
        # crop_and_resize wants the first and last points to sample, as shares of the padded image;
        # an output pixel samples at its centre, which can lie half a pixel outside: hence the pad.
        margin = 0.5 * extent / tf.constant(size, tf.float32)
        scale = tf.constant([height + 1, width + 1], tf.float32)
        first = (top_left + margin + 0.5) / scale
        last = (top_left + extent - margin + 0.5) / scale
        padded = tf.pad(tf.gather(images, index), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        x = tf.image.crop_and_resize(
            padded, tf.concat([first, last], axis=1), tf.range(n), size, method="bilinear"
        )
        return tf.broadcast_to(x, [n, *size, 3])

    def load_one(index: tf.Tensor, crop: Crop, size: tuple[int, int]) -> tf.Tensor:
        box = crop(tf.constant([height]), tf.constant([width]), index)[0]
        x = tf.image.crop_to_bounding_box(tf.gather(images, index), *tf.unstack(box))
        x = tf.image.resize(x, size, antialias=True)
        return tf.broadcast_to(x, [1, *size, 3])

    def enlarges(size: tuple[int, int]) -> bool:
        return size[0] >= height and size[1] >= width

    def load(index: tf.Tensor, crop: Crop, size: tuple[int, int]) -> tf.Tensor:
        # Making images smaller needs an antialiasing filter, which crop_and_resize does not have.
        if enlarges(size):
            return load_batch(index, crop, size)
        return tf.map_fn(
            lambda i: load_one(i[None], crop, size)[0],
            index,
            fn_output_signature=tf.TensorSpec((*size, 3), tf.float32),
        )

    return Source(
        num_examples=len(images),
        load=load,
        labels=labels,
        class_names=class_names,
        whole_batches=enlarges(image_size),
        describe=lambda i: f"example {i}",
    )


def _folder(path: str | None, name: str | None, split: str) -> Source:
    """`path/name/<class>/<image>`, or `path/name/<image>` without labels."""
    field = f"config.data.path = {path!r}, {split}_split = {name!r}"
    if path is None:
        raise UserError("config.data.path = None: must be set, to the folder of the images")
    root = pathlib.Path(path).expanduser() / (name or "")
    if not root.is_dir():
        raise UserError(f"{field}: there is no folder {root}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"{field}: no permission to read the folder {root}")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    (files, left_out), labels = _scan(root), None
    in_classes = [_scan(root / name) for name in classes]
    for _, others in in_classes:
        left_out += others
    if files:
        below = sum(len(of_class) for of_class, _ in in_classes)
        left_out += Counter({f"in sub-folders, beside images in {root} itself": below})
    else:
        files = [file for of_class, _ in in_classes for file in of_class]
        labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class, _ in in_classes])
    if not files:
        raise UserError(
            f"{field}: no images in {root} or its sub-folders; "
            f"they are known by their endings: {', '.join(IMAGE_SUFFIXES)}"
        )
    paths = tf.constant(files)

    def load(index: tf.Tensor, crop: Crop, size: tuple[int, int]) -> tf.Tensor:
        data = tf.io.read_file(paths[index[0]])

        def cut(height: tf.Tensor, width: tf.Tensor) -> list[tf.Tensor]:
            return tf.unstack(crop(height[None], width[None], index)[0])

        def from_jpeg() -> tf.Tensor:  # decodes only the crop
            shape = tf.io.extract_jpeg_shape(data)
            return tf.io.decode_and_crop_jpeg(data, cut(shape[0], shape[1]), channels=3)

        def from_other() -> tf.Tensor:
            x = tf.io.decode_image(data, channels=3, expand_animations=False)
            shape = tf.shape(x)
            return tf.image.crop_to_bounding_box(x, *cut(shape[0], shape[1]))

        x = tf.cond(tf.io.is_jpeg(data), from_jpeg, from_other)
        return tf.ensure_shape(tf.image.resize(x, size, antialias=True)[None], [1, *size, 3])

    return Source(
        num_examples=len(files),
        load=load,
        labels=labels,
        class_names=tuple(classes) if labels is not None else (),
        whole_batches=False,
        describe=lambda i: files[i],
        left_out=left_out,
    )


def _scan(folder: pathlib.Path) -> tuple[list[str], Counter[str]]:
    """The images in a folder, and how many other files of which ending."""
    images, others = [], Counter[str]()
    for entry in os.scandir(folder):
        if not entry.is_file():
            continue
        if entry.name.lower().endswith(IMAGE_SUFFIXES):
            images.append(entry.path)
        else:
            others[f"ending {pathlib.Path(entry.name).suffix.lower() or 'missing'}"] += 1
    return sorted(images), others
