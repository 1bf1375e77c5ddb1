"""Data sets of TensorFlow Datasets: small ones in memory, all others record by record."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.data.decode import Pixels
from jepa_jax.data.sources.records import Part, open_records
from jepa_jax.data.sources.source import Source, array_source, encoded_source, names_digest
from jepa_jax.data.sources.tfds_labels import LabelReader, label_reader
from jepa_jax.errors import UserError

# Decoded images of one size are held up to here: whole batches are cut at once (CIFAR-10: 0.15 GB).
_IN_MEMORY_BYTES = 1 << 30


def open_tfds(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """A data set by its name, as "imagenet2012" or "imagenet_resized/64x64"; prepared if needed.

    The image is the feature "image", or the only one that can be; the label is what
    `label_reader` finds. A split can be a part, as "train[:90%]".

    Raises:
      UserError: there is no such data set or split, it can't be prepared, or its images or its
        label are of a kind that is not read.
    """
    import tensorflow_datasets as tfds  # takes a second, and only this source needs it

    name = data.train_split if split == "train" else data.test_split
    field = f"config.data.path = {data.path!r}"
    builder = _prepared(tfds, data, field)
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
    image_name = _image_feature(tfds, features, field)
    image, label = features[image_name], label_reader(tfds, features, data.label, field)
    encoded = isinstance(image, tfds.features.Image)
    kind = f"{field}: its images are {np.dtype(image.np_dtype).name} {list(image.shape)}"
    if _is_held(image, info.num_examples, parts[0].filename):

        def decoded(wanted: dict[str, Any], **options: Any) -> Any:
            decoders = tfds.decode.PartialDecoding(wanted)
            return tfds.as_numpy(
                builder.as_dataset(split=name, decoders=decoders, shuffle_files=False, **options)
            )

        images = decoded({image_name: True}, batch_size=-1)[image_name]
        labels = None if label is None else label.of_examples(decoded(label.wanted()))
        return array_source(
            to_integers(images, kind),
            labels,
            _names(label, labels),
            data.image_size,
            channels=data.channels,
            interpolation=data.interpolation,
        )
    if not encoded or image.np_dtype not in (np.uint8, np.uint16):
        raise UserError(f"{kind}: only uint8 and uint16 images are read from large data sets")
    channels = data.channels or image.shape[-1] or 3
    read, labels = open_records(
        parts, None if label is None else label.of_record, label=data.label or ""
    )
    return encoded_source(
        lambda i: _feature(read(i), image_name).bytes_list.value[0],
        num_examples=info.num_examples,
        pixels=Pixels(
            channels, np.dtype(image.np_dtype), data.interpolation, data.reduced_decoding
        ),
        labels=labels,
        class_names=_names(label, labels),
        describe=lambda i: f"example {i} of {data.path}, {name}",
        digest=names_digest([f"{builder.info.full_name} {name} {info.num_examples}".encode()]),
    )


def tfds_maps(data: DataConfig, split: Literal["train", "test"], name: str) -> Iterator[np.ndarray]:
    """A feature of each example that is a map [H, W] or [H, W, 1], in the order of `open_tfds`.

    Raises:
      UserError: there is no such feature; or as `open_tfds`.
    """
    import tensorflow_datasets as tfds

    field = f"config.data.path = {data.path!r}"
    builder = _prepared(tfds, data, field)
    features = builder.info.features
    if name not in features:
        raise UserError(f"config.target = {name!r}: must be one of {', '.join(features)}")
    of_split = data.train_split if split == "train" else data.test_split
    info = builder.info.splits[of_split]
    filename = str(info.file_instructions[0].filename)
    image_name = _image_feature(tfds, features, field)
    if "array_record" in filename:
        bytes_of_images = {image_name: tfds.decode.SkipDecoding()}
        examples = builder.as_data_source(split=of_split, decoders=bytes_of_images)
        yield from (examples[i][name] for i in range(len(examples)))
        return
    held = _is_held(features[image_name], info.num_examples, filename)
    decoders = tfds.decode.PartialDecoding({name: True})
    # The images of a large split are read file by file; of a small one, as TFDS does.
    order = tfds.ReadConfig() if held else tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(
        split=of_split, decoders=decoders, shuffle_files=False, read_config=order
    )
    yield from (example[name] for example in tfds.as_numpy(dataset))


def _prepared(tfds: Any, data: DataConfig, field: str) -> Any:
    try:
        builder = tfds.builder(data.path, **({"data_dir": data.tfds_dir} if data.tfds_dir else {}))
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"{field}: TFDS knows no such data set") from error
    except Exception as error:  # downloads fail in as many ways as there are hosts
        raise UserError(f"{field}: TFDS can't prepare it: {error}") from error
    return builder


def _is_held(image: Any, num_examples: int, filename: str) -> bool:
    """Whether a split is small enough to be read as a whole, which TFDS can't of ArrayRecord."""
    size = math.inf if None in image.shape else math.prod(image.shape) * num_examples
    in_order = "array_record" not in filename
    return in_order and size * np.dtype(image.np_dtype).itemsize <= _IN_MEMORY_BYTES


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


def _names(label: LabelReader | None, labels: np.ndarray | None) -> tuple[str, ...]:
    """Of the classes; of whole numbers, the numbers."""
    if label is None or labels is None or label.class_names or labels.ndim > 1:
        return label.class_names if label else ()
    return tuple(str(number) for number in range(int(labels.max()) + 1))


def _feature(record: bytes, name: str) -> Any:
    from tensorflow.train import Example

    return Example.FromString(record).features.feature[name]


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
