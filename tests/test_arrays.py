"""NumPy files as a source: the arrays that were saved come out, from memory or from the file."""

import numpy as np
import pytest
from test_sources import at, data_config, load

from jepa_jax.data.sources import array_source, arrays, open_source
from jepa_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 20, 24, 3), np.uint8)
LABELS = np.arange(12) % 3


def opened(path, split="train", **fields):
    return open_source(data_config(source="numpy", path=str(path), **fields), split)


@pytest.fixture
def saved(tmp_path):
    """Saves arrays by their names in a folder, or as one file of them."""

    def save(kind="folder", **named):
        if kind == "npz":
            np.savez_compressed(tmp_path / "all.npz", **named)
            return tmp_path / "all.npz"
        for name, array in named.items():
            np.save(tmp_path / f"{name.removesuffix('_images')}.npy", array)
        return tmp_path

    return save


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_images_and_labels_are_those_that_were_saved(saved, kind):
    path = saved(
        kind,
        train_images=IMAGES,
        train_labels=LABELS,
        test_images=IMAGES[:5],
        test_labels=[[2]] * 5,
    )
    train, test = opened(path), opened(path, "test")
    boxes = np.tile([2, 3, 16, 20], (12, 1))
    crops = load(train, range(12), at(boxes), (16, 20))
    np.testing.assert_array_equal(crops, IMAGES[:, 2:18, 3:23])
    np.testing.assert_array_equal(train.labels, LABELS)
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert test.labels.tolist() == [2] * 5
    assert test.labels.dtype == np.int64


def test_a_large_file_is_cut_on_the_disk_as_a_small_one_in_memory(saved, monkeypatch):
    path = saved(train_images=IMAGES)
    held = opened(path)
    monkeypatch.setattr(arrays, "_IN_MEMORY_BYTES", 0)
    seen = []

    def recorded(images, *rest, **options):
        seen.append(images)
        return array_source(images, *rest, **options)

    monkeypatch.setattr(arrays, "array_source", recorded)
    mapped = opened(path)
    assert isinstance(seen[0], np.memmap)
    assert mapped.images_per_call == 16
    assert mapped.digest == held.digest
    assert mapped.labels is None
    boxes = np.tile([1, 2, 14, 14], (12, 1))
    for size in ((14, 14), (28, 28), (7, 7)):
        ours, theirs = (load(x, range(12), at(boxes), size).astype(int) for x in (mapped, held))
        inner = np.s_[:, 2:-2, 2:-2]  # at the edge, the enlarged batch sees the neighbours
        assert np.abs(ours[inner] - theirs[inner]).max() <= 1


def test_gray_and_floats_keep_their_values(saved):
    gray = opened(saved(train_images=IMAGES[..., 0]), mean=(0.5,), std=(0.5,))
    full = np.tile([0, 0, 20, 24], (12, 1))
    np.testing.assert_array_equal(load(gray, range(12), at(full), (20, 24)), IMAGES[..., :1])
    share = RNG.random((4, 20, 24, 3), np.float32)
    floats = opened(saved(train_images=share))
    x = load(floats, range(4), at(full), (20, 24))
    assert np.abs(x / 65535 - share).max() <= 0.51 / 65535


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({}, r"there is no .*train\.npy"),
        ({"train_images": IMAGES[0, 0]}, r"uint8 \[24, 3\]; images must be \[n, H, W\]"),
        ({"train_images": IMAGES[:0]}, r"\[0, 20, 24, 3\]; images must be"),
        ({"train_images": np.moveaxis(IMAGES, 3, 1)}, r"looks like \[n, C, H, W\]"),
        ({"train_images": IMAGES.astype(np.int64)}, r"int64 .* must be uint8, uint16"),
        ({"train_images": IMAGES / 127.0}, r"float64 .* must be uint8, uint16, or numbers in 0..1"),
        ({"train_images": np.full((2, 9, 9, 3), np.nan)}, r"nan: must be uint8"),
        ({"train_images": np.array([{}], object)}, r"train can't be read: .*Python objects"),
        ({"train_images": IMAGES[..., :2]}, r"mean: has 3 values, and the images have 2 channels"),
        ({"train_images": IMAGES, "train_labels": LABELS[:9]}, r"int64 \[9\], and there are 12"),
        ({"train_images": IMAGES, "train_labels": LABELS / 2}, r"float64 .*must be whole numbers"),
        ({"train_images": IMAGES, "train_labels": LABELS - 1}, r"of -1 to 1; must be within"),
    ],
)
def test_arrays_of_another_kind_are_refused_in_one_line(saved, tmp_path, named, said):
    with pytest.raises(UserError, match=said) as raised:
        opened(saved(**named) if named else tmp_path)
    assert "\n" not in str(raised.value)


def test_a_test_label_that_training_lacks_is_refused(saved):
    path = saved(
        train_images=IMAGES, train_labels=LABELS, test_images=IMAGES, test_labels=LABELS + 1
    )
    with pytest.raises(UserError, match=r"labels 3 of test are not among those of train"):
        opened(path, "test")


def test_what_is_no_folder_and_no_archive_is_refused(tmp_path):
    (tmp_path / "all.npz").write_bytes(b"no archive")
    for name in ("all.npz", "nowhere", "nowhere.npz"):
        with pytest.raises(UserError, match=r"config\.data\.path = .*: train can't be read"):
            opened(tmp_path / name)


def test_an_archive_is_read_only_up_to_what_can_be_held(saved, monkeypatch):
    path = saved("npz", train_images=IMAGES)
    monkeypatch.setattr(arrays, "_IN_MEMORY_BYTES", 1000)
    with pytest.raises(UserError, match=r"too large to be held; save it with numpy.save"):
        opened(path)
