"""Data sets of TensorFlow Datasets: small ones in memory, all others record by record."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.data.decode import Pixels
from jepa_jax.data.sources.records import Part, open_records
from jepa_jax.data.sources.source import Source, array_source, encoded_source, names_digest
from jepa_jax.errors import UserError

# Decoded images of one size are held up to here: whole batches are cut at once (CIFAR-10: 0.15 GB).
_IN_MEMORY_BYTES = 1 << 30


def open_tfds(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """A data set by its name, as "imagenet2012" or "imagenet_resized/64x64"; prepared if needed.

    The image is the feature "image", or the only one that can be; the label is "label", or the only
    class label. A split can be a part, as "train[:90%]".

    Raises:
      UserError: there is no such data set or split, it can't be prepared, or its images are of a
        kind that is not read.
    """
    import tensorflow_datasets as tfds  # takes a second, and only this source needs it

    name = data.train_split if split == "train" else data.test_split
    field = f"config.data.path = {data.path!r}"
    try:
        builder = tfds.builder(data.path, **({"data_dir": data.tfds_dir} if data.tfds_dir else {}))
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"{field}: TFDS knows no such data set") from error
    except Exception as error:  # downloads fail in as many ways as there are hosts
        raise UserError(f"{field}: TFDS can't prepare it: {error}") from error
    try:
        info = builder.info.splits[name]
        parts = [
            Part(str(part.filename), part.skip, part.take, part.examples_in_shard)
            for part in info.file_instructions
        ]
    except (KeyError, ValueError) as error:
        allowed = ", ".join(sorted(builder.info.splits))
        raise UserError(
            f"TFDS split {name!r} of {data.path}: must be one of {allowed}, or a part of one"
        ) from error
    features = builder.info.features
    image_name, label_name = _image_feature(tfds, features, field), _label_feature(tfds, features)
    image = features[image_name]
    class_names = tuple(features[label_name].names) if label_name else ()
    encoded = isinstance(image, tfds.features.Image)
    kind = f"{field}: its images are {np.dtype(image.np_dtype).name} {list(image.shape)}"
    size = math.inf if None in image.shape else math.prod(image.shape) * info.num_examples
    in_order = "array_record" not in parts[0].filename  # which TFDS does not read as a whole
    if in_order and size * np.dtype(image.np_dtype).itemsize <= _IN_MEMORY_BYTES:
        arrays = tfds.as_numpy(builder.as_dataset(split=name, batch_size=-1, shuffle_files=False))
        labels = arrays[label_name].astype(np.int64) if label_name else None
        return array_source(
            to_integers(arrays[image_name], kind),
            labels,
            class_names,
            data.image_size,
            channels=data.channels,
            interpolation=data.interpolation,
        )
    if not encoded or image.np_dtype not in (np.uint8, np.uint16):
        raise UserError(f"{kind}: only uint8 and uint16 images are read from large data sets")
    channels = data.channels or image.shape[-1] or 3
    read, labels = open_records(parts, _label_reader(label_name) if label_name else None)
    return encoded_source(
        lambda i: _feature(read(i), image_name).bytes_list.value[0],
        num_examples=info.num_examples,
        pixels=Pixels(
            channels, np.dtype(image.np_dtype), data.interpolation, data.reduced_decoding
        ),
        labels=labels,
        class_names=class_names,
        describe=lambda i: f"example {i} of {data.path}, {name}",
        digest=names_digest([f"{builder.info.full_name} {name} {info.num_examples}".encode()]),
    )


def _image_feature(tfds: Any, features: Any, field: str) -> str:
    def may_be(feature: Any) -> bool:
        if isinstance(feature, tfds.features.Image):
            return True
        return isinstance(feature, tfds.features.Tensor) and len(feature.shape) == 3

    found = [name for name, feature in features.items() if may_be(feature)]
    if "image" in found:
        return "image"
    if len(found) != 1:
        raise UserError(
            f"{field}: which feature is the image? Of {', '.join(features)} there must be one that "
            "is called image, or a single one of height, width and channels"
        )
    return found[0]


def _label_feature(tfds: Any, features: Any) -> str | None:
    found = [n for n, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if "label" in found:
        return "label"
    return found[0] if len(found) == 1 else None


def _feature(record: bytes, name: str) -> Any:
    from tensorflow.train import Example

    return Example.FromString(record).features.feature[name]


def _label_reader(name: str) -> Callable[[bytes], int]:
    return lambda record: _feature(record, name).int64_list.value[0]


def to_integers(images: np.ndarray, kind: str) -> np.ndarray:
    """uint8 and uint16 as they are; floats of 0..1 as uint16, to within 1 / 131,070.

    Raises:
      UserError: the scale of the values is not known.
    """
    if images.dtype in (np.uint8, np.uint16):
        return images
    low, high = images.min(), images.max()
    if np.issubdtype(images.dtype, np.floating) and low >= 0 and 0 < high <= 1:
        return np.round(images * np.float32(65535)).astype(np.uint16)
    raise UserError(
        f"{kind}, with values of {low} to {high}: must be uint8, uint16, or numbers in 0..1"
    )
