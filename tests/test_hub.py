"""Hugging Face hub ids, from a stand-in for the cache that huggingface_hub fills; no network."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY, as_module

from jepa_jax.config import resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.convert import orbax_to_hf
from jepa_jax.encoder import load_encoder
from jepa_jax.errors import UserError
from jepa_jax.interop.hub import local_path
from jepa_jax.probe import probe_checkpoint

ID, COMMIT = "facebook/tiny", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def home(small, tmp_path_factory):
    """A cache after a download: `refs` say which commit a branch is, `snapshots` hold the files."""
    pytest.importorskip("huggingface_hub")
    home = tmp_path_factory.mktemp("huggingface")
    repository = home / "hub" / "models--facebook--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    orbax_to_hf(small.folder, repository / "snapshots" / COMMIT, network="encoder")
    return home


@pytest.fixture
def offline(home, monkeypatch):
    """As HF_HUB_CACHE and HF_HUB_OFFLINE=1 do it, which are read when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home / "hub" / "models--facebook--tiny" / "snapshots" / COMMIT


def run_offline(home, *command):
    return subprocess.run(
        [*as_module(), *command],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_hub_id_is_loaded_from_the_cache(small, offline):
    encode, params = load_encoder(ID)
    assert encode.network == "encoder"
    kernel = params["patch_embed"]["kernel"]
    np.testing.assert_array_equal(kernel, small.encoder["patch_embed"]["kernel"])


def test_a_path_that_exists_wins_over_a_hub_id(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_path(ID) == offline
    (tmp_path / ID).mkdir(parents=True)
    assert str(local_path(ID)) == ID


def test_a_name_below_a_folder_that_exists_is_a_path(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facebook").mkdir()
    with pytest.raises(UserError, match=r"facebook/tiny: no checkpoint there; give a workdir"):
        load_encoder(ID)


@pytest.mark.parametrize("path", ["runs", "a/b/c", "/a/b", "../a", "a b/c"])
def test_what_can_not_be_a_hub_id_is_a_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it fails
    assert str(local_path(path)) == path


def test_an_id_that_can_not_be_fetched_says_in_one_line_what_to_download(offline):
    with pytest.raises(UserError) as error:
        load_encoder("facebook/absent")
    said = str(error.value)
    assert said.startswith("facebook/absent: no such path here, and as a Hugging Face hub id it ")
    assert said.endswith(
        "download config.json, preprocessor_config.json, *.safetensors from "
        "https://huggingface.co/facebook/absent into a folder, and give that"
    )
    assert "\n" not in said


def test_without_huggingface_hub_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install huggingface_hub .* or download config\.json"):
        load_encoder(ID)


def test_only_the_files_that_are_read_are_asked_for(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert local_path(ID) == tmp_path
    assert asked.pop("repo_id") == ID
    files = ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    others = ("pytorch_model.bin", "tf_model.h5", "README.md")
    patterns = asked.pop("allow_patterns")
    assert asked == {}
    matched = list(hub.utils.filter_repo_objects([*files, *others], allow_patterns=patterns))
    assert matched == list(files)


def test_the_commands_take_a_hub_id(home, tmp_path):
    """As a user runs them: the environment says where the cache is."""
    np.save(tmp_path / "images.npy", np.zeros((2, 28, 28, 3), np.uint8))
    done = run_offline(
        home,
        *("jepa_jax.extract", "--checkpoint", ID),
        *("--images", tmp_path / "images.npy", "--out", tmp_path / "f.npz", "--batch-size=8"),
    )
    assert done.returncode == 0, done.stderr
    assert f'"checkpoint": "{ID}"' in done.stdout
    done = run_offline(home, "jepa_jax.convert", "hf-to-orbax", ID, tmp_path / "workdir")
    assert done.returncode == 0, done.stderr
    assert f'"source": "{ID}"' in done.stdout
    encode, params = load_encoder(tmp_path / "workdir")
    features = np.load(tmp_path / "f.npz")["pooled"]
    images = encode.preprocess(np.zeros((2, 28, 28, 3), np.uint8))
    # The conversion takes the normalisation of its --config, which is ImageNet's, as is that here.
    np.testing.assert_allclose(encode(params, images).mean(axis=1), features, atol=1e-4)


def test_a_hub_id_is_probed_on_images_that_are_named(offline, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for number, name in enumerate("ab"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (28, 28, 3)) + 155 * number  # dark and bright
                png = tf.io.encode_png(pixels.astype(np.uint8)).numpy()
                (folder / f"{i}.png").write_bytes(png)
    overrides = ["--config.candidates=(1,)", "--config.batch_size=8"]
    config = load_config("configs/probe/knn.py", overrides)
    with pytest.raises(UserError, match=r"config\.data\.path = None: must be set"):
        probe_checkpoint(resolve_probe(config), ID)
    config["data"] = {"path": str(tmp_path / "photos")}
    result = probe_checkpoint(resolve_probe(config), ID)
    assert result["accuracy"] == 1.0
    assert result["controls"].keys() == {"random_init", "raw_pixels"}
    assert result["reduced"] == {"raw_pixels": {"columns": 28 * 28 * 3, "components": 19}}
    assert result["network"] == "encoder"
