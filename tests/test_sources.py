"""Images by number: bundled arrays, folders of files, TensorFlow Datasets."""

import gzip
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import REPOSITORY, load_config_file
from PIL import Image

from jepa_jax.config import resolve
from jepa_jax.data.bundled import make_fashion_mnist
from jepa_jax.data.clutter import clutter
from jepa_jax.data.crops import Crop, center_crop
from jepa_jax.data.sources import array_source, open_source
from jepa_jax.errors import UserError


def data_config(**fields):
    config = load_config_file("fashion_mnist")
    config.data.update(fields)
    return resolve(config).data


whole = center_crop(aspect_ratio=1.0, share=1.0)


def load(source, index, crop=whole, size=(28, 28)):
    return source.load(tf.constant(index, tf.int64), crop, size)[0].numpy()


def at(boxes):
    """A crop at boxes that are given, one for each example."""
    draws = tf.constant(boxes, tf.float64)
    return Crop(lambda i: tf.gather(draws, i), lambda u, h, w: u.astype(np.int64))


def test_a_folder_that_was_not_set_is_asked_for():
    with pytest.raises(UserError, match=r"config\.data\.path = None: must be set"):
        open_source(data_config(source="folder", path=""), "train")


def test_the_bundled_images_are_balanced_and_grey():
    for split, count in (("train", 10000), ("test", 2000)):
        source = open_source(data_config(), split)
        assert source.num_examples == count
        assert np.bincount(source.labels).tolist() == [count // 10] * 10
        assert len(source.class_names) == 10
        images = load(source, range(100))
        assert images.shape == (100, 28, 28, 3)
        assert images.min() == 0
        assert images.max() == 255
        np.testing.assert_array_equal(images, images[..., :1].repeat(3, axis=-1))


def test_the_configs_mean_and_deviation_are_those_of_the_training_images():
    data = data_config()
    pixels = load(open_source(data, "train"), range(10000))[..., 0] / 255
    assert pixels.mean() == pytest.approx(data.mean[0], abs=1e-3)
    assert pixels.std() == pytest.approx(data.std[0], abs=1e-3)


def test_training_and_test_images_are_different():
    train = {x.tobytes() for x in load(open_source(data_config(), "train"), range(10000))}
    test = {x.tobytes() for x in load(open_source(data_config(), "test"), range(2000))}
    assert len(train & test) <= 5  # Fashion-MNIST itself has a few duplicates


def test_the_bundling_script_takes_the_first_of_each_class(tmp_path):
    folder = tmp_path / "usr" / "share" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    labels = np.tile(np.arange(10, dtype=np.uint8), 201)
    images = np.arange(2010 * 4, dtype=np.uint32).astype(np.uint8).reshape(2010, 2, 2)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
        header = bytes([0, 0, 8, array.ndim]) + shape
        path = folder / f"t10k-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(header + array.tobytes()))
    kept, kept_labels = make_fashion_mnist.subset(folder, "test")
    np.testing.assert_array_equal(kept, images[:2000])
    np.testing.assert_array_equal(kept_labels, labels[:2000])


def test_array_crops_equal_tensorflows_resize_of_each_crop():
    """One call of crop_and_resize for the whole batch, against one resize per image."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 20, 24, 3), np.uint8)
    boxes = np.array(
        [
            [0, 0, 20, 24],
            [3, 5, 10, 8],
            [19, 23, 1, 1],
            [0, 4, 7, 20],
            [10, 0, 10, 24],
            [2, 2, 9, 9],
        ]
    )
    source = array_source(images, None, (), (28, 30))
    assert source.images_per_call is None
    ours = load(source, range(6), at(boxes), (28, 30))
    for image, (top, left, height, width), resized in zip(images, boxes, ours, strict=True):
        crop = image[top : top + height, left : left + width]
        expected = tf.image.resize(crop, (28, 30)).numpy()
        if height < 28 and top + height < 20:
            # Beyond the crop's edge the batch version sees the neighbouring pixels of the image,
            # not a copy of the edge: only the interior is the same.
            margin = int(np.ceil(28 / height / 2)) + 1, int(np.ceil(30 / width / 2)) + 1
            inner = np.s_[margin[0] : -margin[0], margin[1] : -margin[1]]
            np.testing.assert_allclose(resized[inner], expected[inner], atol=0.51)
    np.testing.assert_allclose(ours[0], tf.image.resize(images[0], (28, 30)), atol=0.51)


def test_channels_that_the_images_do_not_have_are_refused():
    """Gray becomes the three of RGB, but not the four of RGB and opacity."""
    gray = np.zeros((2, 8, 8, 1), np.uint8)
    assert array_source(gray, None, (), (8, 8)).channels == 3
    for channels in (2, 4, 13):
        with pytest.raises(UserError, match=rf"has {channels} values, and the images have 1"):
            array_source(gray, None, (), (8, 8), channels=channels)


@pytest.mark.parametrize("size", [(8, 8), (4, 4)])
def test_gray_of_sixteen_bits_becomes_three_equal_channels(size):
    gray = np.random.default_rng(0).integers(0, 65536, (2, 8, 8, 1), np.uint16)
    x = load(array_source(gray, None, (), size), range(2), size=size)
    assert x.shape == (2, *size, 3)
    assert x.dtype == np.uint16
    np.testing.assert_array_equal(x, x[..., :1].repeat(3, axis=-1))
    if size == (8, 8):
        np.testing.assert_array_equal(x[..., :1], gray)


def test_making_images_smaller_is_antialiased():
    """Stripes of one pixel become grey, not a Moiré pattern."""
    stripes = np.zeros((1, 64, 64, 1), np.uint8)
    stripes[:, :, ::2] = 255
    small = load(array_source(stripes, None, (), (16, 16)), [0], size=(16, 16))
    assert small.shape == (1, 16, 16, 3)
    np.testing.assert_allclose(small[0, 4:-4, 4:-4], 127.5, atol=2)


def test_clutter_puts_each_picture_whole_somewhere_at_some_size_in_front():
    """Every second picture is white, and every other one grey, which its pieces are then too."""
    pictures = np.full((200, 28, 28), 90, np.uint8)
    pictures[::2] = 250
    canvases = clutter(pictures, seed=0)
    assert canvases.shape == (200, 32, 32)
    sizes, corners = [], []
    for canvas, own in zip(canvases, pictures[:, 0, 0], strict=True):
        rows, columns = np.nonzero(canvas == own)
        for size in range(26, 17, -1):  # the largest whole square of its own brightness
            windows = np.lib.stride_tricks.sliding_window_view(canvas == own, (size, size))
            found = np.argwhere(windows.all(axis=(2, 3)))
            if len(found):
                break
        assert len(found), (rows.min(), columns.min())
        sizes.append(size)
        corners.append(tuple(found[0]))
    assert len(set(sizes)) > 5
    assert len(set(corners)) > 20
    others = np.stack([canvases[::2] == 90, canvases[1::2] == 250])
    assert others.any(axis=(2, 3)).mean() > 0.7  # pieces of other pictures are seen behind


def test_clutter_follows_from_its_seed():
    pictures = np.random.default_rng(0).integers(0, 256, (8, 28, 28), np.uint8)
    np.testing.assert_array_equal(clutter(pictures, seed=3), clutter(pictures, seed=3))
    assert np.any(clutter(pictures, seed=3) != clutter(pictures, seed=4))


def test_the_cluttered_images_keep_the_labels_and_differ_between_the_splits():
    for split in ("train", "test"):
        plain = open_source(data_config(), split)
        cluttered = open_source(data_config(source="cluttered_fashion_mnist"), split)
        np.testing.assert_array_equal(cluttered.labels, plain.labels)
    config = resolve(load_config_file("quickstart")).data
    pixels = load(open_source(config, "train"), np.arange(10_000), size=(32, 32)) / 255
    np.testing.assert_allclose(pixels.mean(), config.mean[0], atol=2e-3)
    np.testing.assert_allclose(pixels.std(), config.std[0], atol=2e-3)


@pytest.fixture
def folder(tmp_path):
    """Two classes; JPEG, PNG and grey images, and a file that is none."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i, ending in enumerate(("jpg", "png", "JPEG")):
                pixels = np.full((40 + i, 60, 3), 40 * (1 + i) + (name == "dog"), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.{ending}")
        grey = Image.fromarray(rng.integers(0, 256, (30, 30), np.uint8))
        grey.save(tmp_path / split / "dog" / "grey.png")
        (tmp_path / split / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_of_classes_gives_images_and_labels(folder):
    source = open_source(data_config(source="folder", path=str(folder)), "train")
    assert source.num_examples == 7
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0] * 3 + [1] * 4
    assert source.describe(0) == str(folder / "train" / "cat" / "0.jpg")
    # Plain colours survive JPEG and resizing.
    for index, value in ((0, 40), (1, 80), (2, 120), (3, 41), (4, 81), (5, 121)):
        np.testing.assert_allclose(load(source, [index]), value, atol=1.5)
    image = load(source, [6])
    np.testing.assert_array_equal(image, image[..., :1].repeat(3, axis=-1))


def test_files_that_are_left_out_are_counted_with_the_reason(folder):
    data, root = data_config(source="folder", path=str(folder)), folder / "train"
    for file in ("1.HEIC", "2.heic", "notes"):
        (root / "dog" / file).write_bytes(b"x")
    source = open_source(data, "train")
    assert source.left_out == {"ending .txt": 1, "ending .heic": 2, "ending missing": 1}
    assert source.num_examples == 7


def test_a_flat_folder_has_no_labels(folder):
    data = data_config(source="folder", path=str(folder), train_split="train/dog")
    source = open_source(data, "train")
    assert source.num_examples == 4
    assert source.labels is None


def test_a_jpeg_crop_equals_the_crop_of_the_decoded_image(tmp_path):
    (tmp_path / "train").mkdir()
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(64, 48, 3)), axis=0) * 4 + 128
    path = tmp_path / "train" / "a.jpg"
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    decoded = tf.io.decode_jpeg(path.read_bytes(), channels=3).numpy()
    source = open_source(data_config(source="folder", path=str(tmp_path)), "train")
    box = np.array([[10, 8, 28, 28]])
    ours = load(source, [0], at(box), (28, 28))[0]
    # Its outermost pixels differ, where the halved colour channels have no neighbour to blend with.
    np.testing.assert_array_equal(ours[1:-1, 1:-1], decoded[11:37, 9:35])


def test_a_folder_without_permission_is_refused(folder):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "train").chmod(0)
    with pytest.raises(UserError, match="no permission"):
        open_source(data_config(source="folder", path=str(folder)), "train")


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """A data set that TFDS knows by name and prepares without a download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(20, 24, 3)),
                "label": tfds.features.ClassLabel(names=["dark", "light"]),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "test": self._generate_examples(10)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": np.full((20, 24, 3), 8 * i, np.uint8), "label": int(i >= 15)}


def test_tensorflow_datasets_are_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    data = data_config(source="tfds", path="tiny_pictures", image_size=(28, 28))
    source = open_source(data, "train")
    assert source.num_examples == 30
    assert source.images_per_call is None
    assert source.class_names == ("dark", "light")
    images = load(source, range(30))
    assert images.shape == (30, 28, 28, 3)
    # TFDS shuffles on preparing: whatever the order, labels belong to their images.
    np.testing.assert_array_equal(source.labels, images[:, 14, 14, 0] >= 8 * 15)
    with pytest.raises(UserError, match=r"split 'validation' .* must be one of test, train"):
        open_source(
            data_config(source="tfds", path="tiny_pictures", train_split="validation"), "train"
        )


def test_an_unknown_tensorflow_dataset_is_refused():
    with pytest.raises(UserError, match=r"config.data.path = 'no_such_set': TFDS knows no such"):
        open_source(data_config(source="tfds", path="no_such_set"), "train")


def test_tensorflow_leaves_accelerators_alone():
    assert tf.config.get_visible_devices("GPU") == []
    assert tf.config.get_visible_devices("TPU") == []


def test_only_the_data_package_imports_tensorflow():
    package = REPOSITORY / "jepa_jax"
    importing = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if "import tensorflow" in path.read_text()
    }
    assert importing == {"data"}
