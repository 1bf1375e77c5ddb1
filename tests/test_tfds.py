"""TensorFlow Datasets: that what it imports, and does not ask for, is installed."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_sources import at, data_config, load

from jepa_jax.data.sources import open_source
from jepa_jax.errors import UserError

TRUTH = np.random.default_rng(0).random((4, 8, 8, 13), np.float32)
F = tfds.features


def wide(channels):
    return np.round(65535 * TRUTH[..., :channels]).astype(np.uint16)


KINDS: dict = {
    "thirteen bands": (F.Tensor(shape=(8, 8, 13), dtype=np.float32), TRUTH),
    "four channels": (F.Image(shape=(8, 8, 4)), (255 * TRUTH[..., :4]).astype(np.uint8)),
    "16-bit gray": (F.Image(shape=(8, 8, 1), dtype=np.uint16), wide(1)),
}


class OtherKinds(tfds.core.GeneratorBasedBuilder):
    """Images of one of the kinds, under a name of their own, without labels."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name.replace(" ", "_")) for name in KINDS)

    def _kind(self):
        return KINDS[self.builder_config.name.replace("_", " ")]

    def _info(self):
        features = F.FeaturesDict({"bands": self._kind()[0]})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, image in enumerate(self._kind()[1]):
            yield i, {"bands": image}


@pytest.mark.parametrize("kind", KINDS)
def test_other_channels_types_and_names_are_read_with_the_right_scale(tmp_path, kind):
    images = KINDS[kind][1]
    channels = images.shape[-1]
    fields = {"source": "tfds", "path": f"other_kinds/{kind.replace(' ', '_')}"}
    fields |= {"tfds_dir": str(tmp_path), "image_size": (28, 28)}
    own = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    source = open_source(data_config(**fields, **own), "train")
    x = load(source, range(4), at(np.tile([0, 0, 8, 8], (4, 1))), (8, 8))
    most = 255 if images.dtype == np.uint8 else 65535
    truth = TRUTH[..., :channels]
    assert np.abs(x / np.iinfo(x.dtype).max - truth).max() <= 1.01 / most
    if channels > 1:
        with pytest.raises(UserError, match=rf"has 3 values, and the images have {channels}"):
            open_source(data_config(**fields), "train")


def test_a_builder_of_the_library_opens_without_a_download(tmp_path):
    builder = tfds.builder("mnist", data_dir=tmp_path, try_gcs=False)
    assert builder.info.features["image"].shape == (28, 28, 1)
    assert builder.info.features["label"].num_classes == 10


def test_a_builder_finds_its_own_code_as_it_does_before_a_download():
    """Imports importlib_resources, which the library does not depend on by name."""
    assert tfds.builder_cls("mnist").code_path.name == "mnist.py"
