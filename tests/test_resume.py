"""What a resumed run may change, and the way from a published checkpoint to a run of one's own."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from conftest import run_module, stream_of, tiny_config
from PIL import Image

from jepa_jax.batch.spec import DataIdentity
from jepa_jax.config import resolve
from jepa_jax.config.formats import with_format
from jepa_jax.config.schema import to_dict
from jepa_jax.data.sources import open_source
from jepa_jax.errors import UserError
from jepa_jax.train import pretrain
from jepa_jax.training import checkpoint
from jepa_jax.training.metrics import read_metrics
from jepa_jax.training.resume import check_resumable

RECORDED = pathlib.Path(__file__).parent / "data" / "reference_tiny" / "start.pth.tar"


@pytest.fixture
def saved(tiny, tmp_path):
    """As much of a checkpoint as is looked at: its configuration, and that it has an optimizer."""

    def save(config, data=None):
        folder = tmp_path / "run" / "checkpoints" / "5"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "optimizer_state").mkdir(parents=True)
        (folder / "config").mkdir()
        metadata = json.dumps(with_format(to_dict(config)))
        (folder / "config" / "metadata").write_text(metadata)
        if data is not None:
            (folder / "data").mkdir()
            (folder / "data" / "metadata").write_text(json.dumps(data._asdict()))
        return folder

    return save


def changed(config, dotted, value):
    section, _, field = dotted.rpartition(".")
    if not section:
        return dataclasses.replace(config, **{field: value})
    outer, _, inner = section.partition(".")
    node = getattr(config, outer)
    if inner:
        new = dataclasses.replace(getattr(node, inner), **{field: value})
        node = dataclasses.replace(node, **{inner: new})
    else:
        node = dataclasses.replace(node, **{field: value})
    return dataclasses.replace(config, **{outer: node})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.path", "/elsewhere"),
        ("data.tfds_dir", "/elsewhere"),
        ("data.bad_share", 0.5),
        ("data.test_split", "val"),
        ("data.eval_crop", 0.875),
        ("logging.every_steps", 7),
        ("checkpoint.keep_last", 9),
        ("mesh.fsdp", 2),
        ("compute.scan_layers", True),
        ("compute.remat", "full"),
        ("profile.hlo", True),
        ("epochs", 99),
        ("optimizer.lr", 0.5),
    ],
)
def test_case_29_what_does_not_make_it_another_run_may_change_and_is_told(
    tiny, saved, field, value
):
    config = resolve(tiny)
    told = check_resumable(saved(config), changed(config, field, value))
    assert list(told) == [field]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 9),
        ("batch_size", 32),
        ("data.source", "folder"),
        ("data.train_split", "test"),
        ("data.crop_scale", (0.5, 1.0)),
        ("data.mean", (0.5, 0.5, 0.5)),
        ("model.depth", 3),
        ("model.drop_path_rate", 0.5),
        ("init.std", 0.5),
        ("objective.loss", "smooth_l1"),
        ("objective.masks.num_targets", 3),
        ("objective.predictor.depth", 2),
        ("objective.ema.start_momentum", 0.5),
    ],
)
def test_case_29_what_makes_it_another_run_is_refused_by_name(tiny, saved, field, value):
    config = resolve(tiny)
    with pytest.raises(UserError, match=rf"config\.{field} = .*: the run in .* another --workdir"):
        check_resumable(saved(config), changed(config, field, value))


def test_ratios_are_compared_by_the_sizes_that_they_give(tiny, saved):
    """From 64 features and 279 hidden units a ratio of 279 / 64 is recovered, not 48 / 11."""
    tiny.model.update({"embed_dim": 64, "mlp_ratio": 48 / 11})
    config = resolve(tiny)
    recovered = changed(config, "model.mlp_ratio", 279 / 64)
    assert int(64 * 48 / 11) == 279
    assert check_resumable(saved(recovered), config) == {}
    with pytest.raises(UserError, match=r"config\.model\.mlp_hidden_dim = 280: the run in .* 279"):
        check_resumable(saved(config), changed(config, "model.mlp_ratio", 280 / 64))


@pytest.fixture
def photos(tmp_path):
    """24 images of two classes, 32 x 48 pixels."""
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "photos" / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_a_published_checkpoint_is_converted_and_trained_on_own_images(photos, tmp_path):
    """The README's flow, by its commands: convert, then train with the same file and a path."""
    pytest.importorskip("torch")
    meta = json.loads((RECORDED.parent / "meta.json").read_text())
    side = meta["image_size"]
    fields = [
        f"--config.data.image_size=({side},{side})",
        "--config.batch_size=8",
        "--config.epochs=2",
        "--config.optimizer.warmup_epochs=1",
        "--config.mesh.fsdp=1",
        "--config.compute.dtype=float32",
        "--config.objective.masks.context_tokens=3",
        "--config.objective.masks.num_targets=2",
        "--config.objective.masks.target_scale=(0.15,0.15)",  # one step to compile
        "--config.objective.masks.target_aspect_ratio=(1.0,1.0)",
        f"--config.model.num_heads={meta['num_heads']}",
        f"--config.objective.predictor.num_heads={meta['num_heads']}",
        f"--config.model.patch_size={meta['patch_size']}",
        f"--config.model.embed_dim={meta['embed_dim']}",
        f"--config.model.depth={meta['depth']}",
        f"--config.objective.predictor.embed_dim={meta['predictor_embed_dim']}",
        f"--config.objective.predictor.depth={meta['predictor_depth']}",
        "--config.model.mlp_ratio=4",
        "--config.logging.every_steps=1",
    ]
    config = ["--config", "configs/in1k_vith14_ep300.py"]
    workdir = tmp_path / "converted"
    done = run_module("convert", "official-to-orbax", str(RECORDED), str(workdir), *config, *fields)
    assert done.returncode == 0, done.stderr
    done = run_module(
        "train", *config, *fields, f"--workdir={workdir}", f"--config.data.path={photos}"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 6
    assert "config.data.path was None and is" in done.stderr
    # And on, without the file: with what was saved.
    done = run_module("train", f"--workdir={workdir}", "--config.epochs=3")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 9


def test_without_a_file_there_must_be_a_run(tmp_path):
    done = run_module("train", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: --workdir {tmp_path}: holds no run to resume; start one with --config FILE\n"
    )


def test_a_data_set_that_has_moved_gives_the_same_batches(tiny, photos, tmp_path):
    tiny.data.update({"source": "folder", "path": str(photos)})
    config = resolve(tiny)
    (before,) = stream_of(config, open_source(config.data, "train")).batches(0, 1, None)
    photos.rename(tmp_path / "moved")
    moved = changed(config, "data.path", str(tmp_path / "moved"))
    (after,) = stream_of(moved, open_source(moved.data, "train")).batches(0, 1, None)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_the_same_images_may_come_from_another_source(tiny, saved):
    config, images = resolve(tiny), DataIdentity(80, "aa")
    elsewhere = changed(config, "data.source", "folder")
    assert list(check_resumable(saved(config, images), elsewhere, images)) == ["data.source"]
    with pytest.raises(UserError, match=r"config\.data\.source = folder: the run in "):
        check_resumable(saved(config), elsewhere, images)  # nobody knows whether they are the same


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (DataIdentity(79, "bb"), "79 training images, and the run in .* has 80; put the images"),
        (DataIdentity(80, "bb"), "80 training images, as many as .* their names differ; put the"),
    ],
)
def test_case_42_other_images_are_refused_unless_they_are_accepted(tiny, saved, caplog, now, said):
    config = resolve(tiny)
    folder = saved(config, DataIdentity(80, "aa"))
    with pytest.raises(UserError, match=said) as refused:
        check_resumable(folder, config, now)
    assert "another --workdir" in str(refused.value)
    assert "--accept-changed-data" in str(refused.value)
    assert check_resumable(folder, config, now, accept_changed_data=True) == {}
    assert f"the data changed after step 5: {now.num_examples} training images" in caplog.text


def test_an_identity_that_is_damaged_is_named(tiny, saved):
    config = resolve(tiny)
    folder = saved(config, DataIdentity(80, "aa"))
    for text in ("", "{}", "[]"):
        (folder / "data" / "metadata").write_text(text)
        with pytest.raises(UserError, match=r"no identity of its data in .*metadata"):
            check_resumable(folder, config, DataIdentity(80, "aa"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """80 images in `images`, and in `run` a run on them, stopped at step 15 of 20."""
    folder, rng = tmp_path_factory.mktemp("stopped"), np.random.default_rng(0)
    for number in range(80):
        path = folder / "images" / "train" / "abcd"[number % 4] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(path)
    config = tiny_config()
    config.epochs = 4
    config.data.update({"source": "folder", "path": str(folder / "images")})
    config.objective.masks.update({"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)})
    config.logging.update(
        {"every_steps": 1, "diagnostics_every_steps": None, "knn_every_steps": None}
    )
    config.checkpoint.every_steps = 15
    assert pretrain(resolve(config), folder / "run")["step"] == 20
    shutil.rmtree(folder / "run" / "checkpoints" / "20")
    return folder


def resume(folder, **options):
    """From its newest checkpoint, on the images that lie beside it."""
    config = checkpoint.read_config(checkpoint.find(folder / "run"))
    config = changed(config, "data.path", str(folder / "images"))
    return pretrain(config, folder / "run", **options)["step"]


def test_with_an_image_less_a_run_goes_on_only_if_the_user_says_so(stopped, tmp_path, caplog):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    run, before = folder / "run", (folder / "run" / "metrics.jsonl").read_text()
    (folder / "images" / "train" / "b" / "13.png").unlink()
    command = [f"--workdir={run}", f"--config.data.path={folder / 'images'}"]
    done = run_module("train", *command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"error: config.data.path = {str(folder / 'images')!r}: 79 training images, and the run in "
        f"{run} has 80; put the images back, choose another --workdir, or say "
        "--accept-changed-data to go on with these"
    )
    assert (run / "metrics.jsonl").read_text() == before

    # Four steps an epoch are left: it ends at 16. From then on these are the run's images.
    done = run_module("train", *command, "--accept-changed-data")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 16
    assert f"the data changed after step 15: 79 training images, and the run in {run} has 80" in (
        done.stderr
    )
    folder_16 = checkpoint.find(run)
    now = open_source(checkpoint.read_config(folder_16).data, "train")
    assert checkpoint.read_data(folder_16) == (79, now.digest)
    caplog.clear()
    assert resume(folder) == 16
    assert "the data changed" not in caplog.text


def test_an_image_of_another_name_is_another_image(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    images = folder / "images" / "train"
    (images / "b" / "13.png").rename(images / "c" / "13.png")
    with pytest.raises(UserError, match="80 training images, as many as the run in"):
        resume(folder)


@pytest.mark.parametrize("has_identity", [True, False])
def test_images_that_moved_are_the_same_and_an_old_checkpoint_does_not_say(
    stopped, tmp_path, caplog, has_identity
):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    if not has_identity:  # as format 2 was before it had one
        saved = checkpoint.find(folder / "run")
        shutil.rmtree(saved / "data")
        (saved / "manifest.json").unlink()
        config = saved / "config" / "metadata"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 2}))
    assert resume(folder) == 20
    assert ("could not be checked that these 80 are the same" in caplog.text) != has_identity
    assert checkpoint.read_data(checkpoint.find(folder / "run")).num_examples == 80
    losses = [
        [row["loss"] for row in read_metrics(run / "run" / "metrics.jsonl")]
        for run in (stopped, folder)
    ]
    assert losses[0] == losses[1]
