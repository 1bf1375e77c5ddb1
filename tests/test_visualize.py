"""Pictures of what a model gets, read back from the files; and the command that draws them."""

import json
import sys

import matplotlib.image
import numpy as np
import pytest
from conftest import REPOSITORY

from jepa_jax.batch.masks import RandomPatches
from jepa_jax.batch.spec import BatchSpec, View
from jepa_jax.config import resolve
from jepa_jax.data.originals import original
from jepa_jax.data.sources import array_source
from jepa_jax.data.stream import make_stream
from jepa_jax.reporting.batch_pictures import masks_picture, views_picture
from jepa_jax.visualize import main

VIEWS = (
    View("global", (16, 16), 2, crop_scale=(0.3, 0.6)),
    View("local", (8, 8), 3, crop_scale=(0.05, 0.2)),
)


def where(path, colour):
    """Number of pixels of a colour in a picture; their mean place, from the left and the top."""
    pixels = np.round(255 * matplotlib.image.imread(path)[..., :3])
    rows, columns = np.nonzero(np.all(np.abs(pixels - colour) <= 1, axis=-1))
    if not len(rows):
        return 0, 0.0, 0.0
    return len(rows), columns.mean() / pixels.shape[1], rows.mean() / pixels.shape[0]


def visualize(monkeypatch, capsys, *arguments):
    """As on the command line: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["visualize", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_boxes_are_those_of_the_crops_that_are_trained_on(tiny):
    """Red is the row and green the column of a pixel, so a crop's mean tells its centre."""
    rows, columns = np.meshgrid(np.arange(60), np.arange(90), indexing="ij")
    image = np.stack([2 * rows, 2 * columns, 0 * rows], axis=-1).astype(np.uint8)
    source = array_source(np.stack([image] * 8), None, (), (16, 16))
    tiny.data.update({"mean": (0.5,) * 3, "std": (0.25,) * 3})
    needs, data = BatchSpec(VIEWS), resolve(tiny).data
    stream = make_stream(needs, data, source, seed=3, batch_size=4)
    for epoch in (0, 1):
        (batch,) = stream.batches(2 * epoch + 1, 2 * epoch + 2, None)
        for row, index in enumerate(batch["example_index"]):
            one = original(source, VIEWS, index=int(index), epochs=range(0, 2), seed=3, longest=180)
            assert one.pixels.shape == (120, 180, 3)
            for view in VIEWS:
                boxes = one.boxes[view.name, epoch]
                assert len(np.unique(boxes, axis=0)) == view.number  # each by its own draw
                for crop, (top, left, height, width) in zip(
                    batch[view.name][row].astype(float), boxes, strict=True
                ):
                    # Boxes are in pixels of the picture, twice as fine; colours too.
                    assert crop[..., 0].mean() == pytest.approx(top + height / 2 - 1, abs=1.5)
                    assert crop[..., 1].mean() == pytest.approx(left + width / 2 - 1, abs=1.5)


def test_each_view_of_each_image_has_its_place(tmp_path):
    colours = np.random.default_rng(0).permutation(np.arange(30, 240, 21))[:10]
    batch = {
        "global": np.empty((2, 2, 16, 16, 3), np.uint8),
        "local": np.empty((2, 3, 8, 8, 3), np.uint8),
    }
    for row in range(2):
        for column in range(5):
            name, number = ("global", column) if column < 2 else ("local", column - 2)
            batch[name][row, number] = (colours[5 * row + column], 0, 255)
    views_picture(tmp_path / "p.png", BatchSpec(VIEWS), batch, ["dog", "cat"])
    found = [where(tmp_path / "p.png", (colour, 0, 255)) for colour in colours]
    places = np.array(found).reshape(2, 5, 3)
    assert places[..., 0].min() > 10_000
    assert np.all(np.diff(places[..., 1], axis=1) > 0.1)  # from left to right
    assert np.all(np.diff(places[..., 2], axis=0) > 0.3)  # from top to bottom


def test_visible_and_masked_patches_share_the_image(tmp_path, tiny):
    config = resolve(tiny)  # 4 x 4 patches
    needs = BatchSpec((View("image", (28, 28)),), RandomPatches(16, 4))
    batch = {
        "image": np.full((1, 28, 28, 3), (250, 0, 0), np.uint8),
        "visible_index": np.array([[0, 1, 2, 3]], np.int32),  # the first row
        "masked_index": np.arange(4, 16, dtype=np.int32)[None],
    }
    masks_picture(tmp_path / "p.png", config, needs, batch, ["dog"])
    number, from_left, _ = where(tmp_path / "p.png", (250, 0, 0))
    hidden, hidden_left, _ = where(tmp_path / "p.png", np.round(255 * np.array([0.75, 0.84, 0.95])))
    # Of three panels: all of the first, a quarter of the second, three quarters of the third.
    assert number / hidden == pytest.approx(2.0, rel=0.05)
    assert from_left < 0.5 < hidden_left


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *((name, "masks") for name in ("ijepa", "mae", "data2vec", "msn", "swav")),
        *((name, what) for name in ("ijepa", "swav") for what in ("batch", "crops")),
    ],
)
def test_every_objective_s_batch_can_be_looked_at(monkeypatch, capsys, tmp_path, name, what):
    suffix = "" if name == "ijepa" else f"_{name}"
    config = f"{REPOSITORY}/configs/fashion_mnist{suffix}.py"
    out = tmp_path / "new folder" / "picture.png"
    code, said, error = visualize(
        monkeypatch, capsys, "--config", config, "--what", what, "--out", out, "--step", "500"
    )
    if what == "masks" and name == "swav":
        assert code == 2
        assert error == (
            f"error: --what masks: config.objective.name = {name} has no masks; must be batch or "
            "crops\n"
        )
        assert not out.exists()
        return
    assert code == 0, error
    result = json.loads(said.splitlines()[-1])
    assert result["picture"] == str(out)
    assert result["step"] == 500
    assert len(set(result["examples"])) == 8
    assert matplotlib.image.imread(out).std() > 0.1


def test_bad_images_are_not_among_those_whose_features_are_drawn(
    monkeypatch, capsys, tmp_path, small
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test").mkdir()
    for i in range(4):
        image = np.full((28, 28, 3), 50 * i, np.uint8)
        matplotlib.image.imsave(tmp_path / "test" / f"{i}.png", image)
    (tmp_path / "test" / "2.png").write_bytes(b"no image")
    folder = ("--config.data.source=folder", f"--config.data.path={tmp_path}")
    code, said, error = visualize(monkeypatch, capsys, "--checkpoint", small.folder, *folder)
    assert code == 0, error
    assert json.loads(said.splitlines()[-1])["examples"] == [0, 1, 3]


def test_a_checkpoint_alone_gives_its_features(monkeypatch, capsys, tmp_path, small):
    monkeypatch.chdir(tmp_path)
    code, said, error = visualize(monkeypatch, capsys, "--checkpoint", small.folder)
    assert code == 0, error
    result = json.loads(said.splitlines()[-1])
    assert result["picture"] == "features.png"
    assert result["network"] == "target_encoder"
    first = matplotlib.image.imread("features.png")
    assert first.std() > 0.1
    visualize(monkeypatch, capsys, "--checkpoint", small.folder, "--network", "encoder")
    assert not np.array_equal(first, matplotlib.image.imread("features.png"))
    # Its configuration also tells what it was trained on.
    code, said, _ = visualize(
        monkeypatch, capsys, "--checkpoint", small.folder, "--what", "batch", "--config.seed=5"
    )
    assert code == 0
    assert json.loads(said.splitlines()[-1])["picture"] == "batch.png"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs either --config FILE or --checkpoint DIR (see --help)"),
        (["--config=C", "--checkpoint=D"], "needs either --config FILE or --checkpoint DIR"),
        (["--config=C", "--what=features"], "--what features: needs --checkpoint DIR"),
        (["--config=C", "--network=encoder"], "--network goes with --what features"),
        (["--config=C", "--step=-1"], "--step -1: must be at least 0"),
        (["--config=C", "--out=p.jpg"], "--out p.jpg: must end in .png"),
        (["--checkpoint=D", "--config.model.depth=3"], "--config.model.depth=3: a checkpoint's"),
        (["--checkpoint=/nowhere"], "/nowhere: no checkpoint there"),
        (["--config=configs/fashion_mnist.py", "--out=/dev/null/p.png"], "--out /dev/null/p.png"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, said):
    code, out, error = visualize(monkeypatch, capsys, *arguments)
    assert code == 2
    assert out == ""
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
