"""Shards against the folder that they were packed from; killed packing; damaged shards."""

import dataclasses
import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest
from conftest import stream_of
from PIL import Image
from test_sources import data_config, load

from jepa_jax.config import resolve
from jepa_jax.data.__main__ import pack_splits
from jepa_jax.data.sources import open_source
from jepa_jax.encoder import load_encoder
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.loop import train
from jepa_jax.training.metrics import read_metrics

CLASSES = ("ant", "b\u00e9e", "cat")


def make_folder(root, count=40, seed=0, kinds=("JPEG", "PNG", "WEBP")):
    """Photographs of different sizes, formats and modes, and one turned by EXIF; train and test."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        folder = root / ("test" if i % 4 == 3 else "train") / CLASSES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(30, 70, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        kind = kinds[i % 5 % len(kinds)]
        exif = Image.Exif()
        exif[0x0112] = 6 if i % 7 == 0 else 1
        image = image.convert("L") if i % 6 == 0 and kind == "JPEG" else image
        image.save(folder / f"{i:03d}.{kind.lower()}", kind, exif=exif)
    return root


def packed(folder, destination, images_per_shard=8, splits=("train", "test")):
    return pack_splits(
        str(folder),
        destination,
        splits=list(splits),
        images_per_shard=images_per_shard,
        tfds_dir=None,
    )


def opened(root, split="train", source="shards", **fields):
    return open_source(data_config(source=source, path=str(root), **fields), split)


def contents(root):
    """All files, hidden ones too: path -> SHA-256."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def shards(folder, tmp_path):
    packed(folder, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize("split", ["train", "test"])
def test_shards_are_the_folder_file_for_file(folder, shards, split):
    ours, theirs = opened(shards, split), opened(folder, split, "folder")
    assert ours.num_examples == theirs.num_examples > 8
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert ours.labels.dtype == theirs.labels.dtype
    assert ours.class_names == theirs.class_names == CLASSES
    assert ours.digest == theirs.digest
    assert (ours.channels, ours.dtype) == (theirs.channels, theirs.dtype)
    for i in range(ours.num_examples):
        path = theirs.describe(i)
        assert ours.read(i) == pathlib.Path(path).read_bytes()
        assert ours.name(i) == theirs.name(i)
        assert path.endswith(ours.describe(i).split(" in ")[0])


def test_training_batches_are_those_of_the_folder_bit_for_bit(tiny, folder, shards):
    batches = {}
    for source, root in (("folder", folder), ("shards", shards)):
        tiny.data.update({"source": source, "path": str(root)})
        config = resolve(tiny)
        stream = stream_of(config, open_source(config.data, "train"))
        batches[source] = list(stream.batches(0, 5))
    assert len(batches["shards"]) == 5
    for ours, theirs in zip(batches["shards"], batches["folder"], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=True)


def test_a_run_that_goes_on_from_shards_ends_as_on_the_folder_bit_for_bit(
    tiny, folder, shards, tmp_path
):
    """Every loss and every parameter, of a run all on the folder and one that was switched."""
    tiny.objective.masks.update({"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)})
    tiny.logging.every_steps = 1

    def run(workdir, source, root, epochs):
        tiny.data.update({"source": source, "path": str(root)})
        tiny.epochs, tiny.optimizer.ipe_scale = epochs, 4 / epochs  # of one length of schedule
        config = resolve(tiny)
        stream = stream_of(config, open_source(config.data, "train"))
        train(config, tmp_path / workdir, objective=make_objective(config), stream=stream)

    run("folder", "folder", folder, 4)
    run("switched", "folder", folder, 2)
    run("switched", "shards", shards, 4)
    names = ("folder", "switched")
    ours, theirs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in names)
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (ours, theirs)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    weights = [jax.tree.leaves(load_encoder(tmp_path / name)[1]) for name in names]
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_split_has_as_many_shards_as_it_needs_and_says_what_they_hold(folder, tmp_path):
    said = packed(folder, tmp_path / "s", images_per_shard=7)
    names = sorted(path.name for path in (tmp_path / "s" / "train").iterdir())
    of_shards = [f"0000{k}-of-00005.array_record" for k in range(5)]
    assert names == [*of_shards, "labels.npy", "manifest.json", "names.txt"]
    manifest = json.loads((tmp_path / "s" / "train" / "manifest.json").read_text())
    assert [shard["count"] for shard in manifest["shards"]] == [7, 7, 7, 7, 2]
    for file in manifest["shards"] + manifest["files"]:
        data = (tmp_path / "s" / "train" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert said["train"]["images"] == manifest["count"] == 30
    assert said["train"]["bytes"] == sum(shard["bytes"] for shard in manifest["shards"])
    assert manifest["came_from"]["path"] == str(folder)


def test_gray_images_without_classes_stay_so(tmp_path):
    (tmp_path / "gray" / "train").mkdir(parents=True)
    for i in range(3):
        image = Image.fromarray(np.full((20, 20), 50 * i, np.uint8))
        image.save(tmp_path / "gray" / "train" / f"{i}.png")
    (tmp_path / "gray" / "train" / "two\nlines.png").write_bytes(
        (tmp_path / "gray" / "train" / "0.png").read_bytes()
    )
    packed(tmp_path / "gray", tmp_path / "shards", splits=["train"])
    data = data_config(source="shards", path=str(tmp_path / "shards"))
    source = open_source(dataclasses.replace(data, mean=(), std=()), "train")
    assert (source.channels, source.labels, source.class_names) == (1, None, ())
    assert source.describe(3).startswith(r"two\nlines.png in ")
    assert load(source, [1])[0, 0, 0] == 50


def test_a_bad_image_is_left_out_counted_and_named(folder, tmp_path, caplog):
    images = make_folder(tmp_path / "images")
    bad = sorted((images / "train" / "ant").iterdir())[1]
    bad.write_bytes(bad.read_bytes()[:100])
    said = packed(images, tmp_path / "shards")
    assert (said["train"]["bad"], said["train"]["images"]) == (1, 29)
    assert said["test"]["bad"] == 0
    assert f"ant/{bad.name}: " in caplog.text
    assert "1 of 30 images of train are bad and left out" in caplog.text
    assert opened(tmp_path / "shards").digest != opened(images, source="folder").digest
    bad.unlink()
    ours, theirs = opened(tmp_path / "shards"), opened(images, source="folder")
    assert ours.digest == theirs.digest  # as if it had never been there
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert [ours.read(i) for i in range(29)] == [theirs.read(i) for i in range(29)]


def test_missing_cut_and_extra_shards_are_refused_by_name(shards):
    first, second = (shards / "train" / f"0000{k}-of-00004.array_record" for k in (0, 1))
    whole = first.read_bytes()
    first.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"00000-of-00004.array_record has .* bytes; must have"):
        opened(shards)
    first.unlink()
    with pytest.raises(UserError, match=r"00000-of-00004.array_record is missing"):
        opened(shards)
    first.write_bytes(whole)
    extra = shards / "train" / "00004-of-00005.array_record"
    extra.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"00004-of-00005.array_record is none of the 4 shards"):
        opened(shards)
    extra.unlink()
    assert opened(shards).num_examples == 30


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": 2}', '{"format": 1}', '{"format": 1, "shards": 3, "files": []}'],
)
def test_a_damaged_manifest_is_one_line(shards, text):
    (shards / "train" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"train/manifest.json (can't be read|is (damaged|of))"):
        opened(shards)


def test_a_folder_that_is_not_packed_is_told_how(folder):
    with pytest.raises(UserError, match=r"there is no .*manifest.json; write it with python -m"):
        opened(folder)
    with pytest.raises(UserError, match=r"config.data.path = None"):
        opened("")


def test_splits_of_other_classes_are_refused(shards, tmp_path):
    other = make_folder(tmp_path / "other", count=2)
    packed(other, tmp_path / "two", splits=["train"])
    (shards / "train").rename(tmp_path / "away")
    (tmp_path / "two" / "train").rename(shards / "train")
    with pytest.raises(UserError, match=r"has 3 classes, which are not the 2 of the training"):
        opened(shards, "test")


def test_a_damaged_record_is_a_bad_image_at_its_turn(shards, caplog):
    source = opened(shards)
    path = shards / "train" / "00001-of-00004.array_record"
    data, image = bytearray(path.read_bytes()), source.read(11)
    data[data.find(image) + len(image) // 2] ^= 1
    path.write_bytes(data)
    source = opened(shards)
    bad = [i for i in range(30) if source.problem(i)]
    assert bad == [11]
    assert source.problem(11).startswith("damaged record")
    np.testing.assert_array_equal(load(source, [11]), load(source, [12]))
    assert f"{source.name(11).decode()} in {path}: damaged record" in caplog.text
