import numpy as np
import pytest
from numpy_model import numpy_positions, pillow_resize

from jepa_jax.models.positions import interpolate_positions, sincos_positions

GRID, WIDTH = (3, 4), 16


def test_positions_are_sines_and_cosines_of_the_column_then_of_the_row():
    table = sincos_positions((3, 5), 16)
    np.testing.assert_allclose(table, numpy_positions((3, 5), 16), atol=1e-7)
    by_place = table.reshape(3, 5, 16)
    assert (by_place[:, :, :8] == by_place[:1, :, :8]).all()  # first half: the same in every row
    assert (by_place[:, :, 8:] == by_place[:, :1, 8:]).all()


@pytest.mark.parametrize("new_grid", [(6, 8), (5, 11), (3, 9)])
def test_enlarged_positions_equal_pillow_s_bicubic_filter(new_grid):
    table = sincos_positions(GRID, WIDTH)
    ours = interpolate_positions(table, GRID, new_grid)
    np.testing.assert_allclose(ours, pillow_resize(table, GRID, new_grid), atol=1e-5)


def test_positions_at_the_model_s_own_grid_are_untouched():
    table = sincos_positions(GRID, WIDTH)
    np.testing.assert_array_equal(interpolate_positions(table, GRID, GRID), table)


@pytest.mark.parametrize("new_grid", [(16, 4), (4, 7), (28, 28)])
def test_a_ramp_of_positions_stays_that_ramp_away_from_the_edges(new_grid):
    grid = (8, 14)
    row, column = np.divmod(np.arange(8 * 14, dtype=np.float32), 14)
    ramps = np.stack([row, column], axis=1).astype(np.float32)  # [N, 2]
    ours = np.asarray(interpolate_positions(ramps, grid, new_grid)).reshape(*new_grid, 2)
    for axis in (0, 1):
        # Centres of the new patches, in the old ones' coordinates.
        centres = (np.arange(new_grid[axis]) + 0.5) * grid[axis] / new_grid[axis] - 0.5
        inside = (centres >= 1) & (centres <= grid[axis] - 2)  # all four neighbours exist
        assert inside.sum() >= 2
        along = np.moveaxis(ours[..., axis], axis, 0)[inside]
        np.testing.assert_allclose(
            along, np.broadcast_to(centres[inside, None], along.shape), atol=1e-5
        )


@pytest.mark.parametrize("new_grid", [(6, 9), (2, 3)])
def test_interpolation_commutes_with_reflection(new_grid):
    table = np.random.default_rng(4).normal(size=(12, 4)).astype(np.float32)
    mirrored = table.reshape(*GRID, 4)[::-1, ::-1].reshape(12, 4)
    ours = np.asarray(interpolate_positions(table, GRID, new_grid)).reshape(*new_grid, 4)
    theirs = np.asarray(interpolate_positions(mirrored, GRID, new_grid)).reshape(*new_grid, 4)
    np.testing.assert_allclose(theirs, ours[::-1, ::-1], atol=1e-6)
