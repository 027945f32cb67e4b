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


def test_a_store_that_lacks_the_widest_role_is_padded(tmp_path) -> None:
    narrow, wide = dp.Role(2, (-1.0,), (1.0,)), dp.Role(4, (-1.0, -1.0), (1.0, 1.0))
    specs = [
        dp.JointSpec({"r": "robot"}, {"robot": narrow}, 0.1),
        dp.JointSpec({"r": "robot", "b": "box"}, {"robot": narrow, "box": wide}, 0.1),
    ]
    for index, spec in enumerate(specs):
        shape = (3, spec.num_agents)
        observations = np.full((4, spec.num_agents, spec.observation_size), index + 1, np.float32)
        actions, rewards = np.full((*shape, spec.action_size), index + 1, np.float32), np.zeros(shape, np.float32)
        over, there = np.zeros(shape, bool), np.ones((4, spec.num_agents), bool)
        one = dp.Trajectory(spec, observations, actions, rewards, over, over, there)
        dp.TrajectoryStore.write(tmp_path / f"{index}", spec, "made", [one])
    merged = dp.merge_stores([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    np.testing.assert_array_equal(merged[0].observations[:, 0], [[1, 1, 0, 0]] * 4)
    np.testing.assert_array_equal(merged[0].actions[:, 0], [[1, 0]] * 3)
    assert not merged[0].agent_mask[:, 1].any() and merged[1].agent_mask.all()
