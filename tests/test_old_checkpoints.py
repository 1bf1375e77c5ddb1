"""Checkpoints that earlier versions wrote: they are extracted, probed and resumed as they were."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from conftest import run_module

import jepa_jax
from jepa_jax.training.metrics import read_metrics

FORMAT_1 = pathlib.Path(__file__).parent / "data" / "format_1"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A run at step 10 of 20 in `run`, a converted checkpoint in `converted`, and features."""
    folder = tmp_path_factory.mktemp("format_1")
    for archive in ("run", "converted"):
        shutil.unpack_archive(FORMAT_1 / f"{archive}.tar.xz", folder, filter="data")
    return folder


@pytest.mark.parametrize(
    ("recorded", "workdir", "network"),
    [
        ("target_encoder", "run", "target_encoder"),
        ("encoder", "run", "encoder"),
        ("converted", "converted", "target_encoder"),
    ],
)
def test_features_are_those_that_were_recorded(old, recorded, workdir, network):
    expected = np.load(old / "features.npz")
    encode, params = jepa_jax.load_encoder(old / workdir, network=network)
    features = encode(params, encode.preprocess(expected["images"]))
    np.testing.assert_allclose(features, expected[recorded], atol=2e-5)


@pytest.mark.parametrize(("network", "accuracy"), [("target_encoder", 0.574), ("encoder", 0.623)])
def test_case_27_a_probe_gives_the_accuracy_that_was_recorded(old, network, accuracy):
    arguments = ["--config", "configs/probe/knn.py", "--checkpoint", str(old / "run")]
    result = run_module("probe", *arguments, "--network", network, "--config.controls=False")
    assert json.loads(result.stdout.splitlines()[-1])["accuracy"] == pytest.approx(
        accuracy, abs=2e-3
    )


def test_case_27_a_run_goes_on_with_the_losses_that_were_recorded(old, tmp_path):
    shutil.copytree(old / "run", tmp_path / "run")
    recorded = read_metrics(old / "run" / "metrics.jsonl")
    result = run_module("train", "--workdir", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["step"] == 20
    resumed = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in resumed] == list(range(1, 21))
    # When they were recorded, resized pixels were not yet rounded to 8 bits.
    for name in ("loss", "lr", "weight_decay", "momentum", "gradient_norm", "parameter_norm"):
        np.testing.assert_allclose(
            [row[name] for row in resumed], [row[name] for row in recorded], rtol=1e-4, err_msg=name
        )
