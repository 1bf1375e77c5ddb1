"""TensorFlow Datasets: that what it imports, and does not ask for, is installed."""

import tensorflow_datasets as tfds


def test_a_builder_of_the_library_opens_without_a_download(tmp_path):
    builder = tfds.builder("mnist", data_dir=tmp_path, try_gcs=False)
    assert builder.info.features["image"].shape == (28, 28, 1)
    assert builder.info.features["label"].num_classes == 10


def test_a_builder_finds_its_own_code_as_it_does_before_a_download():
    """Imports importlib_resources, which the library does not depend on by name."""
    assert tfds.builder_cls("mnist").code_path.name == "mnist.py"
