"""Large data sets of TFDS, record by record, against the same ones held in memory."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from test_sources import TinyPictures, data_config, load

from jepa_jax.data.sources import open_source
from jepa_jax.data.sources import tfds as module
from jepa_jax.data.sources.records import Part, open_records
from jepa_jax.errors import UserError


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepares the pictures in a folder of their own, and gives the fields that name them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def prepare(name, **kind):
        folder = str(tmp_path / name)
        tfds.builder(TinyPictures.name, data_dir=folder, **kind).download_and_prepare()
        image = {"image_size": (28, 28), "tfds_dir": folder}
        return {"source": "tfds", "path": TinyPictures.name, **image}

    return prepare


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_records_are_read_one_by_one_as_all_at_once(prepared, monkeypatch, file_format):
    fields = prepared("records", file_format=file_format)
    held = open_source(data_config(**prepared("held")), "train")
    assert held.images_per_call is None
    monkeypatch.setattr(module, "_IN_MEMORY_BYTES", 0)
    for _ in range(2):  # the second time by the index that the first one left
        source = open_source(data_config(**fields), "train")
        assert source.images_per_call == 16
        np.testing.assert_array_equal(load(source, range(30)), load(held, range(30)))
        np.testing.assert_array_equal(source.labels, held.labels)
        assert source.class_names == ("dark", "light")
    part = open_source(data_config(**fields, train_split="train[20%:70%]"), "train")
    np.testing.assert_array_equal(load(part, range(15)), load(held, range(6, 21)))


def test_a_flipped_bit_and_a_cut_file_are_told_with_the_record(prepared, monkeypatch, tmp_path):
    fields = prepared("records")
    monkeypatch.setattr(module, "_IN_MEMORY_BYTES", 0)
    source = open_source(data_config(**fields), "train")
    (path,) = tmp_path.rglob("*train.tfrecord*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    bad = [i for i in range(30) if source.problem(i)]
    assert len(bad) == 1
    assert source.problem(bad[0]) == "does not match its checksum"
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-40])
    with pytest.raises(UserError, match=r"record 29: the file is cut there"):
        open_source(data_config(**fields), "train")


def test_files_of_a_remote_folder_are_read_as_local_ones(prepared, tmp_path):
    """TensorFlow's file system in memory stands in for gs://."""
    prepared("records")
    (local,) = tmp_path.rglob("*train.tfrecord*")
    remote = "ram://records/train.tfrecord-00000-of-00001"
    tf.io.gfile.makedirs("ram://records")
    tf.io.gfile.GFile(remote, "wb").write(local.read_bytes())
    ours, theirs = (open_records([Part(str(f), 3, 20, 30)], len)[0] for f in (remote, local))
    labels = open_records([Part(remote, 3, 20, 30)], len)[1]
    assert [ours(i) for i in range(20)] == [theirs(i) for i in range(20)]
    assert list(labels) == [len(theirs(i)) for i in range(20)]
