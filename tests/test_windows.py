"""Windows hold exactly the recorded steps around the present, and say what does not exist."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffplan.datasets.normalizer import Normalizer
from diffplan.datasets.store import TrajectoryStore
from diffplan.datasets.windows import TrajectoryDataset, WindowBatch, load_dataset
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
SPEC = JointSpec(
    {"arm_0": "arm", "cart": "cart", "arm_1": "arm"},
    {"arm": Role(4, (-1.0, -1.0), (1.0, 1.0)), "cart": Role(3, (-2.0,), (2.0,))},
    dt=0.1,
)
O, D = SPEC.observation_size, SPEC.size


def episode(length: int, seed: int, agent_mask: np.ndarray | None = None) -> Trajectory:
    """Random numbers everywhere, also where nothing exists: they must not leak."""
    rng = np.random.default_rng(seed)
    shape = (length, SPEC.num_agents)
    return Trajectory(
        SPEC,
        rng.normal(size=(length + 1, SPEC.num_agents, O)).astype(np.float32),
        rng.normal(size=(*shape, SPEC.action_size)).astype(np.float32),
        rng.normal(size=shape).astype(np.float32),
        np.zeros(shape, bool),
        np.zeros(shape, bool),
        np.ones((length + 1, SPEC.num_agents), bool) if agent_mask is None else agent_mask,
    )


def come_and_go(length: int) -> np.ndarray:
    """arm_0 leaves after half the episode, the cart appears then, arm_1 stays."""
    early = np.arange(length + 1) <= length // 2
    return np.stack([early, ~early, np.ones_like(early)], axis=1)


EPISODES = [episode(6, 0), episode(9, 1, come_and_go(9)), episode(1, 2), episode(4, 3, come_and_go(4)), episode(12, 4)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrajectoryStore:
    made = TrajectoryStore.create(tmp_path_factory.mktemp("windows"), SPEC)
    made.append(EPISODES[:2])
    made.append(EPISODES[2:])
    return made


def window_by_hand(one: Trajectory, present: int, history: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """One window, cell by cell."""
    cells = np.zeros((SPEC.num_agents, history + horizon, D), np.float32)
    mask = np.zeros(cells.shape, bool)
    for agent, name in enumerate(SPEC.names):
        role = SPEC.role_of(name)
        for place, step in enumerate(range(present - history, present + horizon)):
            if not 0 <= step <= len(one) or not one.agent_mask[step, agent]:
                continue
            width = role.observation_size
            cells[agent, place, :width] = one.observations[step, agent, :width]
            mask[agent, place, :width] = True
            if step < len(one) and one.agent_mask[step + 1, agent]:
                width = role.action_size
                cells[agent, place, O : O + width] = one.actions[step, agent, :width]
                mask[agent, place, O : O + width] = True
    return cells, mask


@pytest.mark.parametrize(("history", "horizon", "stride"), [(0, 1, 1), (3, 5, 1), (2, 20, 3), (0, 4, 2), (10, 3, 1)])
def test_every_window_equals_the_one_made_by_hand(store, history, horizon, stride):
    dataset = TrajectoryDataset(store, horizon, history, stride)
    presents = [(e, t) for e, one in enumerate(EPISODES) for t in range(0, len(one), stride)]
    assert len(dataset) == len(presents)
    order = np.random.default_rng(0).permutation(len(dataset))
    batch = dataset.batch(order)
    assert list(zip(batch.episode.tolist(), batch.step.tolist(), strict=True)) == [presents[i] for i in order]
    for cells, mask, there, index in zip(batch.cells, batch.mask, batch.agent_mask, order, strict=True):
        e, t = presents[index]
        expected_cells, expected_mask = window_by_hand(EPISODES[e], t, history, horizon)
        np.testing.assert_array_equal(cells, expected_cells, strict=True)
        np.testing.assert_array_equal(mask, expected_mask, strict=True)
        np.testing.assert_array_equal(there, EPISODES[e].agent_mask[t])


def test_windows_over_an_episodes_end_do_not_reach_the_next(store):
    last = TrajectoryDataset(store, horizon=4).batch(np.array([5]))
    assert (last.episode[0], last.step[0]) == (0, 5)
    exists = last.mask[0, 0]
    assert exists[:, 0].tolist() == [True, True, False, False]  # the present and the final observation
    assert exists[:, O].tolist() == [True, False, False, False]  # no action at the final observation
    assert not last.cells[0, 0, 2:].any()


@pytest.mark.parametrize("horizon", [1, 2])
def test_nobody_acts_at_the_final_observation_so_that_no_window_inside_begins_there(store, horizon):
    dataset = TrajectoryDataset(store, horizon, history=2, inside=True)
    episode, step = dataset.locate(np.arange(len(dataset)))
    assert [step[episode == e].tolist() for e in range(5)] == [[*range(2, len(one))] for one in EPISODES]


def test_normalized_cells_are_zero_where_nothing_exists(store):
    normalizer = Normalizer.fit(store, "gaussian")
    plain, normal = TrajectoryDataset(store, 5, 2), TrajectoryDataset(store, 5, 2, normalizer=normalizer)
    indices = np.arange(len(plain))
    one, other = plain.batch(indices), normal.batch(indices)
    np.testing.assert_array_equal(one.mask, other.mask)
    assert not other.cells[~other.mask].any()
    back = normalizer.unnormalize(other.cells, SPEC.role_index)
    np.testing.assert_allclose(back[one.mask], one.cells[one.mask], atol=1e-5)


def test_sampling_is_uniform_and_settled_by_its_generator(store):
    dataset = TrajectoryDataset(store, 3)
    one, other = (dataset.sample(8, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one.cells, other.cells)
    drawn = dataset.sample(20_000, np.random.default_rng(0))
    counts = np.bincount(drawn.episode * 100 + drawn.step)
    counts = counts[counts > 0]
    assert len(counts) == len(dataset) == 32
    assert np.abs(counts - 625).max() < 5 * 625**0.5


def test_episodes_can_be_held_out(store):
    dataset = TrajectoryDataset(store, 3, episodes=[4, 0])
    assert len(dataset) == 18
    assert dataset.batch(np.arange(18)).episode.tolist() == [4] * 12 + [0] * 6


def test_windows_come_in_batches_from_a_data_loader(store):
    dataset = TrajectoryDataset(store, 3)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=lambda windows: windows)
    for start, windows in zip(range(0, len(dataset), 4), loader, strict=True):
        expected = dataset.batch(np.arange(start, min(start + 4, len(dataset))))
        assert np.array_equal(windows.cells, expected.cells) and np.array_equal(windows.step, expected.step)


def test_an_empty_batch_is_a_batch(store):
    batch = TrajectoryDataset(store, 3, 1).batch(np.zeros(0, np.int64))
    assert isinstance(batch, WindowBatch) and batch.cells.shape == (0, 3, 4, D)


@pytest.mark.parametrize("indices", [[-1], [32], [0, 99]])
def test_windows_outside_the_dataset_are_refused(store, indices):
    with pytest.raises(IndexError, match="of a dataset of 32"):
        TrajectoryDataset(store, 3).batch(np.array(indices))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon=0; choose at least 1"),
        ({"horizon": 2, "history": -1}, "history=-1; choose at least 0"),
        ({"horizon": 2, "stride": 0}, "stride=0; choose at least 1"),
        ({"horizon": 2, "episodes": [0, 5]}, r"episodes \[5\] are not in .*0\.\.4"),
        ({"horizon": 2, "episodes": []}, "no episodes to draw windows from"),
        ({"horizon": 2, "episodes": [False] * 5}, "no episodes to draw windows from"),
        (
            {"horizon": 2, "normalizer": Normalizer("limits", [[0.0] * 6], [[1.0] * 6])},
            r"\(1, 6\), .* \(2, 6\): it was fitted",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(store, options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryDataset(store, **options)


@pytest.mark.parametrize(
    ("episodes", "got"),
    [
        ([True, False], r"\[2\] of bool"),
        ([0.5, 1.9], r"\[2\] of float64"),
        (np.array([0.0, 1.0], np.float32), r"\[2\] of float32"),
        (["0", "1"], r"\[2\] of <U1"),
        ([[0, 1], [2, 3]], r"\[2, 2\] of int64"),
        (3, r"\[\] of int64"),
    ],
)
def test_episodes_that_are_neither_whole_numbers_nor_a_mask_are_refused(store, episodes, got):
    for choose in (functools.partial(TrajectoryDataset, horizon=2), Normalizer.fit):
        with pytest.raises(ValueError, match=f"episodes is an array {got}; give whole numbers, .* each of the 5 of"):
            choose(store, episodes=episodes)


def test_an_empty_store_has_no_windows(tmp_path):
    TrajectoryStore.create(tmp_path, SPEC)
    for normalizer in ("limits", None):
        with pytest.raises(ValueError, match=r"no episodes to .*collect or choose some"):
            load_dataset(tmp_path, horizon=4, normalizer=normalizer)


def test_load_dataset_fits_only_the_chosen_episodes(store):
    dataset = load_dataset(store.path, horizon=4, history=1, normalizer="limits", episodes=[0, 2])
    assert dataset.normalizer.config.center == Normalizer.fit(store, "limits", [0, 2]).config.center
    assert np.abs(dataset.batch(np.arange(len(dataset))).cells).max() == pytest.approx(1.0)


def test_the_best_episodes_are_those_of_the_best_return(store):
    dataset = TrajectoryDataset(store, horizon=3, history=1, stride=2)
    order = store.mean_returns.argsort(kind="stable")
    for share in (0.4, 0.6):
        best = dataset.best(share)
        assert best.episodes.tolist() == sorted(order[-round(share * len(store)) :].tolist())
        assert (best.horizon, best.history, best.stride) == (3, 1, 2)
    worst = TrajectoryDataset(store, horizon=3, episodes=order[:3])
    assert worst.best(0.4).episodes.tolist() == [order[2]]  # among its own
    assert dataset.best(1e-6).episodes.tolist() == [order[-1]]
    assert dataset.best(1.0).episodes.tolist() == dataset.episodes.tolist()
    with pytest.raises(ValueError, match=r"best 0; it is a share of the episodes, more than 0 and at most 1"):
        dataset.best(0)


def test_a_mask_chooses_the_episodes_where_it_is_true(store):
    mask = store.lengths > 5
    assert mask.tolist() == [True, True, False, False, True]
    for episodes in (mask, mask.tolist()):
        for normalizer in ("limits", None):
            dataset = load_dataset(store.path, horizon=3, normalizer=normalizer, episodes=episodes)
            assert dataset.episodes.tolist() == [0, 1, 4]
    assert (
        Normalizer.fit(store, "limits", mask).config.center == Normalizer.fit(store, "limits", [0, 1, 4]).config.center
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_reading_a_store_larger_than_the_limit_keeps_memory_small():
    """0.6 GB are read end to end and at random; resident memory grows by less than 0.1 GB."""
    run = [sys.executable, ROOT / "scripts" / "benchmark_data.py", "memory", "--gigabytes=0.6", "--batches=100"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["store_gb"] > 0.55 and 0 < found["read_growth_mb"] < 100


def test_a_share_of_the_windows_can_be_drawn_from_the_starts_of_episodes(crossing_store: Path) -> None:
    dataset = TrajectoryDataset(TrajectoryStore.open(crossing_store), horizon=4)
    starts = [(dataset.sample(400, np.random.default_rng(0), share).step == 0).mean() for share in (0.0, 0.5, 1.0)]
    assert starts[0] < 0.1
    assert 0.4 < starts[1] < 0.65
    assert starts[2] == 1


def test_starts_are_drawn_of_episodes_that_are_long_enough_only(tmp_path: Path) -> None:
    lengths = (10, 3, 12, 2)
    store = TrajectoryStore.write(tmp_path / "s", SPEC, "made", [episode(n, n) for n in lengths])
    dataset = TrajectoryDataset(store, horizon=6, history=2, inside=True)
    episodes, steps = dataset.locate(dataset.draw(400, np.random.default_rng(0), start_share=1.0))
    assert set(steps) == {2} and abs((episodes == 0).mean() - 0.5) < 0.1 and set(episodes) == {0, 2}


def test_crowds_are_drawn_where_somebody_is(tmp_path: Path) -> None:
    spec = JointSpec({"a": "walker", "b": "walker"}, {"walker": Role(2, (), (), position=(0, 1))}, dt=0.4)
    there = np.zeros((13, 2), bool)
    there[8:] = True  # for most of the recording nobody is there
    nothing = np.zeros((12, 2))
    walk = Trajectory(
        spec, np.ones((13, 2, 2), np.float32), nothing[..., None][..., :0], nothing, nothing > 0, nothing > 0, there
    )
    store = TrajectoryStore.write(tmp_path / "s", spec, "made", [walk])
    dataset = TrajectoryDataset(store, horizon=2, crowd=2)
    for seed in range(20):
        assert dataset.sample(4, np.random.default_rng(seed)).agent_mask.any(1).all()
