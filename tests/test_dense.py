"""Segmentation and depth: maps as the images are cut, measures by NumPy, heads beat baselines."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tensorflow_datasets as tfds
from PIL import Image
from scenes import make_scenes
from sklearn.metrics import jaccard_score
from test_sources import data_config, load

from jepa_jax.config import DenseConfig, MeshConfig, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.data.sources import open_source
from jepa_jax.data.sources import tfds as module
from jepa_jax.data.targets import read_targets
from jepa_jax.errors import UserError
from jepa_jax.evaluation import dense
from jepa_jax.evaluation.backbones import of_pixels
from jepa_jax.evaluation.dense import Scene, train_dense
from jepa_jax.evaluation.dense_scores import dense_score, of_each_image
from jepa_jax.probe import probe_checkpoint
from jepa_jax.training.sharding import make_mesh

RNG = np.random.default_rng(0)
FEW = make_scenes(6, seed=3)
MANY = make_scenes(40, seed=4)


def saved(tmp_path, split, scenes):
    np.save(tmp_path / f"{split}.npy", scenes.images)
    np.save(tmp_path / f"{split}_classes.npy", scenes.classes)
    np.save(tmp_path / f"{split}_depth.npy", scenes.depth)


def by_hand(stored, size):
    """The largest centred square, and of each new pixel the one that its centre falls in."""
    h, w = stored.shape
    side = min(h, w)
    cut = stored[(h - side) // 2 :, (w - side) // 2 :][:side, :side]
    at = [int((i + 0.5) * side / size) for i in range(size)]
    return np.array([[cut[y, x] for x in at] for y in at])


def test_maps_are_cut_as_the_images_and_resized_to_the_nearest_pixel(tmp_path):
    images = RNG.integers(0, 256, (2, 40, 60, 3), np.uint8)
    classes = RNG.integers(0, 5, (2, 40, 60), np.uint8)
    np.save(tmp_path / "train.npy", images)
    np.save(tmp_path / "train_parts.npy", classes)
    far = RNG.uniform(1, 9, (2, 40, 60))
    far[0, 10:20], far[1, 10:20], far[1, :10] = np.nan, np.inf, -1
    np.save(tmp_path / "train_far.npy", far)
    data = data_config(source="numpy", path=str(tmp_path))
    source = open_source(data, "train")
    parts = read_targets(data, "train", source, "parts", "segmentation")
    np.testing.assert_array_equal(parts, [by_hand(x, 28) for x in classes])
    known = np.where(np.isfinite(far) & (far > 0), 0.5 * far, 0).astype(np.float32)
    found = read_targets(data, "train", source, "far", "depth", scale=0.5)
    np.testing.assert_allclose(found, [by_hand(x, 28) for x in known], rtol=1e-6)


def test_maps_in_files_belong_to_the_images_of_their_names(tmp_path):
    for i, name in enumerate(["b/2", "a/10", "a/9"]):
        for folder, array in (
            ("train", FEW.images[i]),
            ("train_classes", FEW.classes[i]),
            ("train_mm", np.round(1000 * FEW.depth[i]).astype(np.uint16)),
        ):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    data = data_config(source="folder", path=str(tmp_path))
    source = open_source(data, "train")
    order = [1, 2, 0]
    found = read_targets(data, "train", source, "classes", "segmentation")
    np.testing.assert_array_equal(found, FEW.classes[order])
    found = read_targets(data, "train", source, "mm", "depth", scale=0.001)
    np.testing.assert_allclose(found, FEW.depth[order], atol=6e-4)
    (tmp_path / "train_mm" / "a" / "9.png").unlink()
    with pytest.raises(UserError, match=r"config\.target = 'mm': the map .*a/9\.png can't be read"):
        read_targets(data, "train", source, "mm", "depth")


class Mapped(tfds.core.GeneratorBasedBuilder):
    """Forty scenes with their maps."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(28, 28, 3)),
            "classes": tfds.features.Image(shape=(28, 28, 1)),
            "depth": tfds.features.Tensor(shape=(28, 28), dtype=np.float32),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(40):
            classes = MANY.classes[i][..., None]
            yield i, {"image": MANY.images[i], "classes": classes, "depth": MANY.depth[i]}


@pytest.mark.parametrize("way", ["held", "tfrecord", "array_record"])
def test_maps_of_tfds_have_the_order_of_its_images(tmp_path, monkeypatch, way):
    """Of several files, which TFDS reads in turns where it reads a set as a whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file_format = "array_record" if way == "array_record" else "tfrecord"
    builder = tfds.builder("mapped", data_dir=str(tmp_path), file_format=file_format)
    two = tfds.download.DownloadConfig(num_shards=2)  # of 20 each; TFDS takes 16 in turn
    builder.download_and_prepare(download_config=two, file_format=file_format)
    assert len(builder.info.splits["train"].filenames) == 2
    if way != "held":
        monkeypatch.setattr(module, "_IN_MEMORY_BYTES", 0)
    data = data_config(source="tfds", path="mapped", tfds_dir=str(tmp_path))
    source = open_source(data, "train")
    order = [
        int(np.flatnonzero((image == MANY.images).all(axis=(1, 2, 3)))[0])
        for image in load(source, range(40))
    ]
    assert sorted(order) == list(range(40))
    found = read_targets(data, "train", source, "classes", "segmentation")
    np.testing.assert_array_equal(found, MANY.classes[order])
    found = read_targets(data, "train", source, "depth", "depth")
    np.testing.assert_array_equal(found, MANY.depth[order])


@pytest.mark.parametrize(
    ("target", "fields", "said"),
    [
        ("nothing", {}, r"config\.target = 'nothing': the array train_nothing of .* is not there"),
        ("depth", {}, r"is float32; must be whole numbers"),
        ("short", {}, r"5 maps of 6 train images"),
        ("long", {}, r"more than 6 maps of 6"),
        ("classes", {"subset": {"share": 0.5}}, r"config\.data\.subset must be None"),
        ("classes", {"source": "fashion_mnist"}, r"of the sources tfds, numpy, folder, not of"),
    ],
)
def test_maps_that_do_not_suit_are_refused_in_one_line(tmp_path, target, fields, said):
    saved(tmp_path, "train", FEW)
    np.save(tmp_path / "train_short.npy", FEW.classes[:5])
    np.save(tmp_path / "train_long.npy", FEW.classes[[0, *range(6)]])
    source = open_source(data_config(source="numpy", path=str(tmp_path)), "train")
    data = data_config(**{"source": "numpy", "path": str(tmp_path)} | fields)
    with pytest.raises(UserError, match=said) as raised:
        read_targets(data, "train", source, target, "segmentation")
    assert "\n" not in str(raised.value)


def test_measures_of_maps_are_those_of_all_pixels_that_count():
    """Against scikit-learn's Jaccard index and NumPy."""
    truth, told = RNG.integers(0, 3, (2, 20, 50))
    told[truth == 1] = 1
    counts = RNG.random((20, 50)) < 0.8
    sums = np.array(
        [
            [
                [np.sum((told[i] == k) & (truth[i] == k) & counts[i]) for k in range(4)],
                [np.sum((told[i] == k) & counts[i]) for k in range(4)],
                [np.sum((truth[i] == k) & counts[i]) for k in range(4)],
            ]
            for i in range(20)
        ],
        np.float64,
    )
    found = dense_score("segmentation", sums)
    ious = jaccard_score(truth[counts], told[counts], average=None)
    assert found["per_class"] == [*(pytest.approx(iou) for iou in ious), None]
    assert found["miou"] == pytest.approx(ious.mean())
    assert found["pixel_accuracy"] == pytest.approx(np.mean((truth == told)[counts]))
    assert found["interval"][0] < found["miou"] < found["interval"][1]
    first = jaccard_score(truth[0][counts[0]], told[0][counts[0]], average="macro")
    assert of_each_image("segmentation", sums)[0] == pytest.approx(first)

    far, guess = RNG.uniform(1, 9, (2, 20, 50))
    each = [(guess - far) ** 2, abs(guess - far) / far, np.ones_like(far)]
    sums = np.stack([np.sum(x * counts, axis=1) for x in each], axis=1)[..., None]
    found = dense_score("depth", sums)
    errors = (guess - far)[counts]
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert found["abs_rel"] == pytest.approx(np.mean(abs(errors) / far[counts]))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for split, n, seed in (("train", 150, 1), ("test", 60, 2)):
        made = make_scenes(n, seed=seed)
        made.classes[:, :2], made.depth[:, :2] = 255, 0  # which nobody knows
        saved(folder, split, made)
    return folder, made


@pytest.mark.parametrize(("protocol", "target"), [("segmentation", "classes"), ("depth", "depth")])
def test_heads_on_tokens_tell_more_than_the_commonest_answer(
    scenes, small, tmp_path, protocol, target
):
    """On eight devices, from a random encoder and from the pixels of each patch."""
    folder, test = scenes
    config = load_config(
        f"configs/probe/{protocol}.py",
        [
            "--config.data.source=numpy",
            f"--config.data.path={folder}",
            f"--config.target={target}",
            "--config.epochs=8",
            "--config.lr=(0.03, 1e-7)",
            f"--config.blocks={'last_four' if protocol == 'depth' else 'last'}",
            f"--config.controls={protocol == 'segmentation'}",
        ],
    )
    result = probe_checkpoint(resolve_probe(config), small.folder, results=tmp_path, name="x")
    assert result["chosen"] == "lr 0.03"
    path = pathlib.Path(result["result"])
    assert path.parent == tmp_path
    assert path.name.startswith("x-")
    written = json.loads(path.read_text())
    controls = {"random_init", "raw_pixels"} if protocol == "segmentation" else set()
    assert set(written["rows"]) == {"pretrained"} | controls
    assert (written["num_train"], written["num_test"]) == (150, 60)
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["row_pretrained"].shape == (60,)
        assert arrays["labels"].tolist() == list(range(60))
    known = test.depth > 0
    if protocol == "segmentation":
        baseline = np.mean(test.classes[known] == 0) / 3
        assert written["metric"] == "miou"
        for row in written["rows"].values():
            assert len(row["per_class"]) == 3
            assert row["interval"][0] > baseline
    else:
        baseline = np.std(test.depth[known])
        assert written["metric"] == "rmse"
        for row in written["rows"].values():
            assert row["interval"][1] < baseline


def test_devices_and_the_memory_for_tokens_change_nothing(scenes, small, one_device, monkeypatch):
    folder, _ = scenes
    data = data_config(source="numpy", path=str(folder))
    config = DenseConfig(protocol="depth", target="depth", epochs=2, lr=(0.01, 0.001))
    parts = {}
    for split in ("train", "test"):
        source = open_source(data, split)
        parts[split] = Scene(source, read_targets(data, split, source, "depth", "depth"))

    def found(mesh):
        backbone = of_pixels(small.config, data, mesh, features=("tokens",))
        return train_dense(config, data, parts, backbone, grid=(4, 4))

    eight = found(make_mesh(MeshConfig()))
    ways = [found(one_device)]
    monkeypatch.setattr(dense, "_HELD_BYTES", 0)
    ways.append(found(make_mesh(MeshConfig())))
    for other in ways:
        assert other["chosen"] == eight["chosen"]
        np.testing.assert_allclose(other["per_example"], eight["per_example"], rtol=1e-4)


def bilinear(coarse, size):
    """[h, w, K] -> [size, size, K] by its definition: pixel centres, edges held."""
    h, w = coarse.shape[:2]
    found = np.zeros((size, size, coarse.shape[2]))
    for y in range(size):
        for x in range(size):
            v = np.clip((y + 0.5) * h / size - 0.5, 0, h - 1)
            u = np.clip((x + 0.5) * w / size - 0.5, 0, w - 1)
            i, j = min(int(v), h - 2), min(int(u), w - 2)
            for p, q, share in (
                (i, j, (1 - v + i) * (1 - u + j)),
                (i + 1, j, (v - i) * (1 - u + j)),
                (i, j + 1, (1 - v + i) * (u - j)),
                (i + 1, j + 1, (v - i) * (u - j)),
            ):
                found[y, x] += share * coarse[p, q]
    return found


def test_losses_and_sums_are_over_the_pixels_that_count():
    """Against float64 NumPy; of two heads, at once, the second image not being real."""
    mean, std = RNG.normal(size=5), RNG.uniform(0.5, 2, 5)
    tokens = RNG.normal(size=(2, 12, 5))
    kernel, bias = RNG.normal(size=(2, 5, 3)), RNG.normal(size=(2, 3))
    classes = RNG.integers(0, 4, (2, 8, 8)).astype(np.uint8)
    classes[classes == 3] = 255
    head = dense._Head(True, (3, 4), (8, 8), 3, np.float32(mean), np.float32(std))
    params = {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}
    sums = dense._make_sums(head)(params, np.float32(tokens), classes)
    initialize, step = dense._make_step(head, np.float32([0.0, 0.0]), 0.0, 1)
    state = initialize(params)
    real = np.array([True, False])
    losses = np.asarray(step(params, state, np.float32(tokens), classes, real)[2])
    for h in range(2):
        coarse = ((tokens - mean) / std @ kernel[h] + bias[h]).reshape(2, 3, 4, 3)
        logits = np.stack([bilinear(x, 8) for x in coarse])
        counts, told = classes != 255, logits.argmax(-1)
        for k in range(3):
            right = (told == k) & (classes == k)
            for which, at in enumerate((right, (told == k) & counts, classes == k)):
                np.testing.assert_array_equal(sums[h, :, which, k], at.sum((1, 2)))
        log_p = logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True)
        of_own = np.take_along_axis(log_p[0], np.where(counts, classes, 0)[0][..., None], -1)
        assert losses[h] == pytest.approx(-of_own[counts[0]].mean(), rel=1e-5)
