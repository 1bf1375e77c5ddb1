"""Distributions of multi-block masks: exact ones, and simulations by other means."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from mask_draws import blocks_of, draw, sampler_of, visible_by_hand, visible_counts


def sizes_by_hand(grid, scale, aspect_ratio, limit, points=50_001):
    """Block sizes and their probabilities, by a fine grid of the one uniform number."""
    counts = {}
    for u in np.linspace(0, 1, points, endpoint=False):
        area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
        ratio = aspect_ratio[0] + u * (aspect_ratio[1] - aspect_ratio[0])
        size = (round((area * ratio) ** 0.5), round((area / ratio) ** 0.5))
        size = (min(size[0], limit[0]), min(size[1], limit[1]))
        counts[size] = counts.get(size, 0) + 1 / points
    return counts


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (8, 12)])
@pytest.mark.parametrize("published", [False, True])
def test_block_sizes_have_the_exact_distribution(grid, published):
    blocks = blocks_of(grid, published=published)
    limit = tuple(n - published for n in grid)
    for table, scale, ratio in (
        (blocks.target_size_table, (0.15, 0.2), (0.75, 1.5)),
        (blocks.context_size_table, (0.85, 1.0), (1.0, 1.0)),
    ):
        expected = sizes_by_hand(grid, scale, ratio, limit)
        sizes, counts = np.unique(table, axis=0, return_counts=True)
        ours = {tuple(map(int, s)): c / len(table) for s, c in zip(sizes, counts, strict=True)}
        assert ours.keys() == expected.keys()
        assert all(abs(ours[size] - expected[size]) < 1e-4 for size in ours)


@pytest.mark.parametrize(
    ("grid", "lengths"), [((14, 14), {30, 35, 36, 40}), ((16, 16), {35, 36, 42, 48, 54})]
)
def test_target_lengths_are_the_few_of_the_design(grid, lengths):
    shares = blocks_of(grid).target_lengths()
    assert shares.keys() == lengths
    assert sum(shares.values()) == pytest.approx(1)


def test_steps_draw_their_sizes_by_that_distribution():
    sampler = sampler_of()
    dataset = tf.data.Dataset.range(1500).map(sampler.block_sizes)
    sizes = np.stack(list(dataset.as_numpy_iterator()))  # [S, 1 + M, 2]
    assert (sizes[:, 1:] == sizes[:, 1:2]).all()  # all targets of a step share one size
    shares = sampler.blocks.target_lengths()
    lengths = sizes[:, 1].prod(axis=1)
    observed = [np.sum(lengths == length) for length in shares]
    expected = [1500 * share for share in shares.values()]
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.001
    # The context's size is drawn apart from the targets'.
    table = scipy.stats.contingency.crosstab(sizes[:, 0, 0], lengths).count
    assert min(table.shape) > 1
    assert scipy.stats.chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize("published", [False, True])
def test_corners_are_uniform_over_all_that_fit(published):
    """Published: the last row and column of corners never occur (its off-by-one)."""
    sampler = sampler_of(published=published)
    sizes = tf.constant([[13, 13], [5, 7], [5, 7], [5, 7], [5, 7]])
    index = tf.range(20000, dtype=tf.int64)
    corners = sampler.corners(sizes, tf.constant(0, tf.int64), index, 0).numpy()
    for block, (height, width) in enumerate(sizes.numpy()):
        rows, columns = 15 - height - published, 15 - width - published
        flat = corners[:, block, 0] * columns + corners[:, block, 1]
        assert corners[:, block].max(axis=0).tolist() == [rows - 1, columns - 1]
        counts = np.bincount(flat, minlength=rows * columns)
        assert rows * columns == 1 or scipy.stats.chisquare(counts).pvalue > 0.001


def test_visible_patches_are_the_context_block_less_the_targets():
    sampler = sampler_of((9, 14))
    sizes = sampler.block_sizes(tf.constant(3, tf.int64))
    corners = sampler.corners(sizes, tf.constant(0, tf.int64), tf.range(50, dtype=tf.int64), 0)
    ours = sampler.visible(corners, sizes).numpy()
    for example in range(50):
        by_hand = visible_by_hand(corners.numpy()[example], sizes.numpy(), (9, 14))
        np.testing.assert_array_equal(ours[example], by_hand.ravel())


def test_visible_counts_follow_an_independent_simulation():
    """The same distribution from NumPy's own generator: mean and quantiles."""
    rng = np.random.default_rng(0)
    target = sizes_by_hand((14, 14), (0.15, 0.2), (0.75, 1.5), (14, 14), 20_001)
    context = sizes_by_hand((14, 14), (0.85, 1.0), (1.0, 1.0), (14, 14), 20_001)
    counts = []
    for _ in range(8000):
        pair = [
            list(sizes)[rng.choice(len(sizes), p=np.array(list(sizes.values())))]
            for sizes in (context, target)
        ]
        sizes = [pair[0]] + [pair[1]] * 4
        corners = [[rng.integers(14 - h + 1), rng.integers(14 - w + 1)] for h, w in sizes]
        counts.append(visible_by_hand(corners, sizes, (14, 14)).sum())
    ours = visible_counts(sampler_of(), num_steps=400, batch_size=20).ravel()
    assert ours.mean() == pytest.approx(np.mean(counts), abs=1.5)
    np.testing.assert_allclose(
        np.quantile(ours, (0.1, 0.5, 0.9)), np.quantile(counts, (0.1, 0.5, 0.9)), atol=3
    )


def probability_inside(size, grid, published):
    """Of each patch to lie in a block of one size, by placing it everywhere: [H, W]."""
    inside, places = np.zeros(grid), 0
    for top in range(grid[0] - size[0] + 1 - published):
        for left in range(grid[1] - size[1] + 1 - published):
            inside[top : top + size[0], left : left + size[1]] += 1
            places += 1
    return inside / places


@pytest.mark.parametrize(("grid", "published"), [((14, 14), 0), ((14, 14), 1), ((8, 12), 0)])
def test_each_patch_is_visible_as_often_as_enumeration_says(grid, published):
    """P(in the context block) P(outside of one target)^4, averaged over the step's sizes."""
    limit = tuple(n - published for n in grid)
    context = sizes_by_hand(grid, (0.85, 1.0), (1.0, 1.0), limit, 20_001)
    target = sizes_by_hand(grid, (0.15, 0.2), (0.75, 1.5), limit, 20_001)
    expected = sum(p * probability_inside(s, grid, published) for s, p in context.items())
    expected *= sum(
        p * (1 - probability_inside(s, grid, published)) ** 4 for s, p in target.items()
    )

    sampler = sampler_of(grid, published=bool(published))

    @tf.function(autograph=False)
    def seen(step):
        index = step * 32 + tf.range(32, dtype=tf.int64)
        sizes = sampler.block_sizes(step)
        corners = sampler.corners(sizes, tf.constant(0, tf.int64), index, 0)
        return tf.reduce_mean(tf.cast(sampler.visible(corners, sizes), tf.float64), axis=0)

    ours = np.mean([seen(step) for step in tf.range(700, dtype=tf.int64)], axis=0).reshape(grid)
    np.testing.assert_allclose(ours, expected, atol=0.02)
    np.testing.assert_array_equal(ours > 0, expected > 0)


def test_published_mode_sees_what_the_published_code_saw():
    sampler = sampler_of(published=True)
    counts = visible_counts(sampler, num_steps=2500, batch_size=8)
    assert counts.mean() == pytest.approx(81.6, abs=0.5)
    assert 27 <= counts.min() <= 33
    assert 126 <= counts.max() <= 136
    for batch in draw(sampler, num_steps=60):
        for name in ("context_index", "target_index"):
            row, column = np.divmod(batch[name], 14)
            assert row.max() < 13
            assert column.max() < 13


def test_published_mode_keeps_the_first_patches_in_raster_order():
    sampler = sampler_of(published=True)
    step, epoch, index = tf.constant(0, tf.int64), tf.constant(0, tf.int64), tf.range(64)
    sizes = sampler.block_sizes(step)
    corners = sampler.corners(sizes, epoch, tf.cast(index, tf.int64), 0)
    visible = sampler.visible(corners, sizes).numpy()
    ours = sampler.draw(step, epoch, tf.cast(index, tf.int64))["context_index"].numpy()
    enough = visible.sum(axis=1) >= 51  # the others were redrawn
    assert enough.sum() > 40
    for example in np.flatnonzero(enough):
        np.testing.assert_array_equal(ours[example], np.flatnonzero(visible[example])[:51])
