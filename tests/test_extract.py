"""Features written by the command: folders, arrays, odd batches, several devices, bad input."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jepa_jax import extract, protocols
from jepa_jax.batch.pixels import normalize
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import open_source
from jepa_jax.encoder import load_encoder
from jepa_jax.evaluation import feature_files
from jepa_jax.opened import open_checkpoint


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; gives the JSON line, or the error line and the exit code."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["extract", *map(str, arguments)])
        try:
            extract.main()
        except SystemExit as stop:
            return capsys.readouterr().err.strip().splitlines()[-1], stop.code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


@pytest.fixture(scope="module")
def expected_of(small):
    """Features by the Python interface."""

    def compute(images, network="target_encoder"):
        encode, params = load_encoder(small.folder, network=network)
        return np.asarray(jax.jit(encode)(params, images))

    return compute


@pytest.mark.parametrize(("count", "batch_size"), [(1, 64), (19, 8), (16, 3)])
def test_normalised_arrays_in_any_batches_on_eight_devices(
    small, tmp_path, run, expected_of, count, batch_size
):
    """The batches are rounded up to the devices, and the last one is cut."""
    assert jax.device_count() == 8
    images = np.random.default_rng(0).normal(size=(count, 28, 28, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    said = run(
        *("--checkpoint", small.folder, "--images", tmp_path / "x.npy"),
        *("--out", tmp_path / "f.npz", "--batch-size", batch_size),
    )
    with np.load(tmp_path / "f.npz") as written:
        assert set(written) == {"patches", "pooled", "network"}
        assert written["patches"].dtype == written["pooled"].dtype == np.float32
        expected = expected_of(images)
        np.testing.assert_allclose(written["patches"], expected, atol=1e-5)
        np.testing.assert_allclose(written["pooled"], expected.mean(axis=1), atol=1e-5)
        assert written["network"] == said["network"] == "target_encoder"
    assert said["images"] == count
    assert said["patches"] == [count, 16, 16]


def test_raw_arrays_are_prepared_and_the_other_tower_can_be_had(small, tmp_path, run, expected_of):
    raw = np.random.default_rng(0).integers(0, 256, (5, 40, 33, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", raw)
    run(
        *("--checkpoint", small.folder, "--images", tmp_path / "x.npy", "--network", "encoder"),
        *("--out", tmp_path / "f.npz", "--pooled-only"),
    )
    prepared = load_encoder(small.folder)[0].preprocess(raw)
    with np.load(tmp_path / "f.npz") as written:
        assert set(written) == {"pooled", "network"}
        assert written["network"] == "encoder"
        expected = expected_of(prepared, "encoder").mean(axis=1)
        np.testing.assert_allclose(written["pooled"], expected, atol=1e-5)


def test_a_folder_of_classes_at_another_size(small, tmp_path, run, expected_of):
    """ImageBatches of several sizes, in sub-folders; files, labels and features in one order."""
    rng, raw = np.random.default_rng(0), []
    for name, size in (("cat/1.png", (50, 40)), ("cat/2.png", (42, 42)), ("dog/1.png", (42, 60))):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        raw.append(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        Image.fromarray(raw[-1]).save(tmp_path / "photos" / name)
    said = run(
        *("--checkpoint", small.folder, "--images", tmp_path / "photos"),
        *("--out", tmp_path / "f.npz", "--image-size", "42,35"),
    )
    assert said["patches"] == [3, 30, 16]
    encode, _ = load_encoder(small.folder)
    prepared = np.stack([np.asarray(encode.preprocess(image, (42, 35))) for image in raw])
    with np.load(tmp_path / "f.npz") as written:
        # Prepared by another library, to within one of 255 levels: see test_encoder.py.
        np.testing.assert_allclose(written["patches"], expected_of(prepared), atol=0.05)
        assert written["labels"].tolist() == [0, 0, 1]
        names = [
            str(tmp_path / "photos" / name) for name in ("cat/1.png", "cat/2.png", "dog/1.png")
        ]
        assert written["files"].tolist() == names


@pytest.mark.parametrize(
    ("array", "arguments", "message"),
    [
        (np.zeros((2, 28, 28, 3)), (), r"float64 \[2, 28, 28, 3\]: must be uint8 (raw) or float32"),
        (np.zeros((2, 28, 28), np.float32), (), r"[2, 28, 28]: must be [n, H, W, 3]"),
        (np.zeros((0, 28, 28, 3), np.float32), (), r"must be [n, H, W, 3]"),
        (np.zeros((2, 30, 28, 3), np.float32), (), r"must be multiples of the patch size, 7"),
        (np.zeros((2, 28, 28, 3), np.float32), ("--image-size", "35"), r"leave --image-size out"),
        (
            np.zeros((2, 28, 28, 3), np.uint8),
            ("--image-size", "30"),
            r"30,30: both must be multiples",
        ),
        (np.zeros((2, 28, 28, 3), np.uint8), ("--image-size", "x"), r"must be H,W or one number"),
        (np.zeros((2, 28, 28, 3), np.uint8), ("--batch-size", "0"), r"--batch-size 0: must be"),
        (np.array([{}, {}], object), (), r"can't be read"),
        (None, (), r"must be a folder of images, or a .npy file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    small, tmp_path, run, array, arguments, message
):
    if array is not None:
        np.save(tmp_path / "x.npy", array)
    line, code = run(
        *("--checkpoint", small.folder, "--images", tmp_path / "x.npy"),
        *("--out", tmp_path / "f.npz", *arguments),
    )
    assert code == 2
    assert message.replace("\\", "") in line
    assert {path.name for path in tmp_path.iterdir()} <= {"x.npy"}


def test_an_unreadable_image_stops_it_and_nothing_is_left(small, tmp_path, run):
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / "photos" / "1.png")
    (tmp_path / "photos" / "2.png").write_bytes(b"no picture")
    line, code = run(
        *("--checkpoint", small.folder, "--images", tmp_path / "photos"),
        *("--out", tmp_path / "f.npz"),
    )
    assert code == 3
    assert "2.png" in line
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_split_goes_to_the_files_that_the_probe_reuses_and_is_gone_on_with(
    small, tmp_path, run, monkeypatch
):
    """Files of 600 images; stopped before the last, nothing of them is read again."""
    monkeypatch.setattr(feature_files, "_FILE_BYTES", 600 * 2 * 16 * 4)
    arguments = ("--checkpoint", small.folder, "--split=test", "--layers=-2,-1", "--batch-size=500")

    def on_one_device(*arguments, **options):  # as those that a run's checkpoint is restored to
        opened = open_checkpoint(*arguments, **options)
        return opened._replace(weights=jax.device_put(opened.weights, jax.devices()[0]))

    monkeypatch.setattr(extract, "open_checkpoint", on_one_device)
    said = run(*arguments, "--out", tmp_path / "whole")
    folder = pathlib.Path(said["out"])
    count = said["images"]
    assert said["features"] == [32]
    source = open_source(small.config.data, "test")
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), source.labels)
    images = next(eval_batches(small.config.data, source, index=np.arange(8), batch_size=8))
    encode, params = load_encoder(small.folder)
    data = small.config.data
    tokens = encode(params, normalize(images, data.mean, data.std), layers=(0, 1))
    expected = np.concatenate(np.asarray(tokens).mean(axis=2), axis=-1)  # [n, L * D]
    np.testing.assert_allclose(np.load(folder / "features-00000.npy")[:8], expected, atol=1e-5)

    opened = open_checkpoint(small.folder)
    sink = protocols._files(
        opened, {"pretrained": opened.weights}, small.config.data, tmp_path / "whole", (0, 1)
    )
    reused = sink("test", source, "pretrained")
    assert (reused.folder, reused.done) == (folder, count)

    cut = tmp_path / "cut" / folder.name
    shutil.copytree(folder, cut)
    numbers = sorted(cut.glob("features-*.npy"))
    numbers[-1].unlink()
    before = (cut / "labels.npy").stat().st_ino  # which who reads it now keeps
    read = []

    def counted(data, source, *, index, **rest):
        read.extend(index)
        return eval_batches(data, source, index=index, **rest)

    monkeypatch.setattr("jepa_jax.evaluation.extraction.eval_batches", counted)
    run(*arguments, "--out", tmp_path / "cut")
    assert read == list(range(600 * (len(numbers) - 1), count))
    for path in folder.iterdir():
        assert path.read_bytes() == (cut / path.name).read_bytes()
    assert (cut / "labels.npy").stat().st_ino != before
    assert len(list(cut.iterdir())) == len(list(folder.iterdir()))


def test_files_that_were_changed_in_place_are_other_images(small, tmp_path):
    data = dataclasses.replace(
        small.config.data, source="folder", path=str(tmp_path), train_split=None
    )
    identities = []
    for seed in (0, 0, 1):
        pixels = np.random.default_rng(seed).integers(0, 255, (3, 8, 8, 3), np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        source = open_source(data, "train")
        weights = {"kernel": np.ones(2)}
        identities.append(
            feature_files.identity_of(
                small.config, weights, data, source, split="train", features={}
            )
        )
    assert identities[0] == identities[1] != identities[2]
    assert len({identity["images"]["digest"] for identity in identities}) == 1  # of names alone
