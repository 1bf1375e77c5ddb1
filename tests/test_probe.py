"""The command probe: its errors come before any work, and what it writes is told apart."""

import dataclasses
import shutil
import signal

import numpy as np
import pytest
import scipy.stats

from jepa_jax import command_line, protocols
from jepa_jax.config import probe_data, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation import comparison, head_training
from jepa_jax.evaluation.feature_files import FeatureFiles
from jepa_jax.evaluation.heads import HeadState
from jepa_jax.evaluation.scores import paired
from jepa_jax.evaluation.table import comparison_line
from jepa_jax.opened import open_checkpoint
from jepa_jax.probe import _check_images, _name, probe_checkpoint
from jepa_jax.protocols import num_train, open_sources

RNG = np.random.default_rng(0)


def saved(folder, train, test):
    """A folder of arrays: grey images of 28 x 28, with these labels."""
    folder.mkdir()
    for split, labels in (("train", train), ("test", test)):
        np.save(folder / f"{split}.npy", RNG.integers(0, 256, (len(labels), 28, 28), np.uint8))
        np.save(folder / f"{split}_labels.npy", labels)
    return folder


def probe_config(protocol, data, *overrides):
    fields = ("data.source=numpy", f"data.path={data}", *overrides)
    return resolve_probe(
        load_config(f"configs/probe/{protocol}.py", [f"--config.{field}" for field in fields])
    )


@pytest.mark.parametrize(
    ("protocol", "overrides", "labels", "message"),
    [
        ("knn", ["layers=(-3,-1)"], (0, 1), r"config\.layers = .*the encoder has only 2 blocks"),
        ("knn", ["low_shot.per_class=9"], (0, 1), r"config\.low_shot\.per_class = 9: .*at most 8"),
        ("knn", ["candidates=(1,13)"], (0, 1), "there are only 12 images to be neighbours"),
        ("linear", ["low_shot.per_class=1"], (0, 1), "a class has only 1 training image, and it"),
        ("linear_lars", [], (0, 0), "all training images are of one class, 0"),
        ("linear_lars", ["head_batch_size=99"], (0, 1), "= 99: must be at most 12, the training"),
        ("attentive", ["num_heads=3"], (0, 1), "num_heads = 3: must divide 16, the width of the"),
        ("segmentation", ["target=no"], (0, 1), "'no': the array train_no of .* is not there"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    small, tmp_path, monkeypatch, protocol, overrides, labels, message
):
    def trained(*_args, **_kwargs):
        raise AssertionError("an image was read")

    monkeypatch.setattr(head_training, "make_step", trained)
    monkeypatch.setattr(comparison, "encode_images", trained)
    data = saved(tmp_path / "data", np.arange(16) % 2 * labels[1], np.arange(4) % 2 * labels[1])
    shared = ["controls=False", "validation_fraction=0.25"]
    shared += ["candidates=(1,)"] if protocol == "knn" else []
    with pytest.raises(UserError, match=message) as raised:
        probe_checkpoint(
            probe_config(protocol, data, *shared, *overrides),
            small.folder,
            results=tmp_path / "results",
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "results").exists()


def test_fine_tuning_keeps_no_features(small, tmp_path):
    config = resolve_probe(load_config("configs/probe/fine_tune.py", []))
    knn = resolve_probe(load_config("configs/probe/knn.py", []))
    with pytest.raises(UserError, match=r"--workdir .*: is of the protocol fine_tune; knn has no"):
        probe_checkpoint(knn, small.folder, workdir=tmp_path)
    with pytest.raises(UserError, match=r"--features .*: fine_tune keeps none"):
        probe_checkpoint(config, small.folder, workdir=tmp_path, features=tmp_path / "f")
    assert not any(tmp_path.iterdir())


def test_results_of_another_encoder_or_size_have_names_of_their_own(small):
    opened = open_checkpoint(small.folder)
    other = open_checkpoint(small.folder, "encoder")
    config = resolve_probe(load_config("configs/probe/knn.py", []))
    larger = resolve_probe(load_config("configs/probe/knn.py", ["--config.data.image_size=35,28"]))
    deeper = resolve_probe(load_config("configs/probe/knn.py", ["--config.layers=-2,-1"]))
    names = [
        _name("knn", of, one, probe_data(of, one.config))
        for of, one in ((config, opened), (config, other), (larger, opened), (deeper, opened))
    ]
    assert names == [
        "knn-checkpoint",
        "knn-encoder-checkpoint",
        "knn-35x28-checkpoint",
        "knn-blocks-2_-1-checkpoint",
    ]


def test_a_low_shot_result_counts_the_images_of_one_split(small, tmp_path):
    data = saved(tmp_path / "data", np.arange(60) % 3, np.arange(6) % 3)
    for fields, count in (([], 60), (["low_shot.per_class=4", "low_shot.splits=3"], 12)):
        config = probe_config("knn", data, *fields)
        sources = open_sources(config, probe_data(config, small.config))
        assert num_train(config, sources) == count


def test_the_paired_test_of_two_checkpoints_is_printed():
    right = RNG.random((2, 200)) < [[0.7], [0.5]]
    wins, losses = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
    p = scipy.stats.binomtest(int(wins), int(wins + losses)).pvalue
    line = comparison_line(paired(*right))
    assert f"{(wins - losses) / 200:+.3f}" in line
    assert f"p = {p:.2g} (McNemar)" in line


@pytest.mark.parametrize(
    ("width", "wanted", "used"), [(588, 16, 14), (192, 16, 16), (3, 16, 3), (7, 4, 1)]
)
def test_pixels_have_as_many_attention_heads_as_divide_them(width, wanted, used):
    """588: ViT-H/14's patches, whose probe failed after the encoders' heads were trained."""
    config = resolve_probe(
        load_config("configs/probe/attentive.py", [f"--config.num_heads={wanted}"])
    )
    assert protocols._for_pixels(config, width).num_heads == used


def test_heads_are_not_taken_up_again_with_other_labels(small, tmp_path, monkeypatch):
    """Arrays of the same images: their digest is the same."""
    taken = []
    monkeypatch.setattr(
        protocols, "train_heads", lambda *_, progress, **__: taken.append(progress) or {}
    )
    data = saved(tmp_path / "a", np.arange(8) % 2, np.arange(4) % 2)
    opened = open_checkpoint(small.folder)
    config = probe_config("linear_lars", data, "controls=False")
    for labels in (np.arange(8) % 2, np.arange(8) // 4, np.arange(8) % 2):
        np.save(data / "train_labels.npy", labels)
        found = probe_data(config, opened.config)
        sources = open_sources(config, found)
        protocols.head_rows(config, opened, {}, found, sources, features=tmp_path / "features")
    assert taken[0] == taken[2] != taken[1]


def test_damaged_heads_are_refused_and_a_full_disk_is_one_line(tmp_path):
    path = tmp_path / "heads.npz"
    state = HeadState(np.int32(8), {"kernel": np.ones((4, 3), np.float32)}, {}, {})
    head_training._save(path, state, 2)
    whole = path.read_bytes()
    loaded, epochs = head_training._load(path, state)
    assert (epochs, loaded.params["kernel"].shape) == (2, (4, 3))
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"heads\.npz: can't go on from it: .*; move it away"):
            head_training._load(path, state)
    path.write_bytes(whole.replace(np.ones(4, np.float32).tobytes(), bytes(16)))
    with pytest.raises(UserError, match="can't go on from it"):
        head_training._load(path, state)
    with pytest.raises(StoppedRunError, match=r"heads\.npz: can't be written: "):
        head_training._save(path / "heads.npz", state, 2)  # a file in the place of the folder
    assert [file.name for file in tmp_path.iterdir()] == ["heads.npz"]


def test_an_interrupted_command_is_one_line(capsys):
    def command(arguments, overrides):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exited:
        command_line.run_command(command, command_line.make_parser("x", "x"), [])
    assert exited.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "error: interrupted\n"


def test_folders_that_cannot_be_written_are_refused_before_the_work(small, tmp_path):
    config = resolve_probe(load_config("configs/probe/knn.py", []))
    (tmp_path / "file").touch()
    for flag in ("results", "features"):
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(UserError, match=f"--{flag} .*file is not a folder"):
                probe_checkpoint(config, small.folder, **{flag: folder})


def test_of_two_checkpoints_the_message_says_which(small, tmp_path):
    config = resolve_probe(load_config("configs/probe/knn.py", []))
    with pytest.raises(UserError, match=rf"^--against {tmp_path}: no checkpoint there"):
        probe_checkpoint(config, small.folder, against=tmp_path)


def test_images_that_one_of_the_encoders_cannot_take_are_refused(small):
    opened = open_checkpoint(small.folder)
    for fields, message in (
        ({"image_size": (28, 32)}, r"--against .*: its model\.patch_size is 7, which must divide"),
        ({"mean": (0.5,), "std": (0.3,)}, "it takes images of 3 channels, and these have 1"),
    ):
        data = dataclasses.replace(small.config.data, **fields)
        with pytest.raises(UserError, match=message):
            _check_images("--against", opened, data)
    _check_images("--against", opened, dataclasses.replace(small.config.data, image_size=(56, 28)))


def test_features_that_cannot_be_kept_end_in_one_line(tmp_path):
    files = FeatureFiles(tmp_path, {"of": "these"}, count=2, shape=(3,), dtype="float32")
    shutil.rmtree(files.folder)
    with pytest.raises(StoppedRunError, match=r"bad-00000\.npy: can't be written: No such file"):
        files.add(np.zeros((2, 3), np.float32), [])
