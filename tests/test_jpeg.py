"""JPEG crops, several files at once and at a part of their size."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jepa_jax.data.decode import BadImageError, Pixels, decode_crops, read_crop, read_header

FULL = Pixels(3, np.dtype(np.uint8))
REDUCED = FULL._replace(reduced_decoding=True)


def photo(orientation=1, size=(600, 450), seed=0):
    """A smooth picture with edges: width, height as stored."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    small.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def test_several_at_once_are_bit_for_bit_each_by_itself():
    files = [photo(seed=i) for i in range(4)]
    boxes = np.array([[0, 0, 450, 600], [10, 20, 200, 300], [200, 1, 250, 99], [3, 3, 40, 40]])
    together, bad = decode_crops([read_header(file) for file in files], boxes, (48, 64), FULL)
    assert not bad
    for file, box, of_all in zip(files, boxes, together, strict=True):
        alone = read_crop(file, lambda h, w, box=box: box, (48, 64), FULL)
        np.testing.assert_array_equal(alone, of_all)


def test_a_damaged_one_among_several_is_told_and_the_others_are_read():
    files = [photo(seed=i) for i in range(3)]
    cut = files[1][: len(files[1]) // 2]
    table = files[2].index(b"\xff\xc4") + 5
    no_code = files[2][:table] + b"\xff" * 16 + files[2][table + 16 :]  # no Huffman code is so
    boxes = np.array([[0, 0, 100, 100]] * 3)
    headers = [read_header(file) for file in files]
    headers[1], headers[2] = headers[1]._replace(data=cut), headers[2]._replace(data=no_code)
    (good, *_), bad = decode_crops(headers, boxes, (32, 32), FULL)
    np.testing.assert_array_equal(good, read_crop(files[0], lambda h, w: boxes[0], (32, 32), FULL))
    assert {i: type(error) for i, error in bad.items()} == {1: BadImageError, 2: BadImageError}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("box", [(30, 41, 390, 370), (7, 3, 220, 230), (101, 203, 60, 70)])
def test_decoding_at_a_part_of_the_size_shows_the_same_crop(orientation, box):
    """At 1/8, 1/4 and 1/2 for a result of 28 x 28: other pixels by a little, in their places."""
    data = photo(orientation)

    def box_of(height, width):
        assert (height, width) == ((600, 450) if orientation > 4 else (450, 600))
        return np.array(box)

    full = read_crop(data, box_of, (28, 28), FULL).astype(float)
    reduced = read_crop(data, box_of, (28, 28), REDUCED)
    assert 0 < np.abs(reduced - full).max() < 20
    assert np.abs(reduced - full).mean() < 2.5
    shifted = np.roll(full, 1, axis=1)
    assert np.abs(reduced - full).mean() < np.abs(reduced - shifted).mean() / 3


def test_a_crop_that_is_hardly_larger_than_the_result_is_decoded_whole():
    data = photo()
    box = np.array([5, 9, 63, 63])
    pixels = [read_crop(data, lambda h, w: box, (32, 32), wanted) for wanted in (FULL, REDUCED)]
    np.testing.assert_array_equal(*pixels)


def test_python_ends_while_a_stream_is_still_open(tmp_path):
    """Its threads call Python, which they can't any more once that has begun to end."""
    for i in range(32):
        (tmp_path / f"{i:02}.jpg").write_bytes(photo(seed=i))
    program = f"""
import numpy as np
from jepa_jax.config import DataConfig
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import open_source
data = DataConfig(source="folder", path={str(tmp_path)!r}, train_split=None, image_size=(32, 32),
                  mean=(0.5,) * 3, std=(0.5,) * 3)
index = np.arange(32).repeat(1000)
batches = eval_batches(data, open_source(data, "train"), index=index, batch_size=16)
print(next(batches).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.strip() == "(16, 32, 32, 3)"
