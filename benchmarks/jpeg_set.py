"""A set of JPEG files like ImageNet's, made without a network; and how fast batches of it come."""

import io
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

SIZE = (500, 375)  # width, height: ImageNet's commonest
QUALITY = 90
BATCH_SIZE = 128
IMAGE_SIZE = 224  # of a batch's images
_WARM_UP_BATCHES = 4


def make_jpegs(photos: pathlib.Path, folder: pathlib.Path, *, number: int, seed: int = 0) -> int:
    """Writes `number` JPEG files of 500 x 375 into two class folders, unless they are there.

    Each is four images of `photos`, enlarged side by side, with noise of which an enlarged image
    has none: without it a file would hold a fifth of the bytes that a photograph has.

    Returns:
      Bytes of a file on average.
    """
    sources = sorted(path for path in photos.rglob("*") if path.suffix in (".jpg", ".png"))
    if len(sources) < 4:
        raise SystemExit(f"--images {photos}: must hold four images or more")
    rng, total = np.random.default_rng(seed), 0
    for i in range(number):
        path = folder / f"class{i % 2}" / f"{i:06}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_jpeg([sources[n] for n in rng.integers(len(sources), size=4)], rng))
        total += path.stat().st_size
    return total // number


def _jpeg(parts: list[pathlib.Path], rng: np.random.Generator) -> bytes:
    width, height = SIZE
    whole = Image.new("RGB", SIZE)
    for n, part in enumerate(parts):
        left, top = (n % 2) * (width // 2), (n // 2) * (height // 2)
        size = (width - width // 2, height - height // 2)
        enlarged = Image.open(part).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        whole.paste(enlarged, (left, top))
    noise = rng.normal(0, 7, (height, width, 1)) + rng.normal(0, 3, (height, width, 3))
    noisy = (np.asarray(whole) + noise).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def speed(batches: Iterator[Any], seconds: float) -> float:
    """Images a second, once it runs."""
    for _ in range(_WARM_UP_BATCHES):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count * BATCH_SIZE / (time.perf_counter() - start)
