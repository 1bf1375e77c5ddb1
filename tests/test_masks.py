"""Multi-block masks: their invariants, and what they depend on."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import load_config_file
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_draws import NAMES, blocks_of, draw, sampler_of, visible_by_hand, visible_counts

from jepa_jax.batch.masks import MultiBlock, check_feasible
from jepa_jax.config import resolve
from jepa_jax.data import masks
from jepa_jax.errors import UserError


def test_an_example_keeps_its_first_draw_that_leaves_enough():
    """And only the examples that need it are redrawn."""
    sampler = sampler_of(context_tokens=90)
    step, epoch, index = (tf.constant(n, tf.int64) for n in (2, 0, list(range(64))))
    sizes = sampler.block_sizes(step)
    batch = {name: value.numpy() for name, value in sampler.draw(step, epoch, index).items()}
    draws = [sampler.corners(sizes, epoch, index, number).numpy() for number in range(20)]
    first = []
    for example in range(64):
        visible = [visible_by_hand(c[example], sizes.numpy(), (14, 14)).ravel() for c in draws]
        chosen = next(number for number in range(20) if visible[number].sum() >= 90)
        first.append(chosen)
        top_left = batch["target_index"][example, :, 0]
        np.testing.assert_array_equal(top_left, draws[chosen][example, 1:] @ [14, 1])
        assert visible[chosen][batch["context_index"][example]].all()
    assert first.count(0) > 5
    assert max(first) > 1


@pytest.fixture(scope="module")
def many():
    return draw(sampler_of(), num_steps=150, batch_size=128)


def test_all_rows_and_columns_occur_and_visibility_is_symmetric(many):
    """Corners are unbiased, so a patch is seen as often as its mirror images."""
    seen = np.zeros(196)
    for batch in many:
        seen += np.bincount(batch["context_index"].ravel(), minlength=196)
    seen = seen.reshape(14, 14) / sum(len(batch["context_index"]) for batch in many)
    assert seen.min() > 0.05
    for mirrored in (seen[::-1], seen[:, ::-1]):
        np.testing.assert_allclose(seen, mirrored, atol=0.035)
    assert (np.bincount(np.concatenate([b["target_index"].ravel() for b in many])) > 0).all()


def check_invariants(batch, sampler):
    num_patches = sampler.grid[0] * sampler.grid[1]
    context, targets = batch["context_index"], batch["target_index"]
    assert context.dtype == targets.dtype == np.int32
    assert context.shape[1] == sampler.masks.context_tokens
    assert targets.shape[1] == sampler.masks.num_targets
    for index in (context, targets):
        assert index.min() >= 0
        assert index.max() < num_patches
        assert (np.diff(index, axis=-1) > 0).all()  # sorted and unique
    if not sampler.masks.allow_overlap:
        for one_context, one_targets in zip(context, targets, strict=True):
            assert not np.isin(one_context, one_targets).any()


def test_indices_are_sorted_unique_in_range_and_disjoint(many):
    for batch in many[:20]:
        check_invariants(batch, sampler_of())
        assert not batch["mask_fallback"].any()


def test_targets_are_rectangles_of_the_steps_size(many):
    sampler = sampler_of()
    for step, batch in enumerate(many[:10]):
        height, width = sampler.block_sizes(tf.constant(step, tf.int64)).numpy()[1]
        row, column = np.divmod(batch["target_index"], 14)
        assert batch["target_index"].shape[2] == height * width
        assert (row.max(-1) - row.min(-1) == height - 1).all()
        assert (column.max(-1) - column.min(-1) == width - 1).all()


def test_the_context_is_a_uniform_subset_of_the_visible_patches():
    """With one place for everything, each of the 30 visible patches is kept as often as another."""
    sampler = sampler_of(
        (6, 6),
        context_tokens=10,
        context_scale=(1.0, 1.0),
        num_targets=1,
        target_scale=(1 / 6, 1 / 6),
        target_aspect_ratio=(6.0, 6.0),  # a 6 x 1 column
    )
    (batch,) = draw(sampler, batch_size=12000)
    column = batch["target_index"][:, 0, 0]
    kept = batch["context_index"][column == 2]
    counts = np.bincount(kept.ravel(), minlength=36)
    assert (counts.reshape(6, 6)[:, 2] == 0).all()
    counts = counts.reshape(6, 6)[:, [0, 1, 3, 4, 5]]
    # Draws without replacement vary less than chi-square's, so only large values are a sign.
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 0.001


def test_overlap_is_allowed_when_asked_for():
    sampler = sampler_of(allow_overlap=True, context_tokens=120)
    (batch,) = draw(sampler, batch_size=32)
    check_invariants(batch, sampler)
    overlap = [np.isin(c, t).any() for c, t in zip(*(batch[n] for n in NAMES), strict=True)]
    assert all(overlap)


def test_masks_do_not_depend_on_parallelism():
    sampler = sampler_of()

    def batches(num_parallel_calls):
        dataset = tf.data.Dataset.range(12).map(
            lambda step: sampler.draw(step, step // 6, step * 16 + tf.range(16, dtype=tf.int64)),
            num_parallel_calls=num_parallel_calls,
        )
        return list(dataset.as_numpy_iterator())

    expected = batches(1)
    for num_parallel_calls in (2, tf.data.AUTOTUNE):
        for ours, one in zip(batches(num_parallel_calls), expected, strict=True):
            for name in one:
                np.testing.assert_array_equal(ours[name], one[name])


def test_an_examples_masks_can_be_drawn_alone():
    """So any host can draw those of its own examples."""
    sampler = sampler_of()
    batch = draw(sampler, num_steps=3, batch_size=32)[2]
    step, epoch = tf.constant(2, tf.int64), tf.constant(0, tf.int64)
    for example in (0, 9, 31):
        alone = sampler.draw(step, epoch, tf.constant([64 + example], tf.int64))
        for name in NAMES:
            np.testing.assert_array_equal(alone[name][0], batch[name][example])


def test_examples_of_one_batch_can_be_of_different_epochs():
    sampler, step = sampler_of(), tf.constant(0, tf.int64)
    index = tf.constant([5, 5, 6], tf.int64)
    mixed = sampler.draw(step, tf.constant([3, 4, 4], tf.int64), index)
    later = sampler.draw(step, tf.constant(4, tf.int64), index)
    for name in NAMES:
        np.testing.assert_array_equal(mixed[name][1:], later[name][1:])
        assert (mixed[name][0].numpy() != later[name][0].numpy()).any()


def test_masks_change_with_seed_epoch_and_example():
    """Each of the three draws: the step's sizes, an example's corners, and its visible patches."""
    index = tf.range(64, dtype=tf.int64)
    sizes = tf.constant([[13, 13], [5, 7], [5, 7], [5, 7], [5, 7]])

    def sizes_of(seed):
        return [sampler_of(seed=seed).block_sizes(step) for step in index[:12]]

    def corners_of(seed, epoch):
        return sampler_of(seed=seed).corners(sizes, tf.constant(epoch, tf.int64), index, 0)

    def chosen_of(seed, epoch):
        visible = tf.ones([64, 196], tf.bool)
        return sampler_of(seed=seed)._choose(visible, tf.constant(epoch, tf.int64), index)

    np.testing.assert_array_equal(sizes_of(0), sizes_of(0))
    assert not np.array_equal(sizes_of(0), sizes_of(1))
    for draw_of in (corners_of, chosen_of):
        base = draw_of(0, 0).numpy()
        np.testing.assert_array_equal(base, draw_of(0, 0))
        for other in (draw_of(1, 0), draw_of(0, 1)):
            assert np.mean(base != other.numpy()) > 0.4
        assert len(np.unique(base.reshape(64, -1), axis=0)) == 64


def test_the_stage_is_tensorflow_operations_only():
    sampler = sampler_of()
    function = tf.function(sampler.draw, autograph=False).get_concrete_function(
        *(tf.TensorSpec(shape, tf.int64) for shape in ([], [], [8]))
    )
    operations = {node.op for node in function.graph.as_graph_def().node}
    operations |= {
        node.op for f in function.graph.as_graph_def().library.function for node in f.node_def
    }
    assert not {op for op in operations if "PyFunc" in op}


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    rows=st.integers(4, 18),
    columns=st.integers(4, 18),
    num_targets=st.integers(1, 5),
    scale=st.floats(0.05, 0.3),
    share=st.floats(0.02, 0.3),
    published=st.booleans(),
    allow_overlap=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_invariants_hold_on_any_grid(
    rows, columns, num_targets, scale, share, published, allow_overlap, seed
):
    sampler = sampler_of(
        (rows, columns),
        seed,
        num_targets=num_targets,
        target_scale=(scale, scale * 1.3),
        context_tokens=max(1, int(share * rows * columns)),
        published=published,
        allow_overlap=allow_overlap,
    )
    try:
        check_feasible(sampler.blocks)
    except UserError:
        return
    for batch in draw(sampler, num_steps=2, batch_size=8):
        check_invariants(batch, sampler)
        assert batch["target_index"].shape[2] in sampler.blocks.target_lengths()


def test_when_no_draw_fits_all_targets_share_one_place(monkeypatch):
    """Forced: only the first draw is tried, and 100 visible patches are too many for many."""
    monkeypatch.setattr(masks, "MAX_DRAWS", 1)
    sampler = sampler_of(context_tokens=100)
    (batch,) = draw(sampler, batch_size=256)
    fallback = batch["mask_fallback"]
    assert 0.3 < fallback.mean() < 0.99
    check_invariants(batch, sampler)
    targets = batch["target_index"]
    assert (targets[fallback] == targets[fallback][:, :1]).all()
    assert (targets[~fallback] != targets[~fallback][:, :1]).any(axis=(1, 2)).all()


def test_redrawing_gives_up_after_a_bounded_number_of_draws():
    """150 patches can't be visible beside the targets, yet this returns."""
    (batch,) = draw(sampler_of(context_tokens=150), batch_size=4)
    assert batch["mask_fallback"].all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_tokens": 120}, r"context_tokens = 120: .*% .* the largest that works is \d+"),
        ({"target_scale": (1.0, 1.0)}, "the targets cover the grid"),
        ({"target_scale": (0.001, 0.001)}, "some target blocks have no patch"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(UserError, match=message) as error:
        check_feasible(blocks_of(**fields))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (6, 20)])
def test_the_largest_k_that_is_named_works(grid):
    with pytest.raises(UserError) as error:
        check_feasible(blocks_of(grid, context_tokens=grid[0] * grid[1]))
    largest = int(str(error.value).rsplit(" ", 1)[1])
    assert check_feasible(blocks_of(grid, context_tokens=largest)) >= 0.5
    with pytest.raises(UserError):
        check_feasible(blocks_of(grid, context_tokens=largest + 1))


@pytest.mark.parametrize(
    ("grid", "fields"),
    [
        ((14, 14), {"context_tokens": 51}),
        ((14, 14), {"context_tokens": 75}),
        ((14, 14), {"context_tokens": 68, "published": True}),
        ((14, 14), {"context_tokens": 160, "allow_overlap": True}),
        ((6, 12), {"context_tokens": 25, "num_targets": 3}),
    ],
)
def test_the_share_that_fits_is_the_share_of_what_is_drawn(grid, fields):
    """An estimate from NumPy's generator, beside the draws of training."""
    counts = visible_counts(sampler_of(grid, **fields), num_steps=4096, batch_size=16)
    drawn = np.mean(counts >= fields["context_tokens"])
    assert check_feasible(blocks_of(grid, **fields)) == pytest.approx(drawn, abs=0.01)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_the_configs_masks_are_rarely_redrawn(name):
    config = resolve(load_config_file(name))
    assert check_feasible(MultiBlock(config.objective.masks, config.grid)) > 0.9
