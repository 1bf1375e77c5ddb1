"""From the bytes of image files to pixels: all that people's folders hold."""

import io
import resource
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from jepa_jax.data import resize as resizing
from jepa_jax.data.decode import MAX_PIXELS, BadImageError, Pixels, read_crop
from jepa_jax.data.resize import resize

RGB, GRAY = Pixels(3, np.dtype(np.uint8)), Pixels(1, np.dtype(np.uint8))
WIDE = Pixels(1, np.dtype(np.uint16))


def smooth(height=40, width=60, channels=3, seed=0):
    """A picture without symmetry, that survives JPEG."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 6, channels), np.uint8)
    planes = [
        np.asarray(Image.fromarray(p).resize((width, height), 3)) for p in small.T.swapaxes(1, 2)
    ]
    return np.stack(planes, axis=-1)


def saved(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    return file.getvalue()


def whole(data, wanted=RGB):
    """All of an image, at its own size."""
    size = []

    def box(height, width):
        size.extend([height, width])
        return np.array([0, 0, height, width])

    read_crop(data, box, (8, 8), wanted)
    return read_crop(data, box, tuple(size[:2]), wanted)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_exif_says_and_cut_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
    data = saved(smooth(), kind, exif=exif, **exact)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert upright.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    ours = read_crop(data, lambda h, w: np.array([3, 5, 16, 20]), (16, 20), RGB)
    difference = np.abs(ours.astype(int) - upright[3:19, 5:25]).max()
    assert difference <= (12 if kind == "JPEG" else 0)  # two decoders


def test_damaged_exif_is_no_reason_to_leave_an_image_out():
    data = saved(smooth(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert whole(data).shape == (40, 60, 3)


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA", "CMYK", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP"])
def test_every_kind_of_pixels_becomes_the_colours_that_are_seen(kind, mode):
    image = Image.fromarray(smooth()).convert(mode)
    try:
        data = saved(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    except (OSError, KeyError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    seen = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(whole(data).astype(int) - seen).max() <= (12 if kind == "JPEG" else 0)
    gray = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L")).astype(int)
    assert np.abs(whole(data, GRAY)[..., 0] - gray).max() <= (12 if kind == "JPEG" else 1)


def test_a_transparent_palette_keeps_its_colours():
    image = Image.fromarray(smooth()).quantize(16)
    data = saved(image, "PNG", transparency=3)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(whole(data), expected)
    opaque = whole(data, Pixels(4, np.dtype(np.uint8)))
    np.testing.assert_array_equal(opaque[..., 3] == 0, np.asarray(image) == 3)


def test_the_first_picture_of_an_animation_is_taken():
    frames = [Image.fromarray(smooth(seed=seed)).quantize(32) for seed in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(whole(file.getvalue()), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_read_as_such_and_rounded_to_eight(channels):
    wide = np.random.default_rng(0).integers(0, 65536, (9, 7, channels), np.uint16)
    data = tf.io.encode_png(wide).numpy()
    ours = whole(data, Pixels(channels, np.dtype(np.uint16)))
    np.testing.assert_array_equal(ours, wide)
    narrow = whole(data, Pixels(channels, np.dtype(np.uint8)))
    assert np.abs(narrow / 255 - wide / 65535).max() <= 0.5 / 255 + 1e-9


def test_eight_bits_among_sixteen_keep_black_and_white():
    data = saved(np.array([[0, 255, 128]], np.uint8), "PNG")
    np.testing.assert_array_equal(whole(data, WIDE)[0, :, 0], [0, 65535, 128 * 257])


BAD = {
    "empty": b"",
    "one byte": b"\xff",
    "text": b"hello",
    "error page": b"<!DOCTYPE html><html>404</html>",
    "cut PNG": saved(smooth(), "PNG")[:-200],
    "cut JPEG, at its end": saved(smooth(), "JPEG")[:-10],
    "half a JPEG": saved(smooth(), "JPEG")[:-700],
    "cut WebP": saved(smooth(), "WEBP")[:-50],
    "cut BMP": saved(smooth(), "BMP")[:-500],
    "floats": saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("top", [0, 30])
def test_damaged_images_are_refused_wherever_the_crop_is(name, top):
    """A JPEG is decoded no further than the crop: what is cut off below must not matter less."""
    with pytest.raises(BadImageError):
        read_crop(BAD[name], lambda h, w: np.array([top, 0, 10, 10]), (8, 8), RGB)


@pytest.mark.parametrize("side", [11_000, 20_000, 65_500])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_header_that_claims_a_huge_image_is_refused_without_decoding(kind, side):
    data = bytearray(saved(smooth(), kind))
    if kind == "PNG":
        data[16:24] = side.to_bytes(4) * 2
        data[29:33] = __import__("zlib").crc32(data[12:29]).to_bytes(4)
    else:
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = side.to_bytes(2) * 2
    assert side**2 > MAX_PIXELS
    most_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; on macOS bytes
    with pytest.raises(BadImageError, match="too large"):
        whole(bytes(data))
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_before
    assert more * (1 if sys.platform == "darwin" else 1024) < 100e6  # the least would take 363e6


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_tiny_and_narrow_images_are_resized(size):
    data = saved(np.full((*size, 3), 77, np.uint8), "PNG")
    ours = read_crop(data, lambda h, w: np.array([0, 0, h, w]), (16, 16), RGB)
    np.testing.assert_array_equal(ours, 77)


def test_text_in_a_png_does_not_count_as_pixels():
    text = PngInfo()
    text.add_text("Comment", "x" * 10_000)
    np.testing.assert_array_equal(
        whole(saved(Image.fromarray(smooth()), "PNG", pnginfo=text)), smooth()
    )


def filter_matrix(n, m, interpolation):
    """The antialiased filter as a matrix [m, n], in float64: its kernel is as wide as the step."""

    def kernel(x):
        x = np.abs(x)
        if interpolation == "bilinear":
            return np.maximum(0, 1 - x)
        near = 1.5 * x**3 - 2.5 * x**2 + 1  # Keys (1981), a = -1/2
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    step = n / m
    centre = (np.arange(m)[:, None] + 0.5) * step
    weights = kernel((np.arange(n)[None] + 0.5 - centre) / max(step, 1))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(31, 22), (80, 64), (20, 90)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resizing_is_the_antialiased_filter(interpolation, size, dtype):
    image = smooth(50, 37).astype(dtype) * dtype(257 if dtype == np.uint16 else 1)
    rows = filter_matrix(50, size[0], interpolation)
    columns = filter_matrix(37, size[1], interpolation)
    exact = np.einsum("ai,bj,ijc->abc", rows, columns, image.astype(np.float64))
    most = np.iinfo(dtype).max
    ours = resize(image, size, interpolation).astype(np.float64)
    assert np.abs(ours - exact.clip(0, most)).max() <= 1.6  # each pass rounds
    if interpolation == "bilinear":
        theirs = tf.image.resize(image, size, antialias=True).numpy()
        assert np.abs(ours - theirs).max() <= 1.1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_where_the_library_has_no_wheel_pillow_gives_the_same_within_one(
    interpolation, channels, monkeypatch
):
    image, box = smooth(50, 37)[..., :channels], (2.5, 1.25, 30.0, 44.5)
    both = [resize(image, (31, 22), interpolation, box).astype(int)]
    monkeypatch.setattr(resizing, "cykooz_resizer", None)
    both.append(resize(image, (31, 22), interpolation, box).astype(int))
    assert both[0].shape == both[1].shape == (31, 22, channels)
    assert np.abs(both[0] - both[1]).max() <= 1
    moved = resize(image, (31, 22), interpolation, (3.5, 1.25, 30.0, 44.5)).astype(int)
    assert np.abs(both[0] - moved).max() > 1


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_channels_are_resized_each_by_itself(channels):
    image = smooth(channels=channels)
    ours = resize(image, (20, 30), "bilinear")
    alone = [resize(image[..., c : c + 1], (20, 30), "bilinear") for c in range(channels)]
    assert np.abs(ours.astype(int) - np.concatenate(alone, axis=-1)).max() <= 1
