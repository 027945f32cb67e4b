"""How far forecasts are from what was recorded."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import diffplan as dp
from diffplan.cli import main
from diffplan.evaluation import ratio_interval
from diffplan.forecasting import colliding, inside, recorded_windows, scene_errors

ROLES = {kind: dp.Role(2, (), (), position=(0, 1)) for kind in ("walker", "dog")}
SPEC = dp.JointSpec({"a": "walker", "b": "walker", "rex": "dog"}, ROLES, dt=1.0)
STEPS = 9


def walk(rng: np.random.Generator) -> dp.Trajectory:
    """All go on straight, each its own way; the dog has left after half of the time."""
    place, move = rng.normal(0, 5, (3, 2)), rng.normal(0, 1, (3, 2))
    places = (place + np.arange(STEPS + 1)[:, None, None] * move).astype(np.float32)
    there = np.ones((STEPS + 1, 3), bool)
    there[STEPS // 2 :, 2] = False
    nothing, ended = np.zeros((STEPS, 3), np.float32), np.zeros((STEPS, 3), bool)
    return dp.Trajectory(SPEC, places, nothing[..., None][..., :0], nothing, ended, ended, there)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dp.TrajectoryDataset:
    folder, rng = tmp_path_factory.mktemp("walks"), np.random.default_rng(0)
    dp.TrajectoryStore.write(folder, SPEC, "walks", [walk(rng) for _ in range(40)])
    return dp.load_dataset(folder, horizon=6, history=2, normalizer="motion", inside=True)


@pytest.fixture(scope="module")
def planner(dataset: dp.TrajectoryDataset) -> dp.DiffusionPlanner:
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, patch_size=8, frames=True, seed=0)
    dp.train(planner, dataset, steps=100, batch_size=32, start_share=0.0, progress=False)
    return planner


def test_errors_are_of_the_best_future_of_each_agent_and_of_the_best_whole_scene() -> None:
    real, there = np.zeros((2, 3, 2)), np.ones((2, 3), bool)
    futures = np.zeros((2, 2, 3, 2))
    futures[0, 0, :, 0], futures[1, 1, :, 1] = (1, 2, 3), (2, 4, 6)  # each future is right for one of the two
    found = scene_errors(futures, futures, real, there)
    assert found == {"marginal_ade": 0, "marginal_fde": 0, "joint_ade": 1, "joint_fde": 1.5}
    there[0, 2] = False  # the first was last seen a step earlier
    assert scene_errors(futures, futures, real, there)["joint_ade"] == 0.75
    assert scene_errors(futures, futures, real, there)["joint_fde"] == 1.0
    assert scene_errors(futures, futures, real[:, :2], there[:, :2])["joint_fde"] == 1.0  # the recording ends earlier


def test_who_passes_through_another_between_two_steps_collides_while_both_are_there() -> None:
    meeting = np.array([[[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.1], [0.0, 0.1]], [[9.0, 9.0], [9.0, 9.0]]])[None]
    there = np.ones((3, 2), bool)
    assert colliding(meeting, there, 0.2).tolist() == [[True, True, False]]
    assert not colliding(meeting, there, 0.05).any()
    assert not colliding(meeting[:, :, :1], there[:, :1], 0.2).any()
    assert colliding(meeting[:, :, :1] * 0, there[:, :1], 0.2).all()  # one step, all at one place
    there[1, 1] = False
    assert not colliding(meeting, there, 0.2).any()


def test_the_region_that_holds_a_share_of_samples_holds_that_share_of_what_is_drawn_alike() -> None:
    futures, real = np.split(np.random.default_rng(0).normal(size=(2_000, 1, 500, 2)), [1_999])
    assert inside(futures, real[0], np.ones((1, 500), bool), 0.8) == pytest.approx(0.8, abs=0.04)


def test_windows_of_an_episode_are_resampled_together() -> None:
    values, groups = np.repeat(np.random.default_rng(0).normal(size=50), 10), np.repeat(np.arange(50), 10)
    together, apart = (ratio_interval(values, np.ones(500), one) for one in (groups, np.arange(500)))
    assert together.value == pytest.approx(values.mean()) == apart.value
    assert 2.5 < (together.high - together.low) / (apart.high - apart.low) < 4  # sqrt(10)
    assert np.isnan(ratio_interval(values, np.ones(500), np.zeros(500, int)).low)


def test_going_on_is_foreseen_and_agents_count_while_they_are_there(
    dataset: dp.TrajectoryDataset, planner: dp.DiffusionPlanner
) -> None:
    report = dp.evaluate_forecasts(planner, dataset, futures=5, num_samples=10, windows=30, touch=0.2)
    assert len(report.agents) == 30 and set(report.agents) == {2, 3}  # the dog has left at later presents
    means = {name: one.value for name, one in report.summary().items()}
    going = np.mean([np.linalg.norm(np.diff(one.observations, axis=0), axis=-1).mean() for one in dataset.store])
    assert means["marginal_ade"] <= means["joint_ade"] < going  # standing still would be off by three moves
    assert means["marginal_fde"] <= means["joint_fde"] and 0 <= means["region_80"] <= 1
    walkers = dp.evaluate_forecasts(planner, dataset, futures=5, num_samples=5, windows=30, roles=["walker"])
    assert set(walkers.agents) == {2} and "collisions" not in walkers.measures
    again = dp.evaluate_forecasts(planner, dataset, futures=5, num_samples=10, windows=30, touch=0.2)
    assert again == report


def test_what_is_asked_is_what_was_known_at_that_step(dataset: dp.TrajectoryDataset) -> None:
    window = next(recorded_windows(dataset, np.array([1])))  # the second present of the first episode
    episode, question = dataset.store[0], window.question
    assert window.spec.names == ("a", "b", "rex") and question.given is None
    np.testing.assert_array_equal(question.observations["b"], episode.observations[3, 1])
    np.testing.assert_array_equal([seen["a"] for seen, _ in question.past], episode.observations[1:3, 0])
    real, there = window.positions(["a", "rex"])
    np.testing.assert_array_equal(real[0], episode.observations[4:9, 0])
    assert there.tolist() == [[True] * 5, [False] * 5] and window.scored(["walker", "dog"]) == ["a", "b"]


def test_windows_in_which_nobody_is_are_left_out(dataset: dp.TrajectoryDataset, tmp_path: Path) -> None:
    episode = dataset.store[0]
    gone = dataclasses.replace(episode, agent_mask=episode.agent_mask & (np.arange(STEPS + 1) < 3)[:, None])
    dp.TrajectoryStore.write(tmp_path, SPEC, "walks", [gone])
    windows = dp.load_dataset(tmp_path, horizon=6, history=2, normalizer=None, inside=True)
    assert len(windows) == 3 and len(list(recorded_windows(windows, np.arange(3)))) == 1


def test_futures_that_are_taught_are_measured_alike(
    dataset: dp.TrajectoryDataset, planner: dp.DiffusionPlanner
) -> None:
    both = [
        dp.evaluate_forecasts(dp.Futures.of(planner, 4, per_agent=alone), dataset, windows=5, futures=300)
        for alone in (False, True)
    ]
    assert set(both[0].measures) - set(both[1].measures) == {"joint_ade", "joint_fde"}


def test_agents_of_flat_and_of_high_places_are_scored_together(tmp_path: Path) -> None:
    widths, rng = {"drone": 3, "walker": 2, "cart": 1}, np.random.default_rng(0)
    roles = {name: dp.Role(3, (), (), position=tuple(range(width))) for name, width in widths.items()}
    spec = dp.JointSpec({name: name for name in widths}, roles)
    nothing, ended = np.zeros((STEPS, 3), np.float32), np.zeros((STEPS, 3), bool)
    places, there = rng.normal(size=(STEPS + 1, 3, 3)).astype(np.float32), np.ones((STEPS + 1, 3), bool)
    walked = dp.Trajectory(spec, places, nothing[..., None][..., :0], nothing, ended, ended, there)
    dp.TrajectoryStore.write(tmp_path, spec, "mixed", [walked, walked])
    windows = dp.load_dataset(tmp_path, horizon=4, inside=True)
    planner = dp.DiffusionPlanner.for_dataset(windows, width=16, depth=1, seed=0)
    options = {"futures": 2, "num_samples": 4, "windows": 3}
    alone = [dp.evaluate_forecasts(planner, windows, roles=[role], **options) for role in widths]
    report = dp.evaluate_forecasts(planner, windows, **options)
    means = np.mean([one.measures["marginal_ade"] for one in alone], axis=0)
    assert report.agents == [3, 3, 3] and report.measures["marginal_ade"] == pytest.approx(means, rel=1e-5)
    with pytest.raises(ValueError, match="touch=0.2, but positions have {'drone': 3, 'walker': 2, 'cart': 1} entries"):
        dp.evaluate_forecasts(planner, windows, touch=0.2)


def test_what_makes_no_sense_is_refused(dataset: dp.TrajectoryDataset, planner: dp.DiffusionPlanner) -> None:
    for options, message in (
        ({"futures": 300}, "futures=300 of num_samples=200"),
        ({"touch": 0.0}, "touch=0.0"),
        ({"roles": ["cat"]}, r"roles=\['cat'\] are not some of those that have a position"),
        ({"roles": "walker"}, "roles='walker' are not"),
        ({"roles": []}, r"roles=\[\] are not"),
        ({"windows": 0}, "windows=0"),
    ):
        with pytest.raises(ValueError, match=message):
            dp.evaluate_forecasts(planner, dataset, **options)
    with pytest.raises(ValueError, match="the planner has horizon=6, history=2, the dataset horizon=5"):
        dp.evaluate_forecasts(planner, dataset.like(horizon=5))
    with pytest.raises(TypeError, match="planner is a JointDenoiser"):
        dp.evaluate_forecasts(planner.denoiser, dataset)


def test_the_command_line_scores_forecasts_under_recorded_actions_or_without(
    crossing_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planner = dp.DiffusionPlanner.for_dataset(dp.load_dataset(crossing_store, horizon=8), width=16, depth=1)
    planner.save_pretrained(tmp_path)
    command = ["forecast", str(tmp_path), str(crossing_store), "--windows", "4", "--futures", "3", "--num-samples", "3"]
    assert main(command) == 0
    assert "joint_ade" in capsys.readouterr().out
    found = []
    for more in ([], ["--no-actions"]):
        assert main([*command, "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["summary"]["joint_ade"].keys() == {"value", "low", "high"}
    episode = dp.TrajectoryStore.open(crossing_store)[0]
    assert found[0]["agents"] == [episode.spec.num_agents] * 4
    assert main([*command, "--windows", "-1"]) == 1 and "--windows -1" in capsys.readouterr().err
