"""Labels of every kind: classes, several at once, numbers; of NumPy files and of TFDS."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scenes import make_scenes
from test_sources import data_config

from jepa_jax.batch.spec import BatchSpec
from jepa_jax.config import HeadsConfig, LinearConfig, resolve
from jepa_jax.data.sources import open_source
from jepa_jax.data.sources import tfds as module
from jepa_jax.data.sources.tfds_labels import label_reader
from jepa_jax.data.stream import make_stream
from jepa_jax.errors import UserError
from jepa_jax.evaluation.online import online_probes
from jepa_jax.evaluation.probes import LabelledFeatures, probe, split_training
from jepa_jax.evaluation.tasks import task_of
from jepa_jax.objectives.registry import make_objective
from jepa_jax.reporting.gallery import shown_examples

F = tfds.features
SCENES = make_scenes(12, seed=0, most=10)
TAGS = [[], [2], [0, 2], [1]] * 3
POSE = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
# Distances on VTAB's edges and beside them: an edge belongs to the nearer class.
CLOSEST = [7.0, 8.0, 8.1, 8.5, 8.6, 9.0, 9.1, 9.5, 9.6, 10.0, 10.1, 40.0]
BINS = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
COUNTS = [3, 4, 5, 6, 7, 8, 9, 10, 3, 4, 5, 6]


class Labelled(tfds.core.GeneratorBasedBuilder):
    """Twelve images with features of all kinds that can be a label."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = F.FeaturesDict(
            {
                "image": F.Image(shape=(28, 28, 3)),
                "first": F.ClassLabel(names=["a", "b"]),
                "second": F.ClassLabel(num_classes=3),
                "number": F.Scalar(np.int32),
                "tags": F.Sequence(F.ClassLabel(names=["x", "y", "z"])),
                "angle": F.Scalar(np.float32),
                "pose": F.Tensor(shape=(3,), dtype=np.float64),
                "grid": F.Tensor(shape=(2, 2), dtype=np.float32),
                "objects": F.Sequence({"pixel_coords": F.Tensor(shape=(3,), dtype=np.float32)}),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            distances = CLOSEST[i] + np.arange(COUNTS[i])
            coords = np.stack([POSE[i, 0] + 0 * distances, -distances, distances], axis=1)
            yield (
                i,
                {
                    "image": SCENES.images[i],
                    "first": i % 2,
                    "second": i % 3,
                    "number": 11 - i,
                    "tags": TAGS[i],
                    "angle": POSE[i, 0],
                    "pose": POSE[i].astype(np.float64),
                    "grid": np.ones((2, 2), np.float32),
                    "objects": {"pixel_coords": coords[::-1].astype(np.float32)},
                },
            )


def tags():
    found = np.zeros((12, 3), bool)
    for i, of_image in enumerate(TAGS):
        found[i, of_image] = True
    return found


EXPECTED = {
    None: None,  # two class labels, and neither is called label
    "second": np.arange(12) % 3,
    "number": 11 - np.arange(12),
    "tags": tags(),
    "angle": POSE[:, :1],
    "pose": POSE,
    "clevr_count": np.array(COUNTS) - 3,
    "clevr_distance": np.array(BINS),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    return {"source": "tfds", "path": "labelled", "tfds_dir": str(folder), "image_size": (28, 28)}


@pytest.mark.parametrize("held", [True, False], ids=["in memory", "by record"])
def test_a_feature_of_tfds_is_read_as_the_kind_of_label_that_it_is(
    prepared, held, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if not held:
        monkeypatch.setattr(module, "_IN_MEMORY_BYTES", 0)
    for label, expected in EXPECTED.items():
        source = open_source(data_config(**prepared, label=label), "train")
        if expected is None:
            assert source.labels is None
            continue
        np.testing.assert_array_equal(source.labels, expected, str(label))
        kind = np.int64 if expected.ndim == 1 else bool if expected.dtype == bool else np.float32
        assert source.labels.dtype == kind
        names = {"tags": 3, "second": 3, "clevr_count": 8, "clevr_distance": 6, "number": 12}
        assert len(source.class_names) == names.get(str(label), 0)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("colour", r"data\.label = 'colour': must be one of image, first"),
        ("grid", r"data\.label = 'grid': is .*must be a class label"),
        ("image", r"data\.label = 'image': is "),
    ],
)
def test_a_label_that_is_no_label_is_refused_in_one_line(prepared, label, said):
    with pytest.raises(UserError, match=said) as raised:
        open_source(data_config(**prepared, label=label), "train")
    assert "\n" not in str(raised.value)


def numpy_data(tmp_path, labels, test_labels=None, **fields):
    for split, of_split in (("train", labels), ("test", test_labels)):
        np.save(tmp_path / f"{split}.npy", SCENES.images)
        if of_split is not None:
            np.save(tmp_path / f"{split}_labels.npy", of_split)
    return data_config(source="numpy", path=str(tmp_path), **fields)


@pytest.mark.parametrize("labels", [tags(), POSE.astype(np.float64), POSE[:, :1]])
def test_numpy_labels_of_several_columns_are_those_that_were_saved(tmp_path, labels):
    source = open_source(numpy_data(tmp_path, labels), "train")
    np.testing.assert_array_equal(source.labels, labels.astype(source.labels.dtype))
    assert source.labels.dtype == (bool if labels.dtype == bool else np.float32)
    assert source.classes is None


def test_what_needs_classes_refuses_other_labels_or_does_without(tmp_path, tiny, caplog):
    data = numpy_data(tmp_path, POSE)
    source = open_source(data, "train")
    with pytest.raises(UserError, match=r"float32 \[12, 3\], and this objective needs one class"):
        make_stream(BatchSpec((), labels=3), data, source, seed=0, batch_size=4)
    with pytest.raises(UserError, match=r"no classes to draw from"):
        open_source(numpy_data(tmp_path, tags(), subset={"share": 0.5}), "train")
    assert len(shown_examples(source)) == 10
    with caplog.at_level("INFO", logger="jepa_jax"):
        assert online_probes(resolve(tiny), make_objective(resolve(tiny)), source) is None
    assert "no classes" in caplog.text


@pytest.mark.parametrize(
    ("labels", "test_labels", "fields", "said"),
    [
        (np.where(POSE > 1, np.nan, POSE), None, {}, r"label of example \d+ is .*finite numbers"),
        (POSE, POSE[:, :2], {}, r"labels of test are float32 \[12, 2\], and those of train"),
        (POSE, tags(), {}, r"labels of test are bool"),
        (POSE, POSE, {"label": "pose"}, r"data\.label = 'pose': only of the source tfds"),
    ],
)
def test_labels_that_do_not_suit_are_refused_in_one_line(
    tmp_path, labels, test_labels, fields, said
):
    data = numpy_data(tmp_path, labels, test_labels, **fields)
    with pytest.raises(UserError, match=said) as raised:
        open_source(data, "train" if test_labels is None or fields else "test")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("what", ["count", "closest"])
@pytest.mark.parametrize("numbers", [False, True], ids=["classes", "numbers"])
def test_counts_and_distances_are_told_better_than_by_chance(what, numbers):
    """From the shares of bright and of red and blue pixels, by `linear`."""
    parts = []
    for n, seed in ((300, 1), (200, 2)):
        scenes = make_scenes(n, seed=seed)
        pixels = scenes.images.reshape(n, -1, 3).astype(np.float32)
        features = [np.mean(pixels, 1), np.std(pixels, 1), pixels.max(1)]
        values = getattr(scenes, what)
        labels = values.astype(np.float32)[:, None]
        if not numbers:
            edges = [2, 3] if what == "count" else [8, 9]
            labels = np.digitize(values, edges)
        parts.append(LabelledFeatures(np.concatenate(features, 1), labels))
    found = probe(LinearConfig(candidates=(1.0,), controls=False), *parts)
    told = parts[1].labels
    if numbers:
        baseline = np.sqrt(np.mean((told - parts[0].labels.mean()) ** 2))
        assert found["interval"][1] < baseline
        assert found["rmse"] == pytest.approx(np.sqrt(np.mean(found["per_example"])))
    else:
        assert found["interval"][0] > np.bincount(told).max() / len(told)


def test_a_scene_without_objects_has_no_count_and_no_distance():
    """As those of clevr's test split are written."""
    features = F.FeaturesDict(
        {"objects": F.Sequence({"pixel_coords": F.Tensor(shape=(3,), dtype=np.float32)})}
    )
    for name in ("clevr_count", "clevr_distance"):
        reader = label_reader(tfds, features, name, "clevr")
        with pytest.raises(UserError, match=r"of clevr's split test they are not published"):
            reader.label_of(np.zeros(0, np.float32))
    with pytest.raises(UserError, match=r"needs the feature objects/pixel_coords"):
        label_reader(tfds, F.FeaturesDict({}), "clevr_count", "mnist")


def test_heads_are_chosen_without_the_rarest_classes_where_these_are_too_rare():
    labels = np.array([*np.repeat([0, 1], 60), 2, 2])
    config = HeadsConfig(protocol="linear_lars", lr=(1.0,), weight_decay=(0.0,))
    fit, held = split_training(config, task_of(labels), labels)
    assert sorted([*fit, *held]) == list(range(122))
    assert len(held) == 25
    with pytest.raises(UserError, match="a class has only 2 training images"):
        split_training(LinearConfig(candidates=(1.0,)), task_of(labels), labels)
