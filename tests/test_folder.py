"""Folders as people have them: classes of several splits, strays, hidden files, odd names."""

import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_sources import data_config, load

from jepa_jax.data.sources import open_source
from jepa_jax.errors import UserError


def put(root, *names, kind="PNG", value=100):
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(file, kind)


def opened(root, split="train", **fields):
    return open_source(data_config(source="folder", path=str(root), **fields), split)


def test_test_classes_are_numbered_by_the_training_classes(tmp_path, caplog):
    put(tmp_path, "train/ant/1.png", "train/bee/1.png", "train/cat/1.png")
    put(tmp_path, "test/bee/1.png", "test/cat/1.png")
    source = opened(tmp_path, "test")
    assert source.labels.tolist() == [1, 2]
    assert source.class_names == ("ant", "bee", "cat")
    assert "no test images of the classes ant" in caplog.text
    put(tmp_path, "test/dog/1.png")
    with pytest.raises(UserError, match=r"the classes dog are not among those of the training"):
        opened(tmp_path, "test")


def test_images_beside_class_folders_are_refused(tmp_path):
    put(tmp_path, "train/1.png", "train/ant/1.png", "train/ant/2.png")
    with pytest.raises(UserError, match=r"1 images lie in .* itself, beside 2 in its sub-folders"):
        opened(tmp_path)


def test_hidden_files_are_ignored_and_every_known_ending_is_read(tmp_path):
    put(tmp_path, "train/a/1.png", "train/a/._2.png", "train/.cache/3.png", "train/__MACOSX/4.png")
    for kind in ("JPEG", "WEBP", "GIF", "BMP"):
        put(tmp_path, f"train/b/x.{kind.title()}".replace("Jpeg", "jpg"), kind=kind)
    source = opened(tmp_path)
    assert source.class_names == ("a", "b")
    assert source.labels.tolist() == [0, 1, 1, 1, 1]
    assert source.left_out == {"hidden": 3}
    np.testing.assert_allclose(load(source, range(5)), 100, atol=2)


def test_names_of_any_bytes_and_links_are_read(tmp_path):
    put(tmp_path, "train/caf\u00e9/\u732b.png", b"train/a/\xff\xfe.png", b"train/a/two\nlines.png")
    (tmp_path / "elsewhere").mkdir()
    put(tmp_path, "elsewhere/1.png")
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "loop").symlink_to(tmp_path / "train" / "loop")
    source = opened(tmp_path)
    assert source.class_names == ("a", "caf\u00e9", "linked")
    assert source.num_examples == 4
    load(source, range(4))
    assert all("\n" not in source.describe(i) for i in range(4))
    "".join(map(source.describe, range(4))).encode()


def test_channels_follow_from_the_images_where_none_are_set(tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 20), i, np.uint8)).save(tmp_path / "train" / f"{i}.png")
    source = opened(tmp_path)
    assert load(source, [0, 1]).shape == (2, 28, 28, 3)
    gray = opened(tmp_path, mean=(0.5,), std=(0.2,))
    assert load(gray, [0, 1]).shape == (2, 28, 28, 1)


def test_twelve_bits_in_sixteen_are_told(tmp_path, caplog):
    (tmp_path / "train").mkdir()
    wide = np.random.default_rng(0).integers(0, 4096, (28, 28, 1), np.uint16)
    (tmp_path / "train" / "1.png").write_bytes(tf.io.encode_png(wide).numpy())
    source = opened(tmp_path, mean=(0.5,), std=(0.2,))
    assert source.dtype == np.uint16
    np.testing.assert_array_equal(load(source, [0])[0], wide)
    assert f"no pixel of those looked at is above {wide.max()}: 12 bits or less" in caplog.text


def test_a_damaged_image_of_sixteen_bits_does_not_stop_the_opening(tmp_path):
    (tmp_path / "train").mkdir()
    wide = np.random.default_rng(0).integers(0, 65536, (28, 28, 1), np.uint16)
    data = tf.io.encode_png(wide).numpy()
    (tmp_path / "train" / "1.png").write_bytes(data)
    (tmp_path / "train" / "2.png").write_bytes(data[: len(data) // 2])
    source = opened(tmp_path, mean=(0.5,), std=(0.2,))
    assert source.dtype == np.uint16
    assert source.problem(1) == "damaged"
    np.testing.assert_array_equal(load(source, [1])[0], wide)


def test_classes_are_the_same_in_either_form_of_unicode(tmp_path):
    composed, taken_apart = "caf\u00e9", "cafe\u0301"
    put(tmp_path, "train/ant/1.png", f"train/{composed}/1.png", f"test/{taken_apart}/1.png")
    source = opened(tmp_path, "test")
    assert source.labels.tolist() == [1]
    assert source.class_names == ("ant", composed)
    put(tmp_path, f"train/{taken_apart}/2.png")
    with pytest.raises(UserError, match=r"two folders in .* are called caf\u00e9, .* join them"):
        opened(tmp_path)


def test_images_that_lie_too_deep_are_counted(tmp_path):
    put(tmp_path, "train/birds/ant/1.png", "train/birds/bee/2.png", "train/birds/.x/3.png")
    with pytest.raises(UserError, match=r"no images in .* or its sub-folders, but 2 further down"):
        opened(tmp_path)
    put(tmp_path, "train/cat/1.png", "train/cat/old/2.JPG")
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path / "train")
    source = opened(tmp_path)
    assert source.class_names == ("cat",)
    assert source.left_out == {
        "images in sub-folders of sub-folders": 3,
        "in sub-folders that have no images": 1,
        "hidden": 1,
    }


def test_contents_count_and_not_the_ending(tmp_path):
    put(tmp_path, "train/1.jpg", value=70)
    put(tmp_path, "train/2.PNG", kind="JPEG", value=70)
    (tmp_path / "train" / "3.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    source = opened(tmp_path)
    np.testing.assert_allclose(load(source, [0, 1]), 70, atol=2)
    assert [source.problem(i) is None for i in range(3)] == [True, True, False]


def test_files_with_the_same_bytes_are_images_of_their_own(tmp_path):
    put(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/1.png")
    source = opened(tmp_path)
    assert source.num_examples == 3
    assert len({source.describe(i) for i in range(3)}) == 3


def test_a_file_that_is_gone_is_a_bad_image(tmp_path):
    put(tmp_path, "train/1.png", "train/2.png")
    source = opened(tmp_path)
    (tmp_path / "train" / "2.png").unlink()
    assert "No such file" in source.problem(1)
