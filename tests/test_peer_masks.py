"""The peers' masks are those of the published recipe, and ours those of our pipeline."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import load_config_file

from benchmarks.peer_masks import draw_masks
from jepa_jax.batch.masks import MultiBlock
from jepa_jax.config import resolve
from jepa_jax.data.masks import MaskSampler

GRID, B, NUM_BATCHES = (14, 14), 128, 96


@pytest.fixture(scope="module")
def masks():
    config = resolve(load_config_file("fashion_mnist"))
    return dataclasses.replace(config.objective.masks, context_tokens=51)


@pytest.fixture(scope="module")
def drawn(masks):
    return draw_masks(masks, GRID, B, num_batches=NUM_BATCHES, seed=0)


def seen(index):
    """Share of the blocks that each patch is in: [14, 14]."""
    counts = np.bincount(np.concatenate([x.reshape(-1) for x in index]), minlength=14 * 14)
    return counts.reshape(GRID) / sum(x[..., 0].size for x in index)


def test_all_blocks_are_sorted_unique_and_apart(drawn):
    for batch in (*drawn[0], *drawn[1]):
        context, target = batch["context_index"], batch["target_index"]
        assert target.shape[:2] == (B, 4)
        for index in (context, target):
            assert index.dtype == np.int32
            assert (np.diff(index) > 0).all()
            assert index.min() >= 0
            assert index.max() < 14 * 14
        assert not (context[:, :, None] == target.reshape(B, 1, -1)).any()


def test_target_blocks_have_the_sizes_of_our_pipeline(masks, drawn):
    lengths = MultiBlock(masks, GRID).target_lengths()
    drawn_lengths = [[batch["target_index"].shape[2] for batch in batches] for batches in drawn]
    assert drawn_lengths[0] == drawn_lengths[1]  # of the same batch the same, for all contenders
    for length, share in lengths.items():
        error = 4 * np.sqrt(share * (1 - share) / NUM_BATCHES)
        assert np.mean(np.array(drawn_lengths[0]) == length) == pytest.approx(share, abs=error)


def test_our_patches_are_seen_as_often_as_in_our_pipeline(masks, drawn):
    sampler = MaskSampler(MultiBlock(masks, GRID), seed=0)
    draw = tf.function(sampler.draw, autograph=False)
    pipeline = [
        draw(
            tf.constant(i, tf.int64),
            tf.constant(0, tf.int64),
            tf.range(i * B, (i + 1) * B, dtype=tf.int64),
        )
        for i in range(NUM_BATCHES)
    ]
    for name in ("context_index", "target_index"):
        expected = seen([batch[name].numpy() for batch in pipeline])
        found = seen([batch[name] for batch in drawn[0]])
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)
        assert found.min() > 0.5 * expected.min()  # no row or column is left out
    assert {batch["context_index"].shape for batch in drawn[0]} == {(B, 51)}


def test_published_contexts_lose_the_bottom_and_the_border(drawn):
    """As was measured on the reference's masks, 128 images a device."""
    lengths = [batch["context_index"].shape[1] for batch in drawn[1]]
    assert np.mean(lengths) == pytest.approx(51, abs=2)
    context = seen([batch["context_index"] for batch in drawn[1]])
    target = seen([batch["target_index"] for batch in drawn[1]])
    for share in (context, target):
        assert share[-1].max() == share[:, -1].max() == 0
    rows = context[:-1, :-1].mean(axis=1)
    assert rows[0] > 0.6
    assert rows[-1] < 0.1
