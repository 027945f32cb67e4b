import numpy as np
import pytest

import diffplan as dp


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[dp.TrajectoryStore]:
    folder = tmp_path_factory.mktemp("stores")
    return [
        dp.collect_episodes(
            "crossing-v0", out=folder / f"{n}", episodes=2, workers=0, env_options={"num_robots": n}, progress=False
        )
        for n in (2, 3)
    ]


def test_merged_episodes_are_those_of_the_parts_with_the_others_absent(stores, tmp_path) -> None:
    merged = dp.merge_stores([store.path for store in stores], tmp_path / "merged")
    assert merged.spec == stores[1].spec and len(merged) == 4
    for index, (store, episode) in enumerate([(stores[0], 0), (stores[0], 1), (stores[1], 0), (stores[1], 1)]):
        mine, theirs, present = merged[index], store[episode], store.spec.num_agents
        np.testing.assert_array_equal(mine.observations[:, :present], theirs.observations)
        np.testing.assert_array_equal(mine.actions[:, :present], theirs.actions)
        assert mine.agent_mask[:, :present].all() and not mine.agent_mask[:, present:].any()
        assert mine.labels == theirs.labels


def test_a_planner_learns_from_teams_of_different_size(stores, tmp_path) -> None:
    merged = dp.merge_stores([store.path for store in stores], tmp_path / "merged")
    dataset = dp.load_dataset(merged.path, horizon=8)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    report = dp.train(planner, dataset, steps=2, batch_size=4, progress=False)
    assert np.isfinite(report.losses).all()
    env = dp.make("crossing-v0", num_robots=5)
    assert planner.for_agents(env.joint_spec)(env.reset(seed=0)[0]).agent_mask.sum() == 5


def test_what_cannot_be_merged_is_refused(stores, tmp_path) -> None:
    with pytest.raises(ValueError, match="no stores"):
        dp.merge_stores([], tmp_path / "none")
    pillars = dp.collect_episodes(
        "crossing-v0",
        out=tmp_path / "pillars",
        episodes=1,
        workers=0,
        env_options={"num_robots": 2, "layout": "obstacles"},
        progress=False,
    )
    with pytest.raises(ValueError, match="role 'robot'"):
        dp.merge_stores([stores[1].path, pillars.path], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    with pytest.raises(ValueError, match="already"):
        dp.merge_stores([stores[0].path], stores[1].path)
