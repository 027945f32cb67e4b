"""A filmed episode is the one that evaluation runs; a video holds every frame; the old file survives a failure."""

import dataclasses
import os
import subprocess

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import diffplan as dp
from diffplan.datasets.collection import collect_episodes, run_episode
from diffplan.datasets.windows import load_dataset
from diffplan.envs import behavior_policy, make
from diffplan.evaluation import run_batch
from diffplan.plotting import plot_filmstrip
from diffplan.rollout import record_rollout, save_video


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Plans with a network of random weights: robots that move somehow."""
    folder = tmp_path_factory.mktemp("data") / "crossing"
    collect_episodes("crossing-v0", out=folder, episodes=2, workers=0, progress=False)
    planner = dp.DiffusionPlanner.for_dataset(load_dataset(folder, horizon=8), width=16, depth=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in planner.denoiser.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return dp.RecedingHorizonPolicy(planner, num_inference_steps=2)


@pytest.fixture(scope="module")
def rollout(policy):
    """A filmed episode of six steps."""
    env = make("crossing-v0", num_robots=4, max_steps=6, render_mode="rgb_array")
    return record_rollout(policy, env, seed=5)


class Announcing:
    """Scripted robots that announce their plan: what the script does from the same start."""

    def __init__(self, env):
        self.env, self.script = env, behavior_policy("crossing-v0", style="clockwise")
        episode = run_episode(make("crossing-v0"), self.script, env.joint_spec, seed=3)
        observations, actions = (array[None, :32].swapaxes(1, 2) for array in (episode.observations, episode.actions))
        self.plans = [dp.Plan(env.joint_spec, observations, actions, np.ones(4, bool))]

    def reset(self, seeds):
        self.script.reset(self.env, seeds[0])

    def __call__(self, observations):
        return [self.script(seen) for seen in observations]


@pytest.fixture
def film():
    """Eleven frames of 33 x 41 pixels, each of one brightness."""
    return np.stack([np.full((33, 41, 3), 20 * k, np.uint8) for k in range(11)])


def test_a_gif_has_every_frame_and_holds_the_last(film, tmp_path):
    save_video(film, tmp_path / "film.gif", fps=5, hold=2)
    with Image.open(tmp_path / "film.gif") as image:
        assert (image.n_frames, image.size) == (11, (41, 33))
        times = []
        for index in range(11):
            image.seek(index)
            times.append(image.info["duration"])
            assert np.allclose(np.asarray(image.convert("RGB")), film[index], atol=2)
    assert times == [200] * 10 + [2200]


def test_a_gif_of_one_frame_lasts_as_long_as_it_is_held(film, tmp_path):
    save_video(film[:2], tmp_path / "film.gif", fps=125)
    with Image.open(tmp_path / "film.gif") as image:
        assert image.n_frames == 1 and image.info["duration"] == pytest.approx(1000, abs=20)


@pytest.mark.parametrize("fps", [30, 1 / 0.015, 125])
def test_a_gif_of_short_steps_lasts_as_long_as_the_film(film, tmp_path, fps: float):
    save_video(film, tmp_path / "film.gif", fps=fps)
    with Image.open(tmp_path / "film.gif") as image:
        times = []
        for index in range(image.n_frames):
            image.seek(index)
            times.append(image.info["duration"])
        assert np.allclose(np.asarray(image.convert("RGB")), film[-1], atol=2)
    assert min(times[:-1]) >= 20 and abs(sum(times) - 1000 * (11 / fps + 1)) <= 10


def test_an_mp4_decodes_to_every_frame_and_holds_the_last(film, tmp_path):
    save_video(film, tmp_path / "film.mp4", fps=5, hold=1)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "film.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(ffmpeg, capture_output=True, check=True)
    decoded = np.frombuffer(done.stdout, np.uint8).reshape(-1, 34, 42, 3)  # H.264 wants even sizes
    assert len(decoded) == 11 + 5 and b" 5 fps" in done.stderr
    assert np.allclose(decoded[:11].mean((1, 2, 3)), 20 * np.arange(11), atol=4)


def test_a_video_that_cannot_be_written_leaves_the_old_one_whole(film, tmp_path, monkeypatch):
    target = tmp_path / "film.mp4"
    target.write_bytes(b"old")
    for frames, path, fps, message in (
        (film[:0], target, 5, r"shape \(0, 33, 41, 3\) and dtype uint8, expected one or more"),
        (film / 255, target, 5, "dtype float64, expected .* of uint8"),
        (film, tmp_path / "film.avi", 5, "videos end in .mp4 or .gif, not '.avi'"),
        (film, target, 0, "fps=0"),
    ):
        with pytest.raises(ValueError, match=message):
            save_video(frames, path, fps)
    with pytest.raises(OSError, match="cannot write"):
        save_video(film, target / "film.gif")
    with monkeypatch.context() as patch:  # what a full disk leaves of it: ffmpeg fails at the end, and nobody says so
        write = iio.imwrite
        patch.setattr(iio, "imwrite", lambda path, *args, **how: (write(path, *args, **how), os.truncate(path, 500)))
        with pytest.raises(OSError, match="film.mp4"):
            save_video(film, target)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("film.mp4", b"old")]


def test_a_rollout_is_the_episode_that_evaluation_runs(policy, rollout):
    (tally,) = run_batch(policy, [make("crossing-v0", num_robots=4, max_steps=6)], [5])
    assert (rollout.success, len(rollout.trajectory)) == (bool(tally.success), tally.steps)
    assert abs(tally.total) > 0.001 and np.isclose(rollout.trajectory.returns.mean(), tally.total)
    assert len(rollout.frames) == tally.steps + 1 and len(rollout.plans) == tally.steps
    assert repr(rollout).startswith("Rollout(Trajectory(6 steps, 4 agents")


def test_plans_are_drawn_into_the_scene_and_cleared():
    env = make("crossing-v0", num_robots=4, max_steps=2, render_mode="rgb_array")
    drawn = record_rollout(Announcing(env), env, seed=3)
    plain = record_rollout(Announcing(env), env, seed=3, overlay=False)
    assert np.array_equal(drawn.trajectory.observations, plain.trajectory.observations)
    changed = (drawn.frames != plain.frames).any(-1).mean((1, 2))
    assert (changed[:2] > 0.01).all() and changed[2] == 0  # after the last step there is no plan
    assert np.array_equal(env.render(), plain.frames[-1])
    env.close()


def test_filming_needs_an_environment_that_renders():
    env = make("crossing-v0")
    with pytest.raises(ValueError, match="render_mode=None; make it with render_mode='rgb_array'"):
        record_rollout(Announcing(env), env)


def test_a_robot_is_shown_from_its_entry_on_and_not_once_it_left():
    env = make("crossing-v0", num_robots=8, turnover=2.0, render_mode="rgb_array")
    behavior = behavior_policy("crossing-v0")
    seen, _ = env.reset(seed=3)
    behavior.reset(env, 3)
    seen_at_once = [set(env.agents)]
    while env.agents and len(seen_at_once) < 3:
        seen, *_ = env.step(behavior({name: seen[name] for name in env.agents}))
        if set(env.agents) != seen_at_once[-1]:
            seen_at_once.append(set(env.agents))
            env.render()
            drawn = env.data.geom_xpos[env._robot_geoms, :2]
            assert np.allclose(drawn, env.positions)
    assert len(seen_at_once) == 3


def test_a_rollout_saves_in_real_time(rollout, tmp_path):
    rollout.save(tmp_path / "a.gif", speed=2)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 7 and image.info["duration"] == 50  # 0.1 s a step, twice as fast


def test_a_filmstrip_has_times_from_start_to_end(rollout):
    assert [axes.get_title() for axes in plot_filmstrip(rollout, columns=3).axes] == ["0.0 s", "0.3 s", "0.6 s"]
    assert len(plot_filmstrip(rollout, columns=100).axes) == len(rollout.frames)
    quick = dataclasses.replace(rollout.trajectory, spec=dataclasses.replace(rollout.trajectory.spec, dt=0.008))
    strip = plot_filmstrip(dataclasses.replace(rollout, trajectory=quick), columns=4)
    assert [axes.get_title() for axes in strip.axes] == ["0.00 s", "0.02 s", "0.03 s", "0.05 s"]
    last = plot_filmstrip(rollout).axes[-1].images[0].get_array()
    assert np.array_equal(last, rollout.frames[-1])
    with pytest.raises(ValueError, match="columns=0"):
        plot_filmstrip(rollout, columns=0)


def test_robots_that_sense_are_filmed_as_they_are_evaluated(policy):
    def made(**options):
        return make("crossing-v0", num_robots=4, max_steps=4, sensing_radius=0.5, **options)

    team = dp.DecentralizedTeam(policy.planner)
    filmed = record_rollout(team, made(render_mode="rgb_array"), seed=5, overlay=False)
    (tally,) = run_batch(team, [made()], [5])
    assert filmed.trajectory.rewards.sum() / 4 == pytest.approx(tally.total, abs=1e-6)
