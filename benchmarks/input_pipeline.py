"""The input pipeline beside others, on one generated set of 500 x 375 JPEG files, in one run.

    python -m benchmarks.input_pipeline --images DIR [--out DIR] [--rounds 2] [--seconds 8]

DIR holds any photos, for example CIFAR-10's. Batches of 128 images of 224 x 224 pixels, with
multi-block masks, on all cores of this process:

- decoding: libjpeg-turbo alone, the same bytes from memory: whole images, and the crops alone. The
  second is the limit.
- ours: from files, from packed shards; without masks; at half or quarter scale where a crop allows.
- torch: a DataLoader with Pillow, torchvision's crop and normalisation, and masks in its collate
  function (`benchmarks.torch_loader`), a worker process a core.
- tfds: a data set of TensorFlow Datasets as its documentation loads one: decoded whole, cropped,
  resized without antialiasing, without masks.

Images a second of each in every round, in turns. With --batches N instead: the memory of this
process over N small batches of ours. The last line, on standard output, is JSON.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.jpeg_set import BATCH_SIZE, IMAGE_SIZE, make_jpegs, speed
from jepa_jax.config import Config, resolve
from jepa_jax.config.files import load_config
from jepa_jax.data.crops import random_resized_crop
from jepa_jax.data.pipeline import CORES
from jepa_jax.data.sources import open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.objectives.registry import make_objective


def make_config(out: pathlib.Path, *overrides: str) -> Config:
    data = [f"--config.data.path={out}", "--config.data.source=folder"]
    return resolve(load_config("configs/in1k_vitb16_ep600.py", [*data, *overrides]))


def ours(config: Config, *, masks: bool = True) -> Iterator[Any]:
    """Training batches, without end."""
    needs = make_objective(config).needs
    stream = make_stream(
        needs if masks else needs._replace(masks=None),
        config.data,
        open_source(config.data, "train"),
        seed=config.seed,
        batch_size=config.batch_size,
    )
    return stream.batches(0, 10**6, None)


def decoded(files: list[pathlib.Path], config: Config, *, whole: bool) -> Iterator[Any]:
    """Batches of the bytes of images, each decoded: whole, or the crop that training would take."""
    contents = tf.constant([file.read_bytes() for file in files])
    crop = random_resized_crop(
        scale=config.data.crop_scale,
        aspect_ratio=config.data.crop_aspect_ratio,
        seed=0,
        epoch=tf.constant(0, tf.int64),
    )
    number = tf.range(len(files), dtype=tf.int64)
    shapes = [tf.io.extract_jpeg_shape(content).numpy() for content in contents]
    heights, widths = np.array(shapes)[:, 0], np.array(shapes)[:, 1]
    boxes = tf.constant(crop.boxes(crop.draws(number).numpy(), heights, widths), tf.int32)

    def decode(i: tf.Tensor) -> tf.Tensor:
        if whole:
            x = tf.io.decode_jpeg(contents[i], channels=3)
        else:
            x = tf.io.decode_and_crop_jpeg(contents[i], boxes[i], channels=3)
        return x[0, 0, 0]

    dataset = tf.data.Dataset.range(len(files)).repeat()
    dataset = dataset.map(decode, num_parallel_calls=CORES).batch(BATCH_SIZE)
    return iter(dataset.prefetch(4).as_numpy_iterator())


def plain_tfds(folder: pathlib.Path) -> Iterator[Any]:
    import tensorflow_datasets as tfds

    def prepare(example: dict[str, tf.Tensor]) -> tf.Tensor:
        image = example["image"]
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            area_range=(0.3, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )
        x = tf.image.resize(tf.slice(image, begin, size), (IMAGE_SIZE, IMAGE_SIZE)) / 255
        return (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]

    dataset = tfds.ImageFolder(str(folder)).as_dataset(split="train", shuffle_files=True)
    dataset = dataset.repeat().shuffle(1000).map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(dataset.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


def torch_speed(folder: pathlib.Path, seconds: float) -> float:
    program = ["benchmarks.torch_loader", str(folder), f"{seconds}", f"{CORES}"]
    done = subprocess.run(
        [sys.executable, "-m", *program], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def memory(config: Config, num_batches: int) -> list[tuple[int, int]]:
    """(batches, MiB in use) twenty times on the way."""
    batches, curve = ours(dataclasses.replace(config, batch_size=8)), []
    for n in range(1, num_batches + 1):
        next(batches)
        if n % max(num_batches // 20, 1) == 0:
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            curve.append((n, pages * os.sysconf("SC_PAGE_SIZE") >> 20))
            print(f"{n:,} batches: {curve[-1][1]:,} MiB", file=sys.stderr)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default="runs/input_pipeline")
    parser.add_argument("--files", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--batches", type=int, help="measure memory over so many batches")
    arguments = parser.parse_args()
    size = make_jpegs(arguments.images, arguments.out / "train", number=arguments.files)
    print(f"{arguments.files} files of {size:,} bytes, {CORES} cores", file=sys.stderr)
    files = sorted((arguments.out / "train").rglob("*.jpg"))
    sizes = [f"--config.batch_size={BATCH_SIZE}"]
    config = make_config(arguments.out, *sizes)
    if arguments.batches:
        print(json.dumps({"memory_mib": memory(config, arguments.batches)}))
        return
    shards = arguments.out.with_name(arguments.out.name + "_shards")
    pack = ["jepa_jax.data", "pack", str(arguments.out), str(shards), "--splits=train"]
    subprocess.run([sys.executable, "-m", *pack], check=True, stdout=subprocess.DEVNULL)
    from_shards = make_config(shards, "--config.data.source=shards", *sizes)

    contestants: dict[str, Callable[[float], float]] = {
        "decoding, whole": lambda s: speed(decoded(files, config, whole=True), s),
        "decoding, the crop": lambda s: speed(decoded(files, config, whole=False), s),
        "ours, files": lambda s: speed(ours(config), s),
        "ours, shards": lambda s: speed(ours(from_shards), s),
        "ours, files, no masks": lambda s: speed(ours(config, masks=False), s),
        "torch": lambda s: torch_speed(arguments.out / "train", s),
        "tfds": lambda s: speed(plain_tfds(arguments.out), s),
    }
    results: dict[str, list[int]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, measure in contestants.items():
            results[name].append(round(measure(arguments.seconds)))
            print(f"{name}: {results[name][-1]:,} img/s", file=sys.stderr)
    print(json.dumps({"images_per_second": results, "file_bytes": size, "cores": CORES}))


if __name__ == "__main__":
    main()
