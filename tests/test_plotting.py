"""Pictures show what is in the data: as many lines as there are paths, as many frames as there are steps."""

import collections
import dataclasses
import io
import itertools
import json
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

import diffplan as dp
from diffplan.datasets.collection import collect_episodes, run_episode
from diffplan.envs import behavior_policy, make
from diffplan.envs.scene import AGENT_COLORS
from diffplan.evaluation import Interval
from diffplan.plotting import (
    animate_denoising,
    plot_comparison,
    plot_dataset,
    plot_denoising,
    plot_learning_curve,
    plot_plan,
)
from diffplan.plotting.style import executed_path
from diffplan.value_calibration import Calibration

H = 32


def recorded(spec, observations, actions, **other):
    """Episodes as candidates: [S, H, N, .] from recordings becomes a plan."""
    there = np.ones(spec.num_agents, bool)
    return dp.Plan(spec, observations.swapaxes(1, 2), actions.swapaxes(1, 2), **{"agent_mask": there} | other)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twenty episodes of the two ways round, by experts and others."""
    options = {"num_robots": 4}
    folder = tmp_path_factory.mktemp("data") / "crossing"
    return collect_episodes(
        "crossing-v0", out=folder, episodes=20, skill="replay", workers=0, env_options=options, progress=False
    )


@pytest.fixture(scope="module")
def episodes():
    """Five experts from the same start: what a good planner's candidates look like."""
    env = make("crossing-v0", num_robots=4)
    styles = ("clockwise", "counterclockwise", "clockwise", "counterclockwise", "clockwise")
    return [run_episode(env, behavior_policy("crossing-v0", style=style), env.joint_spec, seed=3) for style in styles]


@pytest.fixture(scope="module")
def plan(episodes):
    observations, actions = (
        np.stack([getattr(one, name)[:H] for one in episodes]) for name in ("observations", "actions")
    )
    cells = np.concatenate([observations, actions], -1).swapaxes(1, 2)
    noise = np.random.default_rng(0).normal(size=cells.shape)
    chain = np.stack([cells + level * noise for level in (1.0, 0.6, 0.2, 0.0)]).astype(np.float32)
    return recorded(episodes[0].spec, observations, actions, values=np.array([1.0, 3, 2, 0, 0]), chain=chain)


@pytest.fixture(scope="module")
def arms():
    """A plan of two agents of different widths that have no position."""
    roles = {"left": dp.Role(3, (-1.0, -1.0), (1.0, 1.0)), "right": dp.Role(20, (-1.0,), (1.0,))}
    spec = dp.JointSpec({"a": "left", "b": "right"}, roles, dt=0.05)
    walk = np.random.default_rng(0).normal(size=(6, H, 2, 22)).cumsum(1).astype(np.float32)
    return recorded(spec, walk[..., :20], walk[..., 20:])


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# Plans


def test_a_plan_shows_every_candidate_of_every_agent(plan):
    axes = plot_plan(plan).axes[0]
    assert len(axes.lines) == plan.num_samples * plan.spec.num_agents
    drawn = {tuple(map(tuple, line.get_xydata())) for line in axes.lines}
    assert drawn == {tuple(map(tuple, path)) for name in plan.spec.names for path in plan.positions(name)}
    assert axes.get_aspect() == 1 and axes.get_xlabel() == "x (m)"


def test_the_strong_line_is_the_candidate_of_highest_value(plan):
    strong = [one for one in plot_plan(plan).axes[0].collections if isinstance(one, LineCollection)]
    for line, name, color in zip(strong, plan.spec.names, AGENT_COLORS, strict=False):
        segments = np.array(line.get_segments())
        assert np.array_equal(segments[:, 0], plan.positions(name)[1, :-1])
        assert np.allclose(line.get_colors()[:, :3], color) and (np.diff(line.get_colors()[:, 3]) < 0).all()
    assert len(strong) == plan.spec.num_agents


def test_agents_that_fly_have_a_chart_of_their_heights_below_the_map():
    role = dp.Role(3, (-1.0,), (1.0,), position=(0, 1, 2))
    spec = dp.JointSpec({"a": "drone", "b": "drone"}, {"drone": role}, dt=0.05)
    walk = np.random.default_rng(0).normal(size=(6, H, 2, 4)).cumsum(1).astype(np.float32)
    plan = recorded(spec, walk[..., :3], walk[..., 3:])
    nothing = np.zeros((19, 2), bool)
    rewards, there = np.zeros((19, 2)), np.ones((20, 2), bool)
    happened = dp.Trajectory(spec, walk[0, :20, :, :3], walk[0, :19, :, 3:], rewards, nothing, nothing, there)
    above, heights = plot_plan(plan, happened).axes
    assert len(above.lines) == 16 and heights.get_ylabel() == "z (m)"  # each: 6 + best, then what was, its end
    drawn = {tuple(line.get_ydata()) for line in heights.lines}
    assert drawn == {tuple(z) for z in walk[..., 2].swapaxes(1, 2).reshape(-1, H)} | {
        tuple(walk[0, :20, agent, 2]) for agent in (0, 1)
    }


def test_what_was_executed_is_dashed_and_goals_are_rings(plan, episodes):
    goals = {name: episodes[0].observations[0, i, 4:6] for i, name in enumerate(plan.spec.names)}
    figure = plot_plan(plan, episodes[2], goals)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert np.array_equal(dashed[0].get_xydata(), episodes[2].observations[: plan.horizon, 0, :2])
    dots = [one for one in figure.axes[0].collections if isinstance(one, PathCollection)]
    rings = [one.get_offsets()[0] for one in dots if not len(one.get_facecolor())]
    assert np.allclose(rings, list(goals.values()))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [*plan.spec.names, "", "now", "best plan", "every 0.5 s", "5 candidates", "what happened", "goal"] == legend


def test_a_candidate_that_nobody_ranked_is_not_called_the_best(plan):
    def told(plan):
        return [text.get_text() for text in plot_plan(plan).legends[0].get_texts()]

    unranked = dataclasses.replace(plan, values=None)
    assert "best plan" in told(plan) and "first plan" in told(unranked) and "plan" in told(unranked.sample(0))


def test_goals_that_agents_see_are_drawn_unless_others_are_given(plan):
    def rings(figure):
        dots = [one for one in figure.axes[0].collections if isinstance(one, PathCollection)]
        return [one.get_offsets()[0] for one in dots if not len(one.get_facecolor())]

    goal = list(plan.spec.role_of("robot_0").goal)
    seen = plan.observations[0, :, 0][:, goal]
    assert np.allclose(rings(plot_plan(plan)), seen) and not rings(plot_plan(plan, goals={}))
    imagined = plan.observations.copy()
    imagined[:, 0, :, goal] += np.random.default_rng(0).normal(size=(len(goal), len(imagined), 1))
    assert np.allclose(rings(plot_plan(dataclasses.replace(plan, observations=imagined))), seen[1:])
    with pytest.raises(ValueError, match=r"goals=\{'robot_0': \(0, 0, 0\)\}; give x and y"):
        plot_plan(plan, goals={"robot_0": (0, 0, 0)})


def test_dots_do_not_hide_what_is_short_beside_the_map(plan):
    def largest(plan):
        dots = [one for one in plot_plan(plan).axes[0].collections if isinstance(one, PathCollection)]
        return max(one.get_sizes()[0] for one in dots if len(one.get_facecolor()))

    far = plan.observations.copy()
    far[:, 0, :, list(plan.spec.role_of("robot_0").position)] += 20
    assert largest(dataclasses.replace(plan, observations=far)) < largest(plan) / 5
    standing = np.repeat(plan.observations[:, :, :1], H, axis=2)
    assert largest(dataclasses.replace(plan, observations=standing)) == largest(plan)


def test_the_time_between_dots_is_not_rounded_away(plan):
    slower = dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, dt=0.125))
    assert "every 0.625 s" in [text.get_text() for text in plot_plan(slower).legends[0].get_texts()]


@pytest.mark.parametrize("count", [4, 30])
def test_the_legend_of_all_agents_is_in_the_picture_and_titles_beside_each_other(plan, count: int):
    spec = dp.JointSpec({f"robot_{i}": "robot" for i in range(count)}, plan.spec.roles, dt=plan.spec.dt)
    sizes = [(plan.num_samples, count, *part.shape[2:]) for part in (plan.observations, plan.actions)]
    cells = [np.resize(part[:, :1], size) for part, size in zip((plan.observations, plan.actions), sizes, strict=True)]
    crowd = dp.Plan(spec, *cells, np.ones(count, bool))
    told = dict.fromkeys(spec.names[:4], "goes straight on")
    for figure in (dp.plot_plan(crowd), dp.plot_what_if(crowd, crowd, told)):
        figure.canvas.draw()
        legend, *_ = figure.legends
        shown, place = {text.get_text() for text in legend.get_texts()}, legend.get_window_extent()
        assert shown > set(spec.names)
        assert 0 <= place.y0 < place.y1 <= figure.bbox.height
        assert all(axes.title.get_window_extent().width < figure.bbox.width / 2 for axes in figure.axes)


def test_obstacles_are_drawn_where_all_candidates_know_them():
    env = make("crossing-v0", num_robots=2, layout="obstacles")
    episode = run_episode(env, behavior_policy("crossing-v0"), env.joint_spec, seed=3)
    plan = recorded(episode.spec, np.stack([episode.observations[:H]] * 2), np.stack([episode.actions[:H]] * 2))
    assert len(dp.plot_plan(plan).axes[0].patches) == 3
    plan.observations[1, :, :, list(episode.spec.role_of("robot_0").obstacles)[:3]] += 0.5
    assert len(dp.plot_plan(plan).axes[0].patches) == 2


@pytest.mark.parametrize(
    ("env_id", "options", "kinds"),
    [
        ("crossing-v0", {"layout": "doorway"}, {"wall": 2}),
        ("transport-v0", {}, {"box": 1, "box's goal": 1, "obstacle": 1}),
        ("mpe:simple_spread_v3", {"N": 4}, {"landmark": 4}),
    ],
)
def test_what_stands_in_a_known_scene_is_drawn_and_named(env_id, options, kinds):
    env = make(env_id, **options)
    seen, _ = env.reset(seed=3)
    now = env.joint_spec.stack_observations(seen)[0]
    there = np.repeat(now[:, None], H, axis=1)
    plan = recorded(
        env.joint_spec, np.stack([there.swapaxes(0, 1)] * 2), np.zeros((2, H, len(now), env.joint_spec.action_size))
    )
    for figure in (dp.plot_plan(plan), dp.plot_what_if(plan, plan, {env.possible_agents[0]: "stays"})):
        axes = figure.axes[0]
        assert collections.Counter(patch.get_label() for patch in axes.patches) == kinds
        assert {text.get_text() for text in figure.legends[0].get_texts()} >= set(kinds)
        low, high = axes.viewLim.get_points()
        assert all(
            (low <= patch.get_extents().transformed(axes.transData.inverted()).min).all() for patch in axes.patches
        )
        assert all(
            (high >= patch.get_extents().transformed(axes.transData.inverted()).max).all() for patch in axes.patches
        )
    if env_id == "transport-v0":
        box = {patch.get_label(): patch for patch in axes.patches}["box"]
        assert np.allclose(box.get_center(), env.box[:2], atol=1e-5)
        assert np.isclose(np.deg2rad(box.get_angle()), env.box[2], atol=1e-5)


def test_a_wall_stands_also_where_most_robots_are_imagined():
    env = make("crossing-v0", layout="doorway")
    seen, _ = env.reset(seed=3)
    there = np.repeat(env.joint_spec.stack_observations(seen)[0][:, None], H, axis=1)
    imagined = np.stack([there, there])
    imagined[1, [0, 1, 3]] += 0.1
    plan = dp.Plan(env.joint_spec, imagined, np.zeros((2, 4, H, 2)), np.ones(4, bool))
    assert [patch.get_label() for patch in dp.plot_plan(plan).axes[0].patches] == ["wall", "wall"]


def rings(axes):
    """Where goals are drawn."""
    dots = [one for one in axes.collections if isinstance(one, PathCollection)]
    return [one.get_offsets()[0].tolist() for one in dots if not len(one.get_facecolor())]


def test_a_plan_given_a_future_shows_goals_also_of_agents_in_space(plan):
    assert len(rings(dp.plot_what_if(plan, plan, {"robot_0": "stays"}).axes[1])) == 4
    spec = dp.JointSpec({"a": "drone"}, {"drone": dp.Role(6, (-1.0,), (1.0,), position=(0, 1, 2), goal=(3, 4, 5))})
    up = dp.Plan(spec, np.tile(np.arange(6.0), (2, 1, 4, 1)), np.zeros((2, 1, 4, 1)), np.ones(1, bool))
    assert rings(dp.plot_plan(up).axes[0]) == [[3, 4]]


def test_absent_agents_are_not_drawn(plan):
    without = dataclasses.replace(plan, agent_mask=np.array([True, False, True, True]))
    figure = plot_plan(without.sample(0))
    assert len(figure.axes[0].lines) == 3
    assert "robot_1" not in [text.get_text() for text in figure.legends[0].get_texts()]
    assert figure.get_suptitle() == "1 joint plan of 3 agents, 3.1 s ahead"


def test_agents_without_a_position_are_drawn_over_time(arms):
    grid = plot_plan(arms).axes
    assert len(grid) == 4
    widths = [3, 2, 20, 1]  # observations and actions of a, then of b: what exists, not what is padded
    assert [len(axes.lines) for axes in grid] == [width * (arms.num_samples + 1) for width in widths]
    assert np.isclose(grid[0].get_xlim()[1], (H - 1) * 0.05)


def test_what_lines_over_time_mean_is_told_and_choices_are_steps():
    chooser, watched = dp.Role(2, (0.0, 0.0), (1.0, 1.0), discrete=True), dp.Role(2, (), ())
    spec = dp.JointSpec({"a": "one"}, {"one": chooser})
    plan = dp.Plan(spec, np.zeros((2, 1, 4, 2)), np.zeros((2, 1, 4, 2)), np.ones(1, bool))
    figure = plot_plan(plan)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first plan", "2 candidates"]
    assert [{line.get_drawstyle() for line in axes.lines} for axes in figure.axes] == [{"default"}, {"steps-post"}]
    spec = dp.JointSpec({"a": "one"}, {"one": watched})
    (alone,) = plot_plan(dp.Plan(spec, np.zeros((2, 1, 4, 2)), np.zeros((2, 1, 4, 0)), np.ones(1, bool))).axes
    assert alone.get_title() == "observations"
    with pytest.raises(ValueError, match="no agents that are there"):
        plot_plan(dataclasses.replace(plan, agent_mask=np.zeros(1, bool)))


def test_a_team_with_and_without_positions_gets_both_pictures(plan):
    roles = {
        "robot": plan.spec.roles["robot"],
        "arm": dataclasses.replace(plan.spec.roles["robot"], position=(), goal=()),
    }
    agents = dict(zip(plan.spec.names, ("robot", "arm", "robot", "robot"), strict=True))
    mixed = dataclasses.replace(plan, spec=dp.JointSpec(agents, roles, dt=0.1))
    above, observations, actions = plot_plan(mixed).axes
    assert len(above.lines) == 3 * plan.num_samples
    assert (observations.get_ylabel(), observations.get_title(), actions.get_title()) == (
        "robot_1",
        "observations",
        "actions",
    )
    # agents' colours mean agents in this picture
    assert not {tuple(line.get_color()) for line in actions.lines} & {*AGENT_COLORS}


def test_plans_and_episodes_of_other_teams_are_refused(plan, arms, episodes):
    with pytest.raises(ValueError, match=r"executed is an episode of agents \['robot_0'.* the plan of \['a', 'b'\]"):
        plot_plan(arms, episodes[0])
    with pytest.raises(ValueError, match=r"goals of agents \['robot_9'\], but the plan is of \['robot_0'"):
        plot_plan(plan, goals={"robot_9": (0, 0)})


# Denoising


def test_denoising_shows_the_first_and_the_last_step(plan):
    figure = plot_denoising(plan, columns=3)
    assert [axes.get_title() for axes in figure.axes] == ["noise", "step 2 of 3", "step 3 of 3"]
    for axes, step in zip(figure.axes, (0, 2, 3), strict=True):
        drawn = np.array([line.get_xydata() for line in axes.lines])
        expected = plan.chain[step].swapaxes(0, 1).reshape(-1, H, 8)[..., :2]
        assert np.array_equal(drawn, expected)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_the_animation_has_a_frame_for_every_step_and_sharpens(plan):
    frames = animate_denoising(plan)
    assert len(frames) == 4 and frames.dtype == np.uint8
    colored = [(frame.max(-1).astype(int) - frame.min(-1) > 20).mean() for frame in frames]
    assert colored == sorted(colored, reverse=True) and colored[0] > 2 * colored[-1]


def test_denoising_needs_a_chain_and_positions(plan, arms):
    with pytest.raises(ValueError, match="return_chain=True"):
        plot_denoising(dataclasses.replace(plan, chain=None))
    chain = np.zeros((2, *arms.observations.shape[:-1], arms.spec.size), np.float32)
    with pytest.raises(ValueError, match=r"no agent of JointSpec.2 agents: a, b.* has a position"):
        animate_denoising(dataclasses.replace(arms, chain=chain))


# Data


def titled(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def test_a_store_is_told_apart_by_its_first_label_of_words(store):
    panels = titled(plot_dataset(store, episodes=2))
    assert list(panels) == ["expert", "medium", "random", "length", "return", "success"]
    assert plot_dataset(store, episodes=2).get_suptitle().endswith(", by skill")
    assert all(len(panels[skill].lines) == 2 * 4 for skill in ("expert", "medium", "random"))
    assert sum(bar.get_height() for bar in panels["length"].patches) == len(store)
    assert [label.get_text() for label in panels["return"].get_yticklabels()] == ["expert", "medium", "random"]


def test_success_rates_are_those_of_the_labels(store):
    panels = titled(plot_dataset(store, by="skill"))
    shown = [line.get_xdata()[0] for line in panels["success"].lines if line.get_marker() == "o"]
    labels = [[one["success"] for one in store.labels if one["skill"] == s] for s in ("expert", "medium", "random")]
    assert np.allclose(shown, [np.mean(values) for values in labels])


def test_agents_that_come_and_go_are_counted(tmp_path):
    role = dp.Role(2, (-1.0,), (1.0,))
    spec = dp.JointSpec({"a": "robot", "b": "robot"}, {"robot": role}, dt=0.5)
    mask = np.array([[True, True], [True, False], [True, False]])
    blank = {"rewards": np.zeros((2, 2), np.float32), "truncations": np.zeros((2, 2), bool)}
    episode = dp.Trajectory(
        spec,
        np.zeros((3, 2, 2), np.float32),
        np.zeros((2, 2, 1), np.float32),
        terminations=~mask[1:],
        agent_mask=mask,
        **blank,
    )
    folder = dp.TrajectoryStore.create(tmp_path / "store", spec)
    folder.append([episode])
    panels = titled(plot_dataset(folder))
    assert list(panels) == ["length", "agents there"], "nobody earned anything"
    assert plot_dataset(folder).get_suptitle() == "1 episode of 2 agents, 1 s"
    assert panels["agents there"].lines[0].get_xydata().tolist() == [[0, 2], [0.5, 1], [1, 1]]


def test_who_just_left_is_not_counted_beside_who_enters(tmp_path):
    spec = dp.JointSpec({"a": "robot", "b": "robot"}, {"robot": dp.Role(2, (-1.0,), (1.0,))}, dt=0.5)
    mask, ends = np.array([[1, 0], [1, 1], [0, 1]], bool), np.array([[1, 0], [0, 0]], bool)
    blank = np.zeros((3, 2, 2), np.float32), np.zeros((2, 2, 1), np.float32), np.zeros((2, 2), np.float32)
    folder = dp.TrajectoryStore.create(tmp_path / "store", spec)
    folder.append([dp.Trajectory(spec, *blank, ends, np.zeros((2, 2), bool), mask)])
    assert titled(plot_dataset(folder))["agents there"].lines[0].get_ydata().tolist() == [1, 1, 1]


def test_a_path_has_a_gap_where_an_agent_was_away(episodes):
    away = episodes[0].agent_mask.copy()
    away[[0, 5, 6, -1], 0] = False
    path = executed_path(dataclasses.replace(episodes[0], agent_mask=away), "robot_0")
    place = list(episodes[0].spec.role_of("robot_0").position)
    assert np.array_equal(np.isnan(path).any(1), ~away[:, 0])
    assert np.array_equal(path[1:5], episodes[0].observations[1:5, 0, place])


def test_a_label_of_its_own_for_every_episode_tells_nothing_apart(episodes, tmp_path):
    folder = dp.TrajectoryStore.create(tmp_path / "store", episodes[0].spec)
    folder.append([dataclasses.replace(one, labels={"who": f"{i} and {i + 1}"}) for i, one in enumerate(episodes)])
    assert "all episodes" in titled(plot_dataset(folder))


def test_episodes_in_which_nobody_is_there_are_drawn_without_paths(tmp_path):
    spec = dp.JointSpec({"a": "robot"}, {"robot": dp.Role(2, (-1.0,), (1.0,), position=(0, 1))})
    flags = np.zeros((2, 1), bool)
    blank = np.zeros((3, 1, 2), np.float32), np.zeros((2, 1, 1), np.float32), np.zeros((2, 1), np.float32)
    folder = dp.TrajectoryStore.create(tmp_path / "store", spec)
    folder.append([dp.Trajectory(spec, *blank, flags, flags, np.zeros((3, 1), bool))])
    panels = titled(plot_dataset(folder))
    assert not panels["all episodes"].lines
    assert panels["agents there"].lines[0].get_ydata().tolist() == [0, 0, 0]


def test_labels_that_do_not_tell_apart_are_refused(store, tmp_path):
    with pytest.raises(ValueError, match=r"has a label 'skil'; choose one of \['skill', 'style'"):
        plot_dataset(store, by="skil")
    with pytest.raises(ValueError, match="label 'seed' has 20 values; choose one of at most 8"):
        plot_dataset(store, by="seed")
    with pytest.raises(ValueError, match="holds no episodes yet; collect some"):
        plot_dataset(dp.TrajectoryStore.create(tmp_path / "empty", store.spec))
    with pytest.raises(TypeError, match=r"store is a str; pass TrajectoryStore\.open"):
        plot_dataset("data")


# Results


def metrics(path, losses):
    path.write_text("".join(json.dumps({"step": 50 * (i + 1), "loss": x}) + "\n" for i, x in enumerate(losses)))
    return path


def test_a_learning_curve_shows_every_logged_loss_and_their_running_mean(tmp_path):
    losses = np.geomspace(1, 0.01, 40)
    folder = metrics(tmp_path / "metrics.jsonl", losses).parent
    raw, smooth = plot_learning_curve(folder).axes[0].lines
    assert np.allclose(raw.get_xydata(), np.stack([50 * np.arange(1, 41), losses], 1))
    assert np.isclose(smooth.get_ydata()[20], losses[18:23].mean()) and np.isclose(
        smooth.get_ydata()[0], losses[:3].mean()
    )


@pytest.mark.parametrize("losses", [[0.17, 0.12, 0.08], [0.9, 0.5, 0.2], [0.93, 1.49, 1.04, 0.95]])
def test_losses_of_less_than_a_decade_can_be_read_off(losses, tmp_path):
    figure = plot_learning_curve(metrics(tmp_path / "metrics.jsonl", losses))
    figure.canvas.draw()
    axis, (low, high) = figure.axes[0].yaxis, figure.axes[0].get_ylim()
    ticks = axis.get_majorticklocs(), axis.get_minorticklocs()
    labels = [*axis.get_majorticklabels(), *axis.get_minorticklabels()]
    named = [tick for tick, label in zip(np.concatenate(ticks), labels, strict=True) if label.get_text()]
    assert sum(low <= tick <= high for tick in named) >= 3


def test_a_single_logged_loss_is_a_dot(tmp_path):
    axes = plot_learning_curve(metrics(tmp_path / "metrics.jsonl", [1.0])).axes[0]
    assert axes.lines[-1].get_marker() == "o"


def test_several_runs_are_named_and_told_apart(tmp_path):
    from diffplan.training_loop import TrainingReport

    report = TrainingReport(steps=[50, 100], losses=[1.0, 0.5], seconds=1.0, metrics=None)
    runs = {"joint": report, "independent": metrics(tmp_path / "other.jsonl", [1.0, 0.7])}
    figure = plot_learning_curve(runs)
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["joint", "independent"]
    assert len({line.get_color() for line in axes.lines}) == 2 and len(axes.lines) == 4


@pytest.mark.parametrize("line", ["nonsense", '{"loss": 1}', '{"step": 1, "loss": "x"}', "[1, 2]", "\x89PNG"])
def test_a_line_that_is_no_metric_is_named(line, tmp_path):
    path = metrics(tmp_path / "metrics.jsonl", [1.0, 0.5])
    path.write_bytes(path.read_bytes() + line.encode("latin-1"))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 3: expected \{\"step\": ..., \"loss\": ...\}, got"):
        plot_learning_curve(path)


def test_empty_metrics_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds no metrics yet"):
        plot_learning_curve(tmp_path)
    with pytest.raises(ValueError, match="no runs to draw"):
        plot_learning_curve({})


def texts_overlap(figure):
    """Whether labels on an axis from left to right run into each other."""
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        shown = [
            label for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True) if low <= at <= high
        ]
        places = [label.get_window_extent() for label in shown]
        if any(left.x1 > right.x0 for left, right in itertools.pairwise(places)):
            return True
    return False


def test_numbers_on_axes_do_not_run_into_each_other():
    small, large = Interval(-0.027, -0.0349, -0.0192), Interval(-20_000, -25_000, -10_000)
    assert not texts_overlap(plot_comparison({"a": {"one": small}, "b": {"one": small}}))
    assert not texts_overlap(plot_comparison({"a": {"one": large}}))
    returns = np.random.default_rng(0).normal(-20_000, 3_000, 200)
    assert not texts_overlap(dp.plot_calibration(Calibration(returns, returns[::-1])))


def test_a_comparison_keeps_the_order_and_shows_the_intervals():
    results = {
        "ours": {"success": Interval(0.98, 0.96, 0.99), "return": Interval(5, 4, 6)},
        "theirs": {"success": Interval(0.15, 0.12, 0.2)},
    }
    success, returns = plot_comparison(results).axes
    assert [label.get_text() for label in success.get_yticklabels()] == ["ours", "theirs"]
    assert success.get_ylim()[0] > success.get_ylim()[1]  # the first on top
    bar, dot, *other = success.lines
    assert bar.get_xydata().tolist() == [[0.96, 0], [0.99, 0]] and dot.get_xydata().tolist() == [[0.98, 0]]
    assert other[1].get_xydata().tolist() == [[0.15, 1]] and len(returns.lines) == 2
    (only,) = plot_comparison({"ours": Interval(1, 0, 2)}).axes
    assert [text.get_text() for text in only.texts] == ["1"]
    with pytest.raises(ValueError, match="nothing to compare"):
        plot_comparison({})


# All of them


def test_the_same_picture_is_saved_twice_identically(plan, tmp_path):
    assert png(plot_plan(plan)) == png(plot_plan(plan))
    plot_plan(plan).savefig(tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_text().count("</svg>") == 1


def test_matplotlibs_settings_are_left_as_they_were(plan):
    before = dict(matplotlib.rcParams)
    png(plot_denoising(plan, columns=1))
    with pytest.raises(ValueError, match="nothing to compare"):
        plot_comparison({})
    assert dict(matplotlib.rcParams) == before


def test_pictures_need_neither_pyplot_nor_torch():
    code = "import sys, diffplan.plotting, diffplan.rollout; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_obstacles_that_agents_see_are_drawn_once_each() -> None:
    role = dp.Role(5, (), (), (0, 1), static=(2, 3, 4), obstacles=(2, 3, 4))
    spec = dp.JointSpec({"a": "robot", "b": "robot"}, {"robot": role})
    observations = np.tile(np.array([0.1, 0.2, 0.5, 0.6, 0.3], np.float32), (1, 2, 4, 1))
    plan = dp.Plan(spec, observations, np.zeros((1, 2, 4, 0), np.float32), np.ones(2, bool))
    (disc,) = dp.plot_plan(plan).axes[0].patches
    assert disc.center == pytest.approx((0.5, 0.6)) and disc.radius == pytest.approx(0.3)
