"""What robots may be told to do, forecasts under given actions, and their pictures and commands."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.cli import main
from diffplan.planners.intentions import stay, straight
from diffplan.plotting import plot_what_if


@pytest.fixture(scope="module")
def env():
    return dp.make("crossing-v0", num_robots=2)


@pytest.fixture(scope="module")
def run(crossing_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = dp.load_dataset(crossing_store, horizon=8)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    dp.train(planner, dataset, steps=20, batch_size=16, progress=False)
    folder = tmp_path_factory.mktemp("runs") / "crossing"
    planner.save_pretrained(folder)
    return folder


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_straight_is_a_line_to_the_goal_from_rest_to_rest(env):
    observations, _ = env.reset(seed=0)
    cells = straight(env.joint_spec, "robot_1", observations, horizon=32)
    path, velocity = cells.observations[1, 1:, :2], cells.observations[1, 1:, 2:4]
    start, goal = observations["robot_1"][:2], observations["robot_1"][4:6]
    along = (goal - start) / np.linalg.norm(goal - start)
    assert np.allclose(np.cross(np.append(along, 0), np.pad(path - start, ((0, 0), (0, 1))))[:, 2], 0, atol=1e-5)
    assert np.allclose(path[-1], goal, atol=1e-5) and (np.diff(path @ along) > 0).all()
    assert np.linalg.norm(velocity, axis=1).max() < 1 and np.linalg.norm(velocity[-1]) < 0.1
    assert np.isnan(cells.observations[0]).all() and np.isnan(cells.actions).all()
    assert np.isnan(cells.observations[1, 0]).all()  # the present is what is seen of it


def test_who_stays_is_at_rest_where_it_is(env):
    observations, _ = env.reset(seed=0)
    cells = stay(env.joint_spec, "robot_0", observations, horizon=8)
    expected = np.concatenate([observations["robot_0"][:2], [0, 0], observations["robot_0"][4:]])
    assert np.allclose(cells.observations[0, 1:], expected)


def test_what_cannot_be_told_is_named(env):
    observations, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="'robot_9' is not there"):
        stay(env.joint_spec, "robot_9", observations, 8)
    blind = dp.JointSpec({"a": "arm"}, {"arm": dp.Role(2, (-1.0,), (1.0,), position=(0, 1))})
    with pytest.raises(ValueError, match="does not say where its goal is"):
        straight(blind, "a", {"a": np.zeros(2)}, 8)
    with pytest.raises(ValueError, match="no position"):
        stay(dp.JointSpec({"a": "arm"}, {"arm": dp.Role(2, (-1.0,), (1.0,))}), "a", {"a": np.zeros(2)}, 8)


def test_a_robot_that_is_told_does_so_in_the_plan_and_both_plans_are_drawn(run, env, tmp_path, capsys):
    picture, file = tmp_path / "what_if.png", tmp_path / "plan.safetensors"
    answer(capsys, "plan", run, "--given", "robot_0=straight", "--plot", picture, "--out", file, "--seed", 3)
    plan, (observations, _) = dp.Plan.load(file), env.reset(seed=3)
    goal = observations["robot_0"][4:6]
    assert np.allclose(plan.positions("robot_0")[:, -1], goal, atol=1e-4) and picture.stat().st_size > 10_000
    told = answer(capsys, "plan", run, "--given", f"robot_1={file}", "--out", tmp_path / "b.safetensors", "--seed", 3)
    again = dp.Plan.load(tmp_path / "b.safetensors")
    assert np.allclose(again.actions[:, 1], plan.best().actions[:, 1], atol=1e-4) and "Plan" in told["plan"]


def test_a_forecast_has_the_actions_of_a_plan_or_of_an_episode(run, crossing_store, tmp_path, capsys):
    first, second = tmp_path / "plan.safetensors", tmp_path / "forecast.safetensors"
    answer(capsys, "plan", run, "--out", first)
    answer(capsys, "plan", run, "--forecast", first, "--out", second)
    plan, forecast = dp.Plan.load(first), dp.Plan.load(second)
    assert np.allclose(forecast.actions, plan.best().actions, atol=1e-4)
    assert np.allclose(forecast.observations[:, :, 0], plan.observations[:1, :, 0], atol=1e-4)
    few = ("plan", run, "--num-samples", 12, "--out", tmp_path / "few.safetensors", "--representatives")
    answer(capsys, *few, 3)
    plan = dp.Plan.load(tmp_path / "few.safetensors")
    assert plan.num_samples == 3 and np.exp(plan.values).sum() == pytest.approx(1)
    assert main([*map(str, few), "13"]) == 1
    assert "--representatives 13 of --num-samples 12" in capsys.readouterr().err
    assert main([*map(str, few), "3", "--guide", "rank=1"]) == 1
    assert "--guide rank ranks candidates, of which --representatives makes means" in capsys.readouterr().err
    picture = tmp_path / "forecast.png"
    answer(capsys, "plan", run, "--forecast", f"{crossing_store}:2", "--out", second, "--plot", picture)
    episode = dp.TrajectoryStore.open(crossing_store)[2]
    assert np.allclose(dp.Plan.load(second).actions[0], episode.actions[:8].swapaxes(0, 1), atol=1e-4)
    assert picture.stat().st_size > 10_000


def test_a_forecast_begins_at_any_step_knows_what_was_before_and_needs_no_environment(crossing_store, tmp_path, capsys):
    episode, found = dp.TrajectoryStore.open(crossing_store)[2], {}
    for history in (0, 4):
        planner = dp.DiffusionPlanner.for_dataset(dp.load_dataset(crossing_store, horizon=8, history=history), width=16)
        torch.nn.init.normal_(planner.denoiser.project.weight, std=0.1)
        torch.nn.init.normal_(planner.denoiser.embed_sample.weight, std=0.1)
        planner.spec = dataclasses.replace(planner.spec, env_id=None)
        planner.save_pretrained(tmp_path / f"{history}")
        for at in ("@6", ""):
            out = tmp_path / "forecast.safetensors"
            answer(capsys, "plan", tmp_path / f"{history}", "--forecast", f"{crossing_store}:2{at}", "--out", out)
            found[history, at] = dp.Plan.load(out)
    for (history, at), plan in found.items():
        step = 6 if at else history
        assert np.allclose(plan.observations[0, :, 0], episode.observations[step], atol=1e-4)
        assert np.allclose(plan.actions[0], episode.actions[step : step + 8].swapaxes(0, 1), atol=1e-4)
    names, rows = episode.spec.names, zip(episode.observations[2:6], episode.actions[2:6], strict=True)
    past = [tuple(dict(zip(names, one, strict=True)) for one in row) for row in rows]
    now = dict(zip(names, episode.observations[6], strict=True))
    cells = dp.Cells.unknown(episode.spec, 8)
    cells.actions[:] = episode.actions[6:14].swapaxes(0, 1)
    expected = planner(now, past=past, given=cells, num_samples=16)
    assert np.allclose(found[4, "@6"].observations, expected.observations, atol=1e-4)
    away = episode.agent_mask.copy()
    away[4:7] = False
    dp.TrajectoryStore.write(tmp_path / "gap", episode.spec, "a test", [dataclasses.replace(episode, agent_mask=away)])
    answer(capsys, "plan", tmp_path / "4", "--forecast", f"{tmp_path / 'gap'}:0", "--out", out)
    assert np.allclose(dp.Plan.load(out).observations[0, :, 0], episode.observations[7], atol=1e-4)
    with pytest.raises(AssertionError):
        answer(capsys, "plan", tmp_path / "4", "--forecast", f"{crossing_store}:2@999")
    assert "the episode has the steps 0 to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--given", "robot_7=stay"), "is not ROBOT=straight, ROBOT=stay or ROBOT=FILE; the robots are"),
        (("--given", "robot_0"), "is not ROBOT=straight"),
        (("--given", "robot_0=nowhere.safetensors"), "nowhere.safetensors"),
        (("--forecast", "nowhere:3"), "nowhere"),
        (("--given", "robot_0=stay", "--forecast", "x"), "leave --given, --env and --option out"),
    ],
)
def test_what_makes_no_sense_is_one_line(run, words, message, capsys):
    assert main(["plan", str(run), *words]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_picture_shows_both_plans_and_who_was_told(env):
    observations, _ = env.reset(seed=0)
    grid = np.stack(
        [straight(env.joint_spec, name, observations, 8).observations[i] for i, name in enumerate(env.agents)]
    )
    grid[:, 0] = list(observations.values())
    plan = dp.Plan(env.joint_spec, grid[None].repeat(3, 0), np.zeros((3, 2, 8, 2), np.float32), np.ones(2, bool))
    figure = plot_what_if(plan, plan, {"robot_0": "goes straight"})
    free, given = figure.axes
    assert [len(axes.lines) for axes in (free, given)] == [6, 8]
    assert "robot_0 goes straight" in given.get_title() and free.get_xlim() == given.get_xlim()
    cart = dataclasses.replace(plan.spec.roles["robot"], position=(0,), goal=())
    spec = dp.JointSpec({"robot_0": "robot", "robot_1": "cart"}, {"robot": plan.spec.roles["robot"], "cart": cart})
    figure = plot_what_if(*[dataclasses.replace(plan, spec=spec)] * 2, {"robot_1": "stays"})
    assert figure.axes[1].get_title() == "robot_1 stays"
    assert "told" not in [text.get_text() for text in figure.legends[0].get_texts()]
    with pytest.raises(ValueError, match="name agents among"):
        plot_what_if(plan, plan, {"nobody": "stays"})
    alone = dp.Plan(plan.spec, plan.observations, plan.actions, np.array([True, False]))
    with pytest.raises(ValueError, match="must be of the same"):
        plot_what_if(alone, plan, {"robot_0": "stays"})
