"""Agents' own frames, crowds, and the windows, normaliser and augmentation made for them."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.augmentation import Augmentation
from diffplan.datasets import Normalizer, TrajectoryDataset, TrajectoryStore
from diffplan.models import JointDenoiser
from diffplan.models.frames import Frames
from diffplan.planners import representatives
from diffplan.questions import QuestionMix
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

HISTORY, HORIZON = 3, 5
W = HISTORY + HORIZON
ONLY_PLAN = QuestionMix(1, 0, 0, 0, 0, 0, 0, 0, independent_levels=0)


def make_denoiser(**options: object) -> JointDenoiser:
    torch.manual_seed(0)
    sizes = {"size": 6, "window": W, "width": 32, "depth": 2, "position": [0, 1], "history": HISTORY}
    denoiser = JointDenoiser(**{**sizes, "velocity": [2, 3], "goal": [4, 5], **options}).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return denoiser


def make_grid(agents: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    known = torch.zeros(2, agents, W, 6, dtype=torch.bool)
    known[:, :, : HISTORY + 1] = True
    level = torch.rand(2, agents, W, generator=generator) * ~known.all(-1)
    clean, noise = torch.randn(2, 2, agents, W, 6, generator=generator).cumsum(3)
    return {"clean": clean, "noise": noise, "level": level, "known": known}


def estimate(denoiser: JointDenoiser, clean: torch.Tensor, noise: torch.Tensor, **grid: torch.Tensor) -> torch.Tensor:
    level, roles = grid["level"][..., None], torch.zeros(clean.shape[1], dtype=torch.long)
    return denoiser(torch.lerp(clean, noise, level), grid["level"], grid["known"], roles, grid.get("mask"))


@pytest.mark.parametrize(
    ("options", "half"), [({}, False), ({"prediction": "velocity"}, False), ({"from_present": True}, False), ({}, True)]
)
def test_what_is_moved_and_turned_as_a_whole_is_estimated_moved_and_turned(options: dict[str, Any], half: bool) -> None:
    denoiser, grid = make_denoiser(**options), make_grid()
    turn = torch.tensor([[math.cos(2), -math.sin(2)], [math.sin(2), math.cos(2)]])
    shift = torch.tensor([5.0, -3.0, 0.0, 0.0, 5.0, -3.0])  # velocities are not moved

    def turned(cells: torch.Tensor) -> torch.Tensor:
        return (cells.reshape(*cells.shape[:-1], 3, 2) @ turn.T).flatten(-2)

    if half:
        shift *= 100  # where bfloat16 knows places to a metre only: frames must be more exact than the network
    moved = {**grid, "clean": turned(grid["clean"]) + shift, "noise": turned(grid["noise"])}
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        here, there = estimate(denoiser, **grid), estimate(denoiser, **moved)
    torch.testing.assert_close(there - shift, turned(here), rtol=0, atol=0.02 if half else 1e-3)


def test_of_a_sample_only_what_is_known_settles_anything() -> None:
    denoiser, grid = make_denoiser(from_present=True), make_grid(2)
    known, sample = grid["known"].clone(), torch.lerp(grid["clean"], grid["noise"], grid["level"][..., None])
    known[:, 0, HISTORY, 1] = known[:, 0, HISTORY, 2] = False  # half of its place, and of its velocity
    other = torch.where(known, sample, sample + 1)
    one, two = (denoiser.settle(noisy, known, torch.zeros(2, dtype=torch.long)) for noisy in (sample, other))
    torch.testing.assert_close(one.context, two.context)
    torch.testing.assert_close(one.carried, two.carried)


def test_at_its_own_pace_an_agent_alone_is_estimated_alike_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffplan.models.frames.SLOWEST", 1e-6)
    denoiser, grid = make_denoiser(pace=True), make_grid(1)
    size, level = 3.0, grid["level"]
    larger = {**grid, "clean": grid["clean"] * size, "level": level * size / (1 - level + level * size)}
    torch.testing.assert_close(estimate(denoiser, **larger), estimate(denoiser, **grid) * size, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="nothing but position"):
        make_denoiser(pace=True, size=7)


def test_an_agent_does_not_mind_who_is_beyond_its_nearest_neighbours() -> None:
    grid = make_grid(4)
    for agent, place in enumerate((0.0, 1.0, 3.0, 6.0)):
        grid["clean"][:, agent, :, :2] += 10 * place
    farther = {**grid, "clean": grid["clean"].clone()}
    farther["clean"][:, 3, :, :2] += 7
    few, all_of_them = make_denoiser(neighbours=1, depth=1), make_denoiser(depth=1)
    change = (estimate(few, **farther) - estimate(few, **grid)).abs().amax((0, 2, 3))
    assert change[:2].max() < 1e-5 < change[3]
    assert (estimate(all_of_them, **farther) - estimate(all_of_them, **grid)).abs()[:, 0].max() > 1e-3


def test_absent_agents_do_not_change_an_estimate() -> None:
    denoiser, grid = make_denoiser(neighbours=2), make_grid(3)
    padded = {name: torch.cat((value, torch.zeros_like(value[:, :2])), dim=1) for name, value in grid.items()}
    padded["mask"] = torch.arange(5).expand(2, 5)[..., None].expand(2, 5, W) < 3
    torch.testing.assert_close(estimate(denoiser, **padded)[:, :3], estimate(denoiser, **grid), rtol=1e-4, atol=1e-4)


def test_an_agent_may_be_alone_also_beside_places_that_nobody_takes() -> None:
    denoiser, grid = make_denoiser(neighbours=4), make_grid(1)
    alone = estimate(denoiser, **grid)
    assert alone.isfinite().all()
    padded = {
        name: torch.cat((value, torch.zeros_like(value).expand(-1, 4, *value.shape[2:])), dim=1)
        for name, value in grid.items()
    }
    padded["mask"] = torch.arange(5).expand(2, 5)[..., None].expand(2, 5, W) < 1
    torch.testing.assert_close(estimate(denoiser, **padded)[:, :1], alone, rtol=1e-4, atol=1e-4)


def test_an_agent_that_was_never_seen_is_estimated_on_the_map() -> None:
    grid = make_grid()
    grid["known"][:, 0] = False
    assert estimate(make_denoiser(), **grid).isfinite().all()


def test_frames_lie_at_the_last_known_position_along_the_last_move() -> None:
    positions = torch.tensor([[0.0, 0.0], [9.0, 9.0], [2.0, 2.0], [0.0, 0.0]]).reshape(1, 1, 4, 2)
    known = torch.tensor([True, False, True, False]).reshape(1, 1, 4)
    frames = Frames.of(positions, known, history=2)
    torch.testing.assert_close(frames.origin[0, 0], torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(frames.straight[0, 0, 3], torch.tensor([3.0, 3.0]))  # two steps from 0 to 2
    torch.testing.assert_close(frames.enter(positions, (~known).float())[0, 0, 0], torch.tensor([-math.sqrt(8), 0.0]))
    torch.testing.assert_close(frames.leave(torch.zeros(1, 1, 4, 2))[0, 0, 3], torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": [0, 0], "velocity": [], "goal": []}, "position"),
        ({"position": []}, "need position"),
        ({"goal": [4, 9]}, "goal"),
        ({"history": W}, "history"),
        ({"neighbours": -1}, "neighbours"),
    ],
)
def test_entries_that_are_no_pair_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_denoiser(**options)


ROLE = Role(2, (), (), position=(0, 1))


def walkers(
    folder: Path, crowds: list[int], length: int = W, agents: int = 6, turns: float | None = None
) -> TrajectoryStore:
    """Walkers that turn left by 0.3 a step, or each by its own (of this standard deviation), from the present on."""
    spec = JointSpec({f"walker_{i}": "walker" for i in range(agents)}, {"walker": ROLE}, dt=0.4)
    rng, episodes = np.random.default_rng(0), []
    for number in crowds:
        turn = 0.3 if turns is None else rng.normal(0, turns, agents)
        angle = rng.uniform(0, 2 * np.pi, agents) + np.maximum(0, np.arange(length) - HISTORY)[:, None] * turn
        steps = np.stack((np.cos(angle), np.sin(angle)), -1)
        paths = rng.normal(size=(agents, 2)) * 20 + steps.cumsum(0)
        mask = np.tile(np.arange(agents) < number, (length, 1))
        nothing = np.zeros((length - 1, agents))
        observations = (paths * mask[..., None]).astype(np.float32)
        actions, done = nothing[..., None][..., :0].astype(np.float32), nothing.astype(bool)
        episodes.append(Trajectory(spec, observations, actions, nothing.astype(np.float32), done, done, mask))
    return TrajectoryStore.write(folder / "walkers", spec, "walkers that turn left", episodes)


def test_the_motion_normalizer_has_no_direction_and_the_size_of_what_is_unforeseen(tmp_path: Path) -> None:
    store = walkers(tmp_path, [6] * 20)
    config = Normalizer.fit(store, "motion", horizon=HORIZON).config
    assert config.scale[0][0] == config.scale[0][1]
    assert 0.3 < config.scale[0][0] < 3  # of walkers that are some 20 apart
    with pytest.raises(ValueError, match="give a horizon"):
        Normalizer.fit(store, "motion")


def test_windows_inside_hold_whole_episodes_only(tmp_path: Path) -> None:
    store = walkers(tmp_path, [2, 3], length=W + 2)
    dataset = TrajectoryDataset(store, HORIZON, HISTORY, inside=True)
    batch = dataset.batch(np.arange(len(dataset)))
    assert len(dataset) == 2 * 3 and batch.step.tolist() == [3, 4, 5] * 2
    assert (batch.mask.all((2, 3)) == batch.agent_mask).all()
    with pytest.raises(ValueError, match="as long as a window"):
        TrajectoryDataset(store, 20, HISTORY, inside=True)


def test_a_crowd_is_an_agent_and_those_nearest_to_it(tmp_path: Path) -> None:
    store = walkers(tmp_path, [6] * 8 + [2] * 8)
    dataset = TrajectoryDataset(store, HORIZON, HISTORY, inside=True, crowd=3)
    rng, widths = np.random.default_rng(0), set()
    for _ in range(20):
        batch = dataset.sample(4, rng)
        widths.add(batch.cells.shape[1])
        for cells, mask, episode in zip(batch.cells, batch.agent_mask, batch.episode, strict=True):
            shown, everyone = cells[mask, HISTORY], store[int(episode)].observations[HISTORY]
            apart = np.linalg.norm(everyone[store[int(episode)].agent_mask[0]] - shown[0], axis=-1)
            expected = np.sort(apart)[: len(shown)]
            np.testing.assert_allclose(np.linalg.norm(shown - shown[0], axis=-1), expected, rtol=1e-5, atol=1e-4)
    assert widths == {2, 3}  # windows of similar crowds come together
    with pytest.raises(ValueError, match="crowd=0"):
        TrajectoryDataset(store, HORIZON, HISTORY, crowd=0)


def test_jitter_is_of_past_positions_in_every_second_window_and_not_always_as_large() -> None:
    spec = JointSpec({"a": "walker", "b": "cyclist"}, {"walker": ROLE, "cyclist": ROLE}, dt=0.4)
    cells = torch.zeros(4_000, 2, W, 2)
    changed = Augmentation(jitter=0.5)(cells, spec, HISTORY, torch.Generator().manual_seed(0))
    stds = changed[:, :, : HISTORY + 1].flatten(1).std(1)
    measured_worse = stds > 0
    assert (changed[:, :, HISTORY + 1 :] == 0).all() and (changed[measured_worse, :, HISTORY] != 0).all()
    assert measured_worse.float().mean() == pytest.approx(0.5, abs=0.03)
    assert 0.4 < stds.max() < 1  # u^2 is 1/4 in the middle:
    assert stds[measured_worse].median() == pytest.approx(0.125, rel=0.15)
    with pytest.raises(ValueError, match="jitter=-1"):
        Augmentation(jitter=-1)


def test_augmented_windows_keep_distances_up_to_their_scale() -> None:
    spec = JointSpec({"a": "walker", "b": "cyclist"}, {"walker": ROLE, "cyclist": ROLE}, dt=0.4)
    cells = torch.randn(64, 2, W, 2, generator=torch.Generator().manual_seed(0))
    changed = Augmentation(turn=True, mirror=True, scale=1.5)(cells, spec, 0, torch.Generator().manual_seed(0))
    ratio = (changed[:, 0] - changed[:, 1]).norm(dim=-1) / (cells[:, 0] - cells[:, 1]).norm(dim=-1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)
    assert 1 / 1.5 <= ratio.min() < 0.8 and 1.2 < ratio.max() <= 1.51

    def handedness(grid: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(grid[:, :, 0]).sign()

    flipped = handedness(changed) != handedness(cells)
    assert 0.2 < flipped.float().mean() < 0.8
    with pytest.raises(ValueError, match="motion"):
        Augmentation(mirror=True).check(spec, "gaussian")
    robot = Role(2, (-1.0, -1.0), (1.0, 1.0), position=(0, 1))
    with pytest.raises(ValueError, match=r"roles \['robot'\] have actions"):
        Augmentation(mirror=True).check(JointSpec({"a": "robot"}, {"robot": robot}, dt=0.4), "motion")


def test_a_run_on_mirrored_windows_is_not_resumed_without_mirrors(tmp_path: Path) -> None:
    dataset = dp.load_dataset(walkers(tmp_path, [2]).path, HORIZON, HISTORY, normalizer="motion", inside=True)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, frames=True)
    run = {"steps": 2, "batch_size": 2, "checkpoint_every": 1, "progress": False, "out": tmp_path / "run"}
    dp.train(planner, dataset, **run, augmentation=Augmentation(mirror=True))
    with pytest.raises(ValueError, match="is of another run: {'augmentation'"):
        dp.train(planner, dataset, **run, resume=True)


def test_a_planner_with_frames_learns_to_turn_left_anywhere_in_crowds_of_any_size(tmp_path: Path) -> None:
    store = walkers(tmp_path, [1, 2, 3, 4] * 16)
    dataset = dp.load_dataset(store.path, HORIZON, HISTORY, normalizer="motion", inside=True, crowd=3)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=32, depth=1, frames=True, neighbours=2)
    dp.train(planner, dataset, steps=150, batch_size=32, mix=ONLY_PLAN, start_share=0, progress=False)
    planner.save_pretrained(tmp_path / "planner")
    loaded = dp.DiffusionPlanner.from_pretrained(tmp_path / "planner")
    names = [f"walker_{i}" for i in range(9)]
    crowd = loaded.for_agents(JointSpec(dict.fromkeys(names, "walker"), {"walker": ROLE}, dt=0.4))
    start = {name: np.array([1_000.0 + 5 * i, -500.0], np.float32) for i, name in enumerate(names)}
    east, nothing = np.array([1.0, 0.0], np.float32), dict.fromkeys(names, np.zeros(0, np.float32))
    past = [({name: place + step * east for name, place in start.items()}, nothing) for step in range(-HISTORY, 0)]
    plan = crowd(start, past=past, num_samples=2)
    angle = np.arange(1, HORIZON) * 0.3
    expected = np.stack((np.cos(angle), np.sin(angle)), -1).cumsum(0)
    for name, place in start.items():
        off = np.linalg.norm(plan.positions(name)[:, 1:] - place - expected, axis=-1)
        assert off.max() < 0.5 * np.linalg.norm(expected - np.arange(1, HORIZON)[:, None] * east, axis=-1).max()


@pytest.mark.parametrize("resample", [False, True])
def test_a_guide_moves_plans_of_agents_in_their_own_frames(tmp_path: Path, resample: bool) -> None:
    store = walkers(tmp_path, [2] * 64, agents=2, turns=0.3)
    dataset = dp.load_dataset(store.path, HORIZON, HISTORY, normalizer="motion", inside=True)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=32, depth=1, frames=True)
    dp.train(planner, dataset, steps=200, batch_size=32, mix=ONLY_PLAN, start_share=0, progress=False)
    start = {name: np.array([1_000.0 + 5 * i, -500.0]) for i, name in enumerate(store.spec.names)}
    east, nothing = np.array([1.0, 0.0]), dict.fromkeys(start, np.zeros(0, np.float32))
    past = [({name: place + step * east for name, place in start.items()}, nothing) for step in range(-HISTORY, 0)]
    left = dp.GoalGuide({"walker_0": start["walker_0"] + (HORIZON - 2, 3)}, tolerance=0.5)  # far from all data
    free = planner(start, past=past, num_samples=32)
    guided = planner(start, past=past, num_samples=32, guides=[left], resample=resample)
    side = [(one.positions("walker_0")[:, -1] - start["walker_0"])[:, 1] for one in (free, guided)]
    assert abs(side[0].mean()) < 0.7 and side[1].mean() > 1.3


def test_frames_need_a_position_and_the_normalizer_made_for_them(tmp_path: Path) -> None:
    store = walkers(tmp_path, [2])
    dataset = dp.load_dataset(store.path, HORIZON, HISTORY, normalizer="gaussian")
    with pytest.raises(ValueError, match="normalizer='motion'"):
        dp.DiffusionPlanner.for_dataset(dataset, frames=True)


def test_representatives_stand_for_all_samples_the_commonest_future_first() -> None:
    spec = JointSpec({"a": "walker", "b": "walker", "absent": "walker"}, {"walker": ROLE}, dt=0.4)
    rng, left = np.random.default_rng(0), np.arange(60) < 45  # three of four go left, and the other then goes right
    ways = np.where(left, -1.0, 1.0)[:, None, None]
    time = np.arange(4) / 3
    cells = np.zeros((60, 3, 4, 2), np.float32)
    cells[:, :2, :, 0] = ways * np.array([1.0, -1.0])[:, None] * time + rng.normal(size=(60, 2, 1)) * 0.05
    plan = dp.Plan(spec, cells, cells[..., :0], np.array([True, True, False]))
    few = representatives(plan, 2)
    assert few.num_samples == 2 and few.values is not None
    np.testing.assert_allclose(np.exp(few.values), [0.75, 0.25])
    np.testing.assert_allclose(few.observations[:, :2, -1, 0], [[-1, 1], [1, -1]], atol=0.05)
    np.testing.assert_allclose(few.observations[0], cells[left].mean(0), atol=1e-5)
    alone = representatives(plan, 2, per_agent=True)
    np.testing.assert_allclose(alone.observations[0, :2, -1, 0], [-1, 1], atol=0.05)  # each one's commonest
    assert alone.values is None
    with pytest.raises(ValueError, match="count=61"):
        representatives(plan, 61)


@pytest.mark.parametrize("samples", [6, 200], ids=["fewer than components", "many"])
def test_representatives_weighted_by_their_shares_have_the_samples_mean(samples: int) -> None:
    spec = JointSpec({"a": "walker", "b": "walker"}, {"walker": ROLE}, dt=0.4)
    cells = np.random.default_rng(0).normal(3, 1, size=(samples, 2, 6, 2)).cumsum(2).astype(np.float32)
    few = representatives(dp.Plan(spec, cells, cells[..., :0], np.ones(2, bool)), 4)
    assert few.values is not None
    np.testing.assert_allclose(np.tensordot(np.exp(few.values), few.observations, 1), cells.mean(0), rtol=1e-4)


def test_representatives_tell_the_truth_better_than_clusters_of_all_that_a_few_samples_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = JointSpec({"a": "walker"}, {"walker": ROLE}, dt=0.4)
    rng, steps = np.random.default_rng(0), 20

    def walks(number: int) -> np.ndarray:  # they differ in one direction, all else is chance
        turn = rng.normal(size=(number, 1, 1, 1)) * np.arange(steps)[:, None] * np.array([0.0, 1.0])
        return (turn + rng.normal(size=(number, 1, steps, 2))).astype(np.float32)

    def error() -> float:
        few = representatives(plan, 10).observations
        return float(np.linalg.norm(few[:, None] - real, axis=-1).mean((2, 3)).min(0).mean())

    cells, real = walks(50), walks(200)
    plan = dp.Plan(spec, cells, cells[..., :0], np.ones(1, bool))
    ours = error()
    monkeypatch.setattr(sys.modules["diffplan.planners.representatives"], "COMPONENTS", 10**9)
    assert ours < 0.99 * error()


def test_representatives_are_as_many_as_asked_for_even_of_equal_samples() -> None:
    spec = JointSpec({"a": "walker"}, {"walker": ROLE}, dt=0.4)
    plan = dp.Plan(spec, np.ones((5, 1, 4, 2), np.float32), np.zeros((5, 1, 4, 0), np.float32), np.array([True]))
    few = representatives(plan, 3)
    np.testing.assert_array_equal(few.observations, np.ones((3, 1, 4, 2)))


def test_guides_have_a_gradient_where_two_agents_meet() -> None:
    denoiser, grid = make_denoiser(), make_grid(2)
    grid["clean"][:, 1], grid["noise"][:, 1] = grid["clean"][:, 0], grid["noise"][:, 0]
    grid["level"][:, 1] = grid["level"][:, 0]
    clean = grid.pop("clean").requires_grad_()
    estimate(denoiser, clean, **grid).square().sum().backward()
    assert clean.grad is not None and clean.grad.isfinite().all() and clean.grad.abs().max() > 0


def crossing_paths(offset: float) -> dp.Plan:
    """Two walkers who swap places, 1 m a step, ``offset`` beside each other."""
    spec = JointSpec({"a": "walker", "b": "walker"}, {"walker": ROLE}, dt=0.4)
    along = np.arange(4, dtype=np.float32)
    there = np.stack((along, np.zeros(4)), -1)
    back = np.stack((2.5 - along, np.full(4, offset)), -1)
    return dp.Plan(
        spec, np.stack((there, back))[None].astype(np.float32), np.zeros((1, 2, 4, 0), np.float32), np.ones(2, bool)
    )


def closest(plan: dp.Plan) -> float:
    """The least distance between both, also between steps."""
    apart = np.diff(plan.observations[0], axis=0)[0]
    shares = np.linspace(0, 1, 101)[:, None, None]
    return float(np.linalg.norm(apart[:-1] + shares * np.diff(apart, axis=0), axis=-1).min())


def test_projected_futures_pass_each_other_and_move_no_farther_than_that_takes() -> None:
    plan = crossing_paths(0.1)
    assert closest(plan) == pytest.approx(0.1, abs=1e-3)  # between two steps, at which they are 0.5 m apart
    same = dp.projected(plan, dp.ConstraintGuide.separation(0.3))
    np.testing.assert_array_equal(same.observations, plan.observations)
    clear = dp.projected(plan, dp.ConstraintGuide.separation(0.3, between_steps=True))
    assert closest(clear) == pytest.approx(0.3, abs=2e-3)
    moved = np.linalg.norm(clear.observations - plan.observations, axis=-1)[0]
    assert (moved[:, 0] == 0).all()
    assert 0.1 < moved.max() < 0.25


def test_who_touches_now_drives_nobody_else_away() -> None:
    """What is now cannot be undone, so others move only as far as they must."""
    spec = JointSpec(dict.fromkeys("abcd", "walker"), {"walker": ROLE}, dt=0.4)
    cells = np.zeros((1, 4, 3, 2), np.float32)
    cells[0, 0, 1:, 0], cells[0, 1, 0, 0], cells[0, 1, 1:, 0] = -2, 0.1, 2  # a and b touch now and part
    cells[0, 2] += 10
    cells[0, 3] = cells[0, 2] + [0, 0.24]
    plan = dp.Plan(spec, cells, np.zeros((1, 4, 3, 0), np.float32), np.ones(4, bool))
    moved = dp.projected(plan, dp.ConstraintGuide.separation(0.25)).observations - cells
    assert np.abs(moved[0, :2]).max() == 0
    assert np.linalg.norm(moved[0, 2:, 1:], axis=-1) == pytest.approx(0.005, abs=5e-4)


def test_actions_are_limited_from_the_first_one_on() -> None:
    spec = JointSpec({"a": "car"}, {"car": dp.Role(2, (-1.0,), (1.0,))})
    actions = np.array([1.2, 0.3, -0.9], np.float32).reshape(1, 1, 3, 1)
    plan = dp.Plan(spec, np.ones((1, 1, 3, 2), np.float32), actions, np.ones(1, bool))
    limit = dp.ConstraintGuide(lambda plan: (plan.actions.abs() - 0.5).relu().square().sum((2, 3, 4)))
    moved = dp.projected(plan, limit)
    assert moved.actions.ravel() == pytest.approx([0.5, 0.3, -0.5], abs=1e-3)
    np.testing.assert_array_equal(moved.observations, plan.observations)


def test_a_rule_may_be_for_agents_of_one_width_alone() -> None:
    widths = {"left": 2, "drone": 3, "right": 2}
    roles = {name: dp.Role(3, (), (), position=tuple(range(width))) for name, width in widths.items()}
    spec = JointSpec({name: name for name in widths}, roles)
    places = np.zeros((1, 3, 4, 3), np.float32)
    places[0, 2, :, 0] = 0.05  # all three are too close to each other
    plan = dp.Plan(spec, places, np.zeros((1, 3, 4, 0), np.float32), np.ones(3, bool))
    apart = dp.ConstraintGuide.separation(0.2)
    with pytest.raises(ValueError, match=r"'drone': 3, 'right': 2} entries.*choose some by guide.among"):
        dp.projected(plan, apart)
    moved = dp.projected(plan, apart.among(["left", "right"])).observations
    np.testing.assert_array_equal(moved[0, 1], places[0, 1])
    assert np.linalg.norm(moved[0, 0] - moved[0, 2], axis=-1)[1:] == pytest.approx(0.2, abs=0.005)
    with pytest.raises(ValueError, match=r"agents \['cart'\] are not in the team; it has \['left', 'drone'"):
        dp.projected(plan, apart.among(["cart"]))
    for nobody in ([], "left"):
        with pytest.raises(ValueError, match="; give a list of the names of those who shall obey"):
            apart.among(nobody)


def test_who_sees_no_obstacles_need_not_keep_clear_of_them() -> None:
    seeing = dp.Role(5, (), (), position=(0, 1), obstacles=(2, 3, 4), radius=0.1)
    spec = JointSpec({"robot": "robot", "drone": "drone"}, {"robot": seeing, "drone": dp.Role(5, (), ())})
    cells = np.zeros((1, 2, 3, 5), np.float32)
    cells[..., 0], cells[0, 0, :, 4] = 0.3, 0.1  # an obstacle of 0.1 m at the origin, 0.1 m from the robot's body
    plan = dp.Plan(spec, cells, np.zeros((1, 2, 3, 0), np.float32), np.ones(2, bool))
    clear = dp.ConstraintGuide.clearance(0.15)
    with pytest.raises(ValueError, match=r"roles \['drone'\] do not say where"):
        dp.projected(plan, clear)
    moved = dp.projected(plan, clear.among(["robot"])).observations
    assert moved[0, 0, 1:, 0] == pytest.approx(0.35, abs=0.005)
    np.testing.assert_array_equal(moved[0, 1], cells[0, 1])


def test_plans_that_are_too_fast_are_slowed_at_all_steps() -> None:
    """What changes one step's speed changes its neighbours': one must see the whole way at once."""
    spec = JointSpec({"a": "walker"}, {"walker": ROLE}, dt=0.1)
    cells = np.zeros((1, 1, 24, 2), np.float32)
    cells[..., 0] = 0.15 * np.arange(24)  # 1.5 m/s
    plan = dp.Plan(spec, cells, np.zeros((1, 1, 24, 0), np.float32), np.ones(1, bool))
    moved = dp.projected(plan, dp.ConstraintGuide.speed(1.0)).observations
    assert np.linalg.norm(np.diff(moved, axis=2), axis=-1).max() / 0.1 == pytest.approx(1.0, abs=1e-3)


def test_what_cannot_be_projected_is_refused() -> None:
    strange = dp.ConstraintGuide(lambda estimate: estimate.normalized.sum((2, 3, 4)), name="strange")
    with pytest.raises(
        ValueError, match="constraint 'strange' has violation nan of this plan; give one that is finite"
    ):
        dp.projected(crossing_paths(0.1), strange)
    with pytest.raises(TypeError, match=r"constraint=0.3; give a ConstraintGuide"):
        dp.projected(crossing_paths(0.1), 0.3)
