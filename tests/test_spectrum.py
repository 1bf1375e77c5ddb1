"""Diagnostics of features against float64 NumPy and SciPy; and the command that measures them."""

import json
import shutil
import sys

import numpy as np
import pytest
import scipy.linalg

from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source
from jepa_jax.diagnose import main
from jepa_jax.evaluation import spectrum
from jepa_jax.evaluation.diagnosis import diagnose, draw_sample, read_rows, write_row

RNG = np.random.default_rng(0)
# Correlated, and not centred.
FEATURES = (RNG.normal(size=(60, 8)) @ RNG.normal(size=(8, 8)) + RNG.normal(size=8)).astype("f4")


def test_the_spectrum_and_what_follows_from_it():
    wide = FEATURES.astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(wide.T, bias=True))[::-1]
    np.testing.assert_allclose(spectrum.spectrum(FEATURES), values, rtol=1e-9)
    assert spectrum.stable_rank(FEATURES) == pytest.approx(
        np.trace(np.cov(wide.T, bias=True)) / values[0]
    )
    assert spectrum.spread(FEATURES) == pytest.approx(
        np.mean([np.sqrt(np.mean((wide[:, j] - wide[:, j].mean()) ** 2)) for j in range(8)])
    )


def test_rankme_and_the_mean_cosine_are_those_of_their_formulas():
    wide = FEATURES.astype(np.float64)
    singular = np.sqrt(np.linalg.eigvalsh(wide.T @ wide))
    share = singular / singular.sum() + 1e-7
    row = spectrum.describe(FEATURES)
    assert row["rankme"] == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-4)
    cosines = [
        a @ b / np.sqrt(a @ a * (b @ b))
        for i, a in enumerate(wide)
        for j, b in enumerate(wide)
        if i != j
    ]
    assert row["mean_cosine"] == pytest.approx(np.mean(cosines), rel=1e-4)


def test_uniformity_by_a_double_loop(monkeypatch):
    monkeypatch.setattr(spectrum, "_BLOCK", 17)
    unit = [x / np.sqrt(x @ x) for x in FEATURES.astype(np.float64)]
    pairs = [
        np.exp(-2 * np.sum((a - b) ** 2))
        for i, a in enumerate(unit)
        for j, b in enumerate(unit)
        if i != j
    ]
    assert spectrum.uniformity(FEATURES) == pytest.approx(np.log(np.mean(pairs)), rel=1e-9)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
def test_the_exponent_of_an_exact_power_law_is_found(exponent):
    found, ranks = spectrum.alpha_req(np.arange(1, 401) ** -exponent)
    assert found == pytest.approx(exponent, rel=1e-9)
    assert ranks == (11, 100)
    assert spectrum.alpha_req(np.arange(1, 101) ** -exponent)[1] == (6, 50)


def test_a_spectrum_that_ends_is_fitted_up_to_its_end():
    values = np.where(np.arange(1, 401) <= 30, 1.0 / np.arange(1, 401), 1e-14)
    found, ranks = spectrum.alpha_req(values)
    assert found == pytest.approx(1.0, rel=1e-9)
    assert ranks == (11, 30)


def test_lidar_is_the_rank_of_the_lda_matrix():
    n, q, D, delta = 40, 5, 6, 1e-4
    features = (
        RNG.normal(size=(n, 1, D)) * np.linspace(0.1, 3, D) + 0.5 * RNG.normal(size=(n, q, D))
    ).astype("f4")
    wide = features.astype(np.float64)
    between, within = np.zeros((D, D)), delta * np.eye(D)
    for views in wide:
        mean = views.mean(axis=0) - wide.mean(axis=(0, 1))
        between += np.outer(mean, mean) / n
        for view in views:
            about = view - views.mean(axis=0)
            within += np.outer(about, about) / (n * q)
    root = np.linalg.inv(scipy.linalg.sqrtm(within))
    values = scipy.linalg.eigh(root @ between @ root, eigvals_only=True)
    share = values / values.sum() + 1e-7
    expected = np.exp(-np.sum(share * np.log(share)))
    assert 1.5 < expected < D - 0.5
    assert spectrum.lidar(features) == pytest.approx(expected, rel=1e-5)


def test_collapsed_features_have_no_exponent_and_no_directions():
    row = spectrum.describe(np.ones((10, 4), np.float32))
    assert np.isnan(row["alpha_req"])
    assert np.isnan(row["stable_rank"])
    assert row["uniformity"] == pytest.approx(0, abs=1e-9)


def test_a_row_is_of_the_images_that_are_asked_for_and_their_views(tiny):
    """The encoder gives the pixels' mean colour, so that all is known from the images."""
    images = RNG.integers(0, 256, (40, 1, 1, 3)).astype(np.uint8)
    images = np.broadcast_to(images, (40, 28, 28, 3)).copy()
    labels = (images[:, 0, 0, 0] > 127).astype(np.int64)
    source = array_source(images, labels, ("dark", "light"), (28, 28))
    few = draw_sample(resolve(tiny).data, source, number=30, seed=3)
    assert len(set(few.index.tolist())) == 30
    sample = draw_sample(resolve(tiny).data, source, number=100, seed=3)
    assert sorted(sample.index.tolist()) == list(range(40))

    def encode(weights, pixels):
        colour = weights * pixels.reshape(len(pixels), 1, -1, 3).mean(axis=2)  # [B, 1, 3]
        return colour.repeat(2, axis=1)

    row = diagnose(encode, np.float32(1 / 255), sample)
    colours = images[sample.index, 0, 0].astype(np.float64) / 255
    assert row["images"] == 40
    assert row["spread"] == pytest.approx(colours.std(axis=0).mean(), rel=1e-4)
    np.testing.assert_allclose(
        row["spectrum"], np.linalg.eigvalsh(np.cov(colours.T, bias=True))[::-1], rtol=1e-3
    )
    assert row["position_share"] == pytest.approx(0, abs=1e-6)
    told = colours[8:]  # a fifth is asked, ten neighbours vote
    right = 0
    for colour, label in zip(colours[:8], labels[sample.index[:8]], strict=True):
        distance = np.sum(((told - colour) / told.std(axis=0)) ** 2, axis=1)
        votes = np.bincount(labels[sample.index[8:]][np.argsort(distance)[:10]], minlength=2)
        right += votes.argmax() == label
    assert row["knn_accuracy"] == right / 8
    # A crop of one colour has that colour: views do not differ, and within is delta alone.
    values = np.linalg.eigvalsh(np.cov(colours.T, bias=True))
    share = values / values.sum()
    assert row["lidar"] == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-3)


def diagnosed(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["diagnose", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_all_checkpoints_of_a_run_get_one_row_each(monkeypatch, capsys, tmp_path, small):
    for step in (10, 20):
        shutil.copytree(small.folder, tmp_path / "checkpoints" / str(step))
    write_row(tmp_path, {"step": 10, "rankme": -1.0})
    code, said, error = diagnosed(
        monkeypatch, capsys, "--checkpoint", tmp_path, "--all", "--images=24"
    )
    assert code == 0, error
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[0]["rankme"] == -1.0  # skipped
    assert len(rows[1]["spectrum"]) == 16
    result = json.loads(said.splitlines()[-1])
    assert (result["step"], result["computed"], result["images"]) == (20, 1, 24)
    assert 1 <= result["rankme"] <= 16
    assert 0 <= result["knn_accuracy"] <= 1
    write_row(tmp_path, {"step": 20, "rankme": -2.0})
    assert [row["rankme"] for row in read_rows(tmp_path)] == [-1.0, -2.0]  # replaced


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint=/nowhere"], "/nowhere: no checkpoint there"),
        (["--checkpoint=/nowhere", "--all"], "--checkpoint /nowhere: --all needs a workdir"),
        (["--checkpoint=D", "--images=2"], "--images 2: must be at least 3"),
        (["--checkpoint=D", "--config.seed=3"], "--config.seed=3: a checkpoint's features depend"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, said):
    code, out, error = diagnosed(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
