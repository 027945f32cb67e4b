"""Partners that change are noticed, soon and only then."""

from pathlib import Path

import numpy as np
import pytest

import diffplan as dp
from diffplan.finetuning.drift import REFERENCE, Drift, Foresight


def reference(rng: np.random.Generator) -> list[float]:
    return rng.standard_normal(1_000).tolist()


def test_errors_that_do_not_change_are_no_drift() -> None:
    rng = np.random.default_rng(0)
    drift = Drift(reference(rng))
    for round_ in range(100):
        drift.meet(50 * round_, rng.standard_normal(50))
    assert len(drift.found) <= 1


def test_errors_that_shrink_are_no_drift() -> None:
    rng = np.random.default_rng(0)
    drift = Drift(reference(rng))
    row = drift.meet(0, rng.standard_normal(50) - 2)
    assert row["drifted"] is None
    assert row["surprise"] == pytest.approx(-2, abs=0.4)
    assert row["drift"] == 0


@pytest.mark.parametrize("batch", [1, 10, 200])
def test_a_change_is_dated_however_episodes_come(batch: int) -> None:
    rng = np.random.default_rng(1)
    drift, errors = Drift(reference(rng)), rng.standard_normal(400)
    errors[200:] += 2
    rows = [drift.meet(first, errors[first : first + batch]) for first in range(0, 400, batch)]
    (began,) = drift.found
    assert began == pytest.approx(200, abs=5)
    assert [row["drifted"] for row in rows if row["drifted"] is not None] == [began]


def test_what_comes_after_a_change_is_the_new_normal() -> None:
    rng = np.random.default_rng(2)
    drift = Drift(reference(rng))
    drift.meet(0, rng.standard_normal(300) + 2)
    assert drift.found[0] < 5
    assert (len(drift.found), len(drift.reference)) == (1, REFERENCE)
    drift.meet(300, rng.standard_normal(100) + 5)
    assert len(drift.found) == 2


def test_episodes_a_little_worse_than_the_training_data_soon_are_the_reference() -> None:
    rng = np.random.default_rng(3)
    drift = Drift(reference(rng))
    rows = [drift.meet(first, rng.standard_normal(REFERENCE) + 0.4) for first in range(0, 9 * REFERENCE, REFERENCE)]
    assert drift.found == []
    assert rows[0]["surprise"] == pytest.approx(0.4, abs=0.2)
    assert np.mean([row["surprise"] for row in rows[1:]]) == pytest.approx(0, abs=0.2)


def test_unknown_errors_are_left_out() -> None:
    drift = Drift(reference(np.random.default_rng(0)))
    assert drift.meet(0, np.full(9, np.nan)) == {"surprise": None, "drift": 0.0, "drifted": None}


@pytest.mark.parametrize("watched", [[False, False], [False, True]])
def test_a_planner_is_surprised_by_what_contradicts_its_network(
    watched: list[bool], crossing_store: Path, tmp_path: Path
) -> None:
    """A planner that expects nothing to move errs by how far things do."""
    dataset = dp.load_dataset(crossing_store, horizon=8)
    foresight = Foresight(dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1), np.array(watched))
    log_errors = foresight.log_errors(dataset, np.random.default_rng(0))
    assert np.isfinite(log_errors).all()
    twin = [dataset.store[index] for index in range(len(dataset.store))]
    for episode in twin:
        episode.observations[:, 1, :2] *= 10.0  # the second robot's positions, of which a partner is asked
    store = dp.TrajectoryStore.create(tmp_path, dataset.spec)
    store.append(twin)
    far = dp.TrajectoryDataset(store, 8, normalizer=dataset.normalizer)
    drift = foresight.reference(dataset, np.random.default_rng(0))
    assert len(drift.reference) == (len(dataset.episodes) if any(watched) else 0)  # a team alone is its own normal
    assert drift.meet(0, np.full(REFERENCE, 9.0))["drifted"] == (0 if any(watched) else None)
    difference = foresight.log_errors(far, np.random.default_rng(0)) - log_errors
    assert (difference > 0.5).all()
    first = Foresight(foresight.planner, np.array([True, False]))
    one, other = (first.log_errors(data, np.random.default_rng(0)) for data in (dataset, far))
    assert np.array_equal(one, other)  # an untrained network makes nothing of the other robot's future
