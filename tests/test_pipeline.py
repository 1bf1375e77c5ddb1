"""Batches as a pure function of (seed, step)."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import stream_of
from PIL import Image

from jepa_jax.config import resolve
from jepa_jax.data import pipeline
from jepa_jax.data.facts import image_facts
from jepa_jax.data.sources import array_source, open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.errors import BadDataError, StoppedRunError, UserError
from jepa_jax.objectives.registry import make_objective


@pytest.fixture
def config(tiny):
    return resolve(tiny)


@pytest.fixture(scope="module")
def source():
    """100 images, each of one grey of its own: six batches of 16, and four left over."""
    images = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 28, 28, 1))
    return array_source(np.ascontiguousarray(images), np.arange(100), (), (28, 28))


def batches(config, source, start_step, end_step, rows=None):
    return list(stream_of(config, source).batches(start_step, end_step, rows))


def announced_shapes(config, source, step=0):
    return [shapes for shapes, _ in stream_of(config, source).variants(step)]


def assert_same(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_starting_in_the_middle_gives_the_rest_of_the_batches(config, source):
    whole = batches(config, source, 0, 15)
    for start in (1, 6, 8):  # in an epoch, between two, in the next
        assert_same(batches(config, source, start, 15), whole[start:])


def test_an_epoch_visits_each_example_at_most_once_in_an_order_of_its_own(config, source):
    orders = [
        np.concatenate([b["example_index"] for b in batches(config, source, 6 * e, 6 * e + 6)])
        for e in range(3)
    ]
    for order in orders:
        assert len(np.unique(order)) == 96
        assert set(order) <= set(range(100))
    assert len({tuple(order) for order in orders}) == 3
    assert not np.array_equal(orders[0], np.sort(orders[0]))
    assert len(set(np.concatenate(orders))) == 100  # who is left over changes


def test_images_are_those_of_the_examples_as_pixels(config, source):
    for batch in batches(config, source, 0, 3):
        assert batch["image"].dtype == np.uint8
        grey = np.broadcast_to(batch["example_index"][:, None, None, None], batch["image"].shape)
        np.testing.assert_array_equal(batch["image"], grey)


def test_batches_have_the_announced_shapes(config, source):
    announced = announced_shapes(config, source)
    allowed = [{name: (x.shape, x.dtype) for name, x in shapes.items()} for shapes in announced]
    for batch in batches(config, source, 0, 12):
        found = {name: (batch[name].shape, batch[name].dtype) for name in allowed[0]}
        assert found in allowed
        assert batch.keys() - found.keys() == {"mask_fallback", "example_index", "replaced"}


def test_the_shape_that_a_step_needs_is_announced_first(config, source):
    shapes = {x["target_index"].shape for x in announced_shapes(config, source)}
    assert len(shapes) > 1
    for step, batch in enumerate(batches(config, source, 0, 12)):
        announced = announced_shapes(config, source, step)
        assert {x["target_index"].shape for x in announced} == shapes
        assert announced[0]["target_index"].shape == batch["target_index"].shape


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_read_parts_of_the_same_batches(config, source, processes):
    whole = batches(config, source, 5, 8)
    for one_by_one in (False, True):
        of_files = dataclasses.replace(source, images_per_call=1 if one_by_one else None)
        parts = [
            batches(config, of_files, 5, 8, rows) for rows in np.split(np.arange(16), processes)
        ]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_same(joined, whole)


def test_a_process_reads_only_its_rows(config, source):
    read = []

    def load(index, crop, size):
        read.append(tf.numpy_function(lambda i: seen.extend(i.tolist()) or i, [index], tf.int64))
        with tf.control_dependencies(read[-1:]):
            return source.load(index, crop, size)

    seen = []
    watched = dataclasses.replace(source, load=load)
    rows = np.array([3, 4, 9])
    (batch,) = batches(config, watched, 0, 1, rows)
    assert sorted(seen) == sorted(batch["example_index"])
    assert list(batch["example_index"]) == list(
        batches(config, source, 0, 1)[0]["example_index"][rows]
    )


def test_another_seed_gives_other_batches(config, source):
    other = dataclasses.replace(config, seed=1)
    first, second = batches(config, source, 0, 1)[0], batches(other, source, 0, 1)[0]
    assert not np.array_equal(first["example_index"], second["example_index"])


def test_sources_of_single_images_give_the_same_batches(config, source):
    """Loading one by one, as from files, or a batch at once changes no example, crop or mask."""
    for images in (1, 5, 8):
        parts = dataclasses.replace(source, images_per_call=images)
        assert_same(batches(config, parts, 4, 8), batches(config, source, 4, 8))


def test_a_data_set_smaller_than_a_batch_is_refused(config, source):
    with pytest.raises(UserError, match=r"config.batch_size = 16: the data set has only 15 images"):
        stream_of(config, dataclasses.replace(source, num_examples=15))
    assert stream_of(config, dataclasses.replace(source, num_examples=47)).steps_per_epoch == 2


@pytest.mark.parametrize("count", [1, 32, 33])
def test_evaluation_gives_each_asked_image_once_in_order(config, source, count):
    index = np.random.default_rng(0).permutation(100)[:count]
    parts = list(pipeline.eval_batches(config.data, source, index=index, batch_size=16))
    assert all(len(part) == 16 for part in parts[:-1])
    np.testing.assert_array_equal(np.concatenate(parts)[:, 0, 0, 0], index)


@pytest.fixture
def damaged(tiny, tmp_path):
    """A folder of 16 images, one of which is not."""
    (tmp_path / "train").mkdir()
    for i in range(16):
        Image.fromarray(np.full((30, 30, 3), i, np.uint8)).save(tmp_path / "train" / f"{i:02}.png")
    (tmp_path / "train" / "07.png").write_bytes(b"<html>404</html>")
    tiny.data.update({"source": "folder", "path": str(tmp_path)})
    config = resolve(tiny)
    return config, open_source(config.data, "train")


def test_the_next_good_image_takes_the_place_of_a_bad_one_with_its_label(damaged, caplog):
    config, source = damaged
    source = dataclasses.replace(source, labels=np.arange(16))
    needs = make_objective(config).needs._replace(labels=16)
    stream = make_stream(needs, config.data, source, seed=0, batch_size=16)
    for batch in stream.batches(0, 2, None):
        expected = np.where(batch["example_index"] == 7, 8, batch["example_index"])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], expected)
        np.testing.assert_array_equal(batch["label"], expected)
        np.testing.assert_array_equal(batch["replaced"], batch["example_index"] == 7)
    assert caplog.text.count("07.png: no image that can be read") == 1  # once, not each epoch


def test_more_bad_images_than_their_share_stop_training(damaged):
    config, source = damaged
    strict = dataclasses.replace(config.data, bad_share=0.0)
    stream = make_stream(make_objective(config).needs, strict, source, seed=0, batch_size=16)
    with pytest.raises(BadDataError, match=r"step 0: 1 of 16 images were bad, more than .* = 0\.0"):
        next(stream.batches(0, 1, None))


def test_few_images_are_borne_as_many_as_of_a_thousand_but_no_more_than_half():
    borne = {  # of so many images, at a share of 1 %
        seen: sum(not pipeline.too_many_bad(bad, seen, 0.01) for bad in range(1, seen + 1))
        for seen in (2, 16, 57, 1000, 50_000)
    }
    assert borne == {2: 1, 16: 8, 57: 10, 1000: 10, 50_000: 500}
    assert pipeline.too_many_bad(1, 50_000, 0.0)


def test_without_any_good_image_training_stops(damaged, tmp_path):
    config, _ = damaged
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadDataError, match=r"step 0: .*\.png: empty"):
        batches(config, open_source(config.data, "train"), 0, 1)


def test_a_file_that_is_no_image_stops_evaluation_and_is_named(damaged):
    config, source = damaged
    with pytest.raises(StoppedRunError, match=r"07\.png"):
        list(pipeline.eval_batches(config.data, source, index=np.arange(16), batch_size=4))


def test_what_a_run_measures_of_its_images_and_draws_bears_a_bad_one_as_training_does(damaged):
    config, source = damaged
    assert image_facts(config.data).num_images == 16
    bad = []
    asked = {"index": np.arange(16), "batch_size": 4, "bad": bad}
    images = np.concatenate(list(pipeline.eval_batches(config.data, source, **asked)))
    np.testing.assert_array_equal(images[:, 0, 0, 0], [*range(7), 8, *range(8, 16)])
    assert bad == [7]


def test_a_late_start_reads_no_more_images_than_its_own_batches(config):
    read = []

    def load(index, crop, size):
        def note(numbers):
            read.extend(numbers.tolist())
            return np.zeros((len(numbers), *size, 3), np.uint8)

        x = tf.numpy_function(note, [index], tf.uint8, stateful=False)
        return tf.ensure_shape(x, [index.shape[0], *size, 3]), index

    count = 1_281_167
    images = array_source(np.zeros((1, 28, 28, 3), np.uint8), None, (), (28, 28))
    large = dataclasses.replace(images, num_examples=count, load=load, images_per_call=8)
    start = 5_000_000
    (batch,) = batches(config, large, start, start + 1)
    assert sorted(read) == sorted(batch["example_index"])
    assert len(set(read)) == 16
    assert max(read) < count
