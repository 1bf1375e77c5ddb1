"""One run's data on any number of hosts: the same batches, each example once an epoch."""

import numpy as np
import pytest
from PIL import Image

from jepa_jax.config import resolve
from jepa_jax.data import pipeline
from jepa_jax.data import stream as stream_module
from jepa_jax.data.sources import open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.objectives.registry import make_objective

BATCH, IMAGES = 24, 101  # four batches an epoch, of five images another part each time


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """JPEGs of several sizes, some turned by EXIF, and PNGs; one is bad."""
    root = tmp_path_factory.mktemp("hosts") / "train"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        height, width = rng.integers(40, 90, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 1 if i % 5 else 6
        path = root / f"{i:03}.{'png' if i % 7 == 0 else 'jpg'}"
        image.save(path, exif=exif)
    (root / "050.jpg").write_bytes(b"no image")
    return root.parent


@pytest.fixture
def stream(tiny, folder):
    tiny.batch_size = BATCH
    tiny.data.update({"source": "folder", "path": str(folder), "bad_share": 0.5})
    config = resolve(tiny)
    source = open_source(config.data, "train")
    needs = make_objective(config).needs
    return make_stream(needs, config.data, source, seed=config.seed, batch_size=BATCH)


def joined(stream, hosts, start, end):
    """The batches of all hosts, put together again."""
    rows = np.split(np.arange(BATCH), hosts)
    parts = [list(stream.batches(start, end, of_host)) for of_host in rows]
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_any_number_of_hosts_get_one_hosts_batches_and_each_example_once_an_epoch(stream):
    per_epoch = stream.steps_per_epoch
    assert per_epoch == IMAGES // BATCH
    alone = joined(stream, 1, 0, 3 * per_epoch)
    for hosts in (2, 3, 8):
        assert_equal(joined(stream, hosts, 0, 3 * per_epoch), alone)
    left_out = []
    for epoch in range(3):
        batches = alone[epoch * per_epoch : (epoch + 1) * per_epoch]
        seen = np.concatenate([batch["example_index"] for batch in batches])
        assert len(set(seen.tolist())) == len(seen) == per_epoch * BATCH
        left_out.append(frozenset(range(IMAGES)) - set(seen.tolist()))
    assert len(set(left_out)) == 3
    assert sum(batch["replaced"].sum() for batch in alone) in (2, 3)  # of image 50


@pytest.mark.parametrize(("calls", "ahead"), [(1, 0), (7, 1)])
def test_neither_parallel_calls_nor_prefetching_change_a_bit(stream, monkeypatch, calls, ahead):
    usual = joined(stream, 2, 2, 5)
    monkeypatch.setitem(pipeline.PARALLEL, "num_parallel_calls", calls)
    monkeypatch.setattr(stream_module, "_BATCHES_AHEAD", ahead)
    assert_equal(joined(stream, 2, 2, 5), usual)
