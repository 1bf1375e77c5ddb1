"""The exported encoder, called where this project is not."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jepa_jax import export
from jepa_jax.encoder import load_encoder

# What the README tells a user to write, in a process that can't import the project: an empty folder
# in its place comes first on the path.
CALLER = """
import sys
sys.modules["jepa_jax"] = None
import jax, numpy as np
import jax.export
encode = jax.export.deserialize(open(sys.argv[1] + "/encoder.stablehlo", "rb").read()).call
params = dict(np.load(sys.argv[1] + "/params.npz"))
for images in sys.argv[2:]:
    np.save(images + ".patches.npy", encode(params, np.load(images)))
assert not [name for name in sys.modules if name.startswith(("jepa_jax.", "flax"))]
"""


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        try:
            export.main()
        except SystemExit as stop:
            return capsys.readouterr().err.strip().splitlines()[-1], stop.code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def call_elsewhere(folder, *images):
    script = folder.parent / "caller.py"
    script.write_text(CALLER)
    subprocess.run([sys.executable, script, folder, *images], check=True, cwd=folder.parent)
    return [np.load(f"{path}.patches.npy") for path in images]


def test_any_batch_size_gives_the_same_features_without_the_project(small, tmp_path, run):
    said = run("--checkpoint", small.folder, "--out", tmp_path / "out")
    assert said["images"] == ["B", 28, 28, 3]
    encode, params = load_encoder(small.folder)
    paths, expected = [], []
    for count in (1, 5):
        images = np.random.default_rng(count).normal(size=(count, 28, 28, 3)).astype(np.float32)
        paths.append(tmp_path / f"{count}.npy")
        np.save(paths[-1], images)
        expected.append(encode(params, images))
    for ours, theirs in zip(call_elsewhere(tmp_path / "out", *paths), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    description = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert description["network"] == said["network"] == "target_encoder"
    assert description["patches"] == ["B", 16, 16]
    assert tuple(description["preprocessing"]["mean"]) == small.config.data.mean


def test_a_fixed_batch_at_another_size_of_the_other_tower(small, tmp_path, run):
    said = run(
        *("--checkpoint", small.folder, "--out", tmp_path / "out", "--network", "encoder"),
        *("--batch-size", 3, "--image-size", "42,35"),
    )
    assert said["images"] == [3, 42, 35, 3]
    images = np.random.default_rng(0).normal(size=(3, 42, 35, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    encode, params = load_encoder(small.folder, network="encoder")
    (patches,) = call_elsewhere(tmp_path / "out", tmp_path / "x.npy")
    np.testing.assert_allclose(patches, encode(params, images), atol=1e-5)


def test_it_can_be_compiled_for_accelerators_too(small):
    encode, params = load_encoder(small.folder)
    exported = export.export_encoder(encode, params, batch_size=None, image_size=(28, 28))
    assert {"cpu", "cuda", "tpu"} <= set(exported.platforms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-size", "0"), "--batch-size 0: must be at least 1"),
        (("--image-size", "30"), "--image-size 30,30: both must be multiples of the patch size, 7"),
        (("--config.seed=1",), "unknown argument --config.seed=1"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(small, tmp_path, run, arguments, message):
    line, code = run("--checkpoint", small.folder, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert message in line
    assert not list(tmp_path.iterdir())
