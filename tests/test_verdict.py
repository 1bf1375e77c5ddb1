"""The verdict on recorded runs, good ones and ones that were made to collapse.

tests/data/diagnostics holds the diagnostics of configs/fashion_mnist.py with --config.epochs=6 and
  good: objective.target_norm=batch, init.std=.06, objective.regularizer.name=variance_covariance,
    objective.regularizer.covariance_weight=.008
  without_average: objective.ema.start_momentum=0, objective.ema.final_momentum=0
  published_form: nothing else.
Each is a run of 936 steps of 64 images; features have 64 dimensions.
"""

import pytest
from conftest import REPOSITORY

from jepa_jax.training.metrics import read_metrics
from jepa_jax.training.verdict import verdict


def words(name):
    rows = read_metrics(REPOSITORY / "tests" / "data" / "diagnostics" / f"{name}.jsonl")
    assert len(rows) == 18
    return [verdict(rows[:n], ceiling=64).word for n in range(1, len(rows) + 1)]


def test_a_good_run_is_never_called_collapsing_and_soon_learning():
    found = words("good")
    assert "collapsing" not in found
    assert "collapsed" not in found
    assert set(found[4:]) == {"learning"}


def test_a_run_without_moving_average_is_seen_to_collapse_within_three_measurements():
    found = words("without_average")
    assert found[0] == "collapsing"
    assert set(found[2:11]) == {"collapsed"}
    assert "learning" not in found


def test_features_that_are_position_first_and_alike_later_are_not_called_learning():
    assert set(words("published_form")) <= {"collapsing", "undecided"}


def test_nothing_is_said_before_anything_is_measured():
    assert verdict([{"step": 1, "loss": 0.5}], ceiling=64) is None


def test_the_sentence_gives_the_numbers_and_where_to_read_on():
    row = {"effective_rank": 3.9, "feature_cosine": 0.97, "position_share": 0.71}
    rows = [{**row, "effective_rank": 4.4}] * 3 + [row] * 3
    found = verdict(rows, ceiling=96)
    assert found.word == "collapsing"
    assert found.sentence == (
        "effective rank 3.9 of 96, falling; cosine between images 0.97; position alone is 71% of "
        "the variance: collapsing; see docs/reading_a_run.md"
    )


@pytest.mark.parametrize(
    ("before", "now", "trend"), [(8, 10, "rising"), (8, 8.1, "steady"), (8, 7, "falling")]
)
def test_the_trend_compares_the_last_measurements_with_those_before(before, now, trend):
    rest = {"feature_cosine": 0.2, "position_share": 0.2}
    rows = [{"effective_rank": rank, **rest} for rank in [before] * 3 + [now] * 3]
    assert f", {trend};" in verdict(rows, ceiling=64).sentence


@pytest.mark.parametrize(
    ("spreads", "collapsed"),
    [
        ([0.4, 0.1, 0.03, 0.012, 0.011, 0.010], True),  # fallen
        ([0.012, 0.011, 0.012, 0.013], False),  # low from the start: nothing is told apart yet
        ([0.0004, 0.0, 0.0], True),  # dead from the start
        ([0.3, 0.01, 0.05, 0.2], False),  # come back
        ([0.0, 0.0], False),  # too few
    ],
)
def test_embeddings_that_are_alike_are_a_collapse_whatever_the_features_are(spreads, collapsed):
    features = {"effective_rank": 30.0, "position_share": 0.2, "feature_cosine": 0.3}
    rows = [{"step": n, "embedding_spread": s, **features} for n, s in enumerate(spreads)]
    assert (verdict(rows, ceiling=64).word == "collapsed") == collapsed
