"""Images that are made: the same each time, as many as asked for, with classes to be learned."""

import numpy as np
import pytest
from test_sources import at, data_config, load

from jepa_jax.data.sources import open_source
from jepa_jax.errors import UserError


def opened(split="train", **fields):
    return open_source(data_config(source="synthetic", **fields), split)


def test_an_image_follows_from_its_number_alone():
    few, many = opened(path="20"), opened(path="1000000")
    assert (few.num_examples, many.num_examples) == (20, 1_000_000)
    np.testing.assert_array_equal(load(few, [3, 7]), load(many, [7, 3])[::-1])
    images = load(many, [*range(100), 999_999])
    assert len(np.unique(images, axis=0)) == 101
    assert np.any(
        load(opened("test"), range(10)) != load(opened(), range(10)), axis=(1, 2, 3)
    ).all()
    assert opened("test").num_examples == 2000


def test_a_crop_is_the_part_of_the_image_and_any_size_shows_the_same():
    source = opened(image_size=(84, 56), mean=(0.5,) * 4, std=(0.5,) * 4)
    whole = load(source, range(20), at(np.tile([0, 0, 84, 56], (20, 1))), (84, 56))
    assert whole.shape == (20, 84, 56, 4)
    part = load(source, range(20), at(np.tile([10, 5, 30, 40], (20, 1))), (30, 40))
    np.testing.assert_array_equal(part, whole[:, 10:40, 5:45])
    small = load(source, range(20), at(np.tile([0, 0, 84, 56], (20, 1))), (42, 28))
    means = whole.reshape(20, 42, 2, 28, 2, 4).mean(axis=(2, 4))
    assert np.abs(small - means).max() < 6


def test_the_class_is_the_direction_along_which_the_image_changes_most():
    source = opened(image_size=(64, 64))
    images = load(source, range(200), at(np.tile([0, 0, 64, 64], (200, 1))), (64, 64))
    strongest = images.std(axis=(1, 2)).argmax(axis=1)
    gray = images[np.arange(200), :, :, strongest].astype(float)
    spectrum = np.abs(np.fft.fft2(gray - gray.mean(axis=(1, 2), keepdims=True), (256, 256)))
    rows, columns = np.unravel_index(spectrum.reshape(200, -1).argmax(axis=1), (256, 256))
    angle = np.arctan2(np.fft.fftfreq(256)[columns], np.fft.fftfreq(256)[rows]) % np.pi
    found = np.round(angle / np.pi * 10).astype(int) % 10
    assert np.mean(found == source.labels[:200]) > 0.97


@pytest.mark.parametrize("path", ["many", "9", "-5", "1e5", "2000000000"])
def test_what_is_no_number_of_images_is_refused(path):
    with pytest.raises(UserError, match=r"must be the number of synthetic images, 10 to"):
        opened(path=path)
    with pytest.raises(UserError, match=r"train_split = 'all': must be train or test"):
        opened(train_split="all")
