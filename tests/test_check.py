"""A data set with one of each fault, and what is said of it."""

import io
import json
import shutil

import numpy as np
import pytest
from conftest import run_module
from PIL import Image
from test_shards import make_folder, packed

from jepa_jax.data.__main__ import check_splits
from jepa_jax.data.check import Duplicates, check, look_at
from jepa_jax.data.check_report import report_lines
from jepa_jax.data.decode import Pixels
from jepa_jax.data.reading import open_splits

RGB = Pixels(3, np.dtype(np.uint8))


def encoded(size=(40, 40), kind="PNG", mode="RGB", seed=0, exif=None):
    """A photograph; `size` is height, width."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **({} if exif is None else {"exif": exif}))
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def put(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def checked(root, splits):
    duplicates, reports = Duplicates(), {}
    for split, source in open_splits(str(root), splits, tfds_dir=None).items():
        reports[split] = check(split, source, duplicates)
    return reports, duplicates.find()


@pytest.mark.parametrize(
    ("data", "name", "odd"),
    [
        (encoded(), "a.png", ()),
        (encoded(kind="JPEG"), "a.JPEG", ()),
        (encoded((32, 160)), "a.png", ()),
        (encoded((32, 161)), "a.png", ("aspect ratio beyond 5:1",)),
        (encoded((161, 32)), "a.png", ("aspect ratio beyond 5:1",)),
        (encoded((31, 40)), "a.png", ("a side under 32 pixels",)),
        (encoded(kind="JPEG"), "a.png", ("ending .png, contents JPEG",)),
        (encoded(), "a.jpg", ("ending .jpg, contents PNG",)),
        (encoded(), None, ()),
        (encoded(kind="JPEG", exif=turned(6)), "a.jpg", ("turned by EXIF (6)",)),
        (encoded(kind="JPEG", exif=turned(1)), "a.jpg", ()),
    ],
)
def test_what_is_odd_about_one_image(data, name, odd):
    found = look_at(data, name, RGB)
    assert found.problem is None
    assert found.odd == odd


def test_a_huge_image_is_odd_and_a_larger_one_bad():
    file = io.BytesIO()
    Image.new("L", (7000, 7200)).save(file, "PNG")
    assert look_at(file.getvalue(), None, RGB).odd == ("over 50 million pixels",)
    file = io.BytesIO()
    Image.new("1", (10_000, 10_001)).save(file, "PNG")
    assert look_at(file.getvalue(), None, RGB).problem.startswith("too large")


def test_sides_are_those_of_the_upright_image():
    found = look_at(encoded((40, 60), "JPEG", exif=turned(6)), "a.jpg", RGB)
    assert (found.height, found.width) == (60, 40)


def test_the_rarer_kind_of_image_is_odd(tmp_path):
    def images(gray, colour):
        files = {f"train/g{i}.png": encoded(mode="L", seed=i) for i in range(gray)}
        return files | {f"train/c{i}.png": encoded(seed=i) for i in range(colour)}

    report = checked(put(tmp_path / "a", images(1, 2)), ["train"])[0]["train"]
    assert report.odd == {"g0.png": ["gray among images of colour"]}
    assert report.formats == {"PNG": 2, "PNG, gray": 1}
    report = checked(put(tmp_path / "b", images(2, 1)), ["train"])[0]["train"]
    assert report.odd == {"c0.png": ["colour among images of gray"]}
    wide = io.BytesIO()
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(wide, "PNG")
    mixed = {"train/w.png": wide.getvalue(), **images(2, 0)}
    report = checked(put(tmp_path / "c", mixed), ["train"])[0]["train"]
    assert report.odd == {"w.png": ["16 bits among images of 8 bits"]}


def test_of_many_odd_images_some_are_named_and_all_are_counted_by_what_is_odd(tmp_path):
    files = {f"train/{i:02}.png": encoded((31, 40), seed=i) for i in range(23)}
    files["train/23.png"] = encoded((8, 50), "JPEG")
    reports, groups = checked(put(tmp_path, files), ["train"])
    odd = [line for line in report_lines(reports, groups, []) if line.startswith("odd")]
    assert odd[0] == "odd: train: 00.png: a side under 32 pixels"
    assert len(odd) == 21
    assert odd[20] == (
        "odd: train: 24 in all: 24 a side under 32 pixels, 1 aspect ratio beyond 5:1, "
        "1 ending .png, contents JPEG"
    )


def test_equal_files_are_found_across_splits(tmp_path):
    one, two, three = (encoded(seed=i) for i in range(3))
    root = put(
        tmp_path,
        {
            "train/a/1.png": one,
            "train/a/2.png": two,
            "train/b/3.png": two,
            "train/b/4.png": three,
            "test/a/5.png": three,
            "test/b/6.png": two,
        },
    )
    _, groups = checked(root, ["train", "test"])
    assert groups == [
        [("train", "a/2.png"), ("train", "b/3.png"), ("test", "b/6.png")],
        [("train", "b/4.png"), ("test", "a/5.png")],
    ]


def test_statistics_are_those_of_numpy(tmp_path):
    rng, arrays = np.random.default_rng(0), []
    for i, (height, width) in enumerate([(40, 90), (50, 80), (60, 70), (66, 64)]):
        arrays.append(rng.integers(0, 60 * i + 70, (height, width, 3), np.uint8))
        (tmp_path / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrays[-1]).save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    put(tmp_path, {"test/a/1.png": encoded(), "test/a/2.png": encoded(seed=1)[:-300]})
    reports, _ = checked(tmp_path, ["train", "test"])
    report = reports["train"]
    assert (report.height, report.width) == ((40, 55, 66), (64, 75, 90))
    pixels = [array.reshape(-1, 3) / 255 for array in arrays]
    mean = np.mean([p.mean(0) for p in pixels], axis=0)  # each image counts alike
    std = np.sqrt(np.mean([(p**2).mean(0) for p in pixels], axis=0) - mean**2)
    np.testing.assert_allclose(report.mean, mean, atol=5.1e-5)
    np.testing.assert_allclose(report.std, std, atol=5.1e-5)
    assert report.per_class == {"a": 2, "b": 2}
    assert reports["test"].per_class == {"a": 2, "b": 0}
    assert list(reports["test"].bad) == ["a/2.png"]


def test_a_large_image_is_sampled_evenly():
    ramp = np.linspace(0, 255, 1000).astype(np.uint8)
    x = np.stack([np.tile(ramp, (600, 1)), np.tile(ramp[:600, None], (1, 1000))], -1)
    x = np.concatenate([x, x[..., :1]], -1)
    file = io.BytesIO()
    Image.fromarray(x).save(file, "PNG")
    found = look_at(file.getvalue(), None, RGB)
    np.testing.assert_allclose(found.mean, x.mean((0, 1)) / 255, atol=0.005)


def test_shards_give_the_report_of_their_folder(tmp_path):
    folder = make_folder(tmp_path / "images", count=24)
    shutil.copy(folder / "train" / "ant" / "000.jpeg", folder / "test" / "cat" / "zzz.jpeg")
    packed(folder, tmp_path / "shards")
    want, found = (
        check_splits(str(root), splits=["train", "test"], tfds_dir=None)
        for root in (folder, tmp_path / "shards")
    )
    assert found == want
    assert want["duplicates"] == want["duplicates_across_splits"] == 1
    assert want["splits"]["train"]["odd"] > 0


def test_the_command_names_everything_and_ends_with_code_3_and_a_line(tmp_path):
    folder = make_folder(tmp_path / "images", count=16)
    packed(folder, tmp_path / "shards")
    shard = tmp_path / "shards" / "test" / "00000-of-00001.array_record"
    data, image = bytearray(shard.read_bytes()), (folder / "test/ant/003.jpeg").read_bytes()
    data[data.find(image) + 200] ^= 1
    shard.write_bytes(data)
    done = run_module("data", "check", str(tmp_path / "shards"))
    assert done.returncode == 3
    said = json.loads(done.stdout)
    assert said["bad"] == said["splits"]["test"]["bad"] == 1
    assert said["changed_files"] == [str(shard)]
    assert f"changed: {shard} does not match its checksum" in done.stderr
    assert "bad: test: ant/003.jpeg: damaged record" in done.stderr
    assert "checking train: 100%" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"error: {tmp_path / 'shards'}: 1 bad images of 16, 1 files that do not match their "
        "checksums"
    )
