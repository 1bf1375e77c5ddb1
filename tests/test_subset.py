"""Parts of the training images: stratified splits and lists of names."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import load_config_file
from PIL import Image

from jepa_jax.config import resolve
from jepa_jax.data.crops import center_crop
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import open_source, stratified
from jepa_jax.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 60, 100, 3]))
WHOLE = center_crop(aspect_ratio=1.0, share=1.0)


def config(**data):
    fields = load_config_file("fashion_mnist")
    fields.data.update(data)
    return resolve(fields).data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of three images, each of one gray; image 1 of class a is no image."""
    root = tmp_path_factory.mktemp("folder")
    for c, name in enumerate("ab"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(3):
            path = root / "train" / name / f"{name}_{i}.png"
            Image.new("L", (28, 28), 40 * (3 * c + i) + 10).save(path)
    (root / "train" / "a" / "a_1.png").write_bytes(b"none")
    return root


def load(source, numbers):
    images, used = source.load(tf.constant(numbers, tf.int64), WHOLE, (28, 28))
    return images[:, 0, 0, 0].numpy().tolist(), used.numpy().tolist()


def listed(folder, tmp_path, *names):
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    return config(source="folder", path=str(folder), test_split=None, subset={"files": str(path)})


def test_a_split_holds_its_share_of_every_class_and_at_least_one():
    index = stratified(LABELS, share=0.1, seed=0)
    np.testing.assert_array_equal(np.bincount(LABELS[index]), [4, 6, 10, 1])
    assert np.all(np.diff(index) > 0)
    by_number = stratified(LABELS, per_class=3, seed=0)
    np.testing.assert_array_equal(np.bincount(LABELS[by_number]), [3, 3, 3, 3])
    np.testing.assert_array_equal(stratified(LABELS, share=1.0, seed=0), np.arange(203))


def test_a_split_follows_from_its_seed_and_grows_with_its_size():
    splits = [stratified(LABELS, share=0.1, seed=seed) for seed in (0, 1, 0)]
    np.testing.assert_array_equal(splits[0], splits[2])
    assert len(np.intersect1d(splits[0], splits[1])) < 10  # of 21, some 3 by chance
    assert np.isin(splits[0], stratified(LABELS, share=0.3, seed=0)).all()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"share": 0.01}, r"share = 0\.01: is 2 of 203 examples, fewer than the 4 classes"),
        ({"per_class": 4}, r"per_class = 4: must be at most 3, which is all of class 3"),
        ({}, "set either share or per_class"),
    ],
)
def test_splits_that_can_not_be_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        stratified(LABELS, seed=0, **fields)


@pytest.mark.parametrize(
    ("subset", "says"),
    [
        ({}, "sets nothing; must set exactly one"),
        ({"share": 0.1, "per_class": 2}, "sets share, per_class; must set exactly one"),
        ({"share": 1.5}, r"subset.share = 1\.5: must lie in 0..1, above 0"),
    ],
)
def test_a_configuration_names_exactly_one_kind_of_subset(subset, says):
    with pytest.raises(UserError, match=says):
        config(subset=subset)


def test_a_source_s_part_has_its_images_labels_and_a_digest_of_its_own():
    whole = open_source(config(), "train")
    parts = [open_source(config(subset={"per_class": 2, "seed": s}), "train") for s in (0, 1)]
    index = stratified(whole.labels, per_class=2, seed=0)
    np.testing.assert_array_equal(parts[0].labels, whole.labels[index])
    given = [
        s.load(tf.constant(i), WHOLE, (28, 28))[0]
        for s, i in [(parts[0], np.arange(20)), (whole, index)]
    ]
    np.testing.assert_array_equal(*given)
    assert parts[0].describe(3) == whole.describe(int(index[3]))
    assert len({part.digest for part in (whole, *parts)}) == 3
    assert open_source(config(subset={"per_class": 2}), "test").num_examples == 2000


def test_a_list_names_images_by_the_ends_of_their_paths(folder, tmp_path):
    part = open_source(listed(folder, tmp_path, "b_2.png", "a/a_0.png", "", "b_2.png"), "train")
    assert load(part, [0, 1]) == ([10, 210], [0, 1])
    np.testing.assert_array_equal(part.labels, [0, 1])
    assert part.name(1) == b"b/b_2.png"


def test_a_bad_image_s_place_is_taken_by_the_next_good_one_of_the_part(folder, tmp_path):
    data = listed(folder, tmp_path, "a_1.png", "b_0.png", "b_2.png")
    part = open_source(data, "train")
    # a_2 would be the next of all images, and is none of the three.
    assert load(part, [2, 0, 1]) == ([210, 130, 130], [2, 1, 1])
    found: list[int] = []
    (images,) = eval_batches(data, part, index=np.arange(3), batch_size=3, bad=found)
    assert (images[:, 0, 0, 0].tolist(), found) == ([130, 130, 210], [0])
    bad = open_source(listed(folder, tmp_path, "a_1.png"), "train")
    with pytest.raises(tf.errors.OpError, match="no image of the subset can be read"):
        load(bad, [0])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a_0.png", "c.png", "d.png"), r"there is no image c\.png, nor 1 others in the training"),
        (("0.png",), r"there is no image 0\.png"),
        ((), "lists no image"),
    ],
)
def test_lists_that_do_not_fit_are_refused(folder, tmp_path, names, says):
    with pytest.raises(UserError, match=says) as error:
        open_source(listed(folder, tmp_path, *names), "train")
    assert "\n" not in str(error.value)


def test_a_list_needs_a_file_and_names(tmp_path):
    with pytest.raises(UserError, match="images of this source have no names"):
        open_source(config(subset={"files": "x"}), "train")
