"""Filmed episodes: one closed-loop episode with its plans and pictures, and video files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs
from jaxtyping import UInt8
from pettingzoo import ParallelEnv

from diffplan.datasets.collection import EpisodeRecorder, run_episode
from diffplan.envs import BehaviorPolicy
from diffplan.envs.spaces import spec_from_env
from diffplan.evaluation import Policy, Scripted, SensingPolicy, makes_scripts
from diffplan.files import atomic_path
from diffplan.spec import Actions, Observations
from diffplan.trajectory import Plan, Trajectory


@dataclass(frozen=True)
class Rollout:
    """One filmed episode of L steps.

    Args:
        trajectory: what happened.
        frames: a picture before every step and one after the last.
        plans: at every step the plan that is followed, from the next step on; None where the policy has none.
        success: whether the team succeeded; None where the environment does not say.
    """

    trajectory: Trajectory
    frames: UInt8[np.ndarray, "L+1 height width 3"]
    plans: list[Plan | None]
    success: bool | None

    def __repr__(self) -> str:
        return f"Rollout({self.trajectory}, frames {self.frames.shape}, success={self.success})"

    def save(self, path: str | Path, speed: float = 1.0) -> None:
        """Writes the episode as a video, ``speed`` times as fast as it was; see ``save_video``."""
        save_video(self.frames, path, fps=speed / self.trajectory.spec.dt)


def record_rollout(
    policy: Policy | Callable[[], BehaviorPolicy], env: ParallelEnv[str, Any, Any], seed: int = 0, overlay: bool = True
) -> Rollout:
    """Films one episode in closed loop, the same that ``evaluate`` would run from this seed.

    Args:
        policy: as in ``evaluate``; what is in its ``plans``, if it has any, is recorded.
        env: made with ``render_mode="rgb_array"``.
        seed: of the episode; ``evaluation.episode_seed(seed, i)`` is that of the i-th one of ``evaluate``.
        overlay: draw the plans into the scene, where the environment can (it has a method ``overlay``).

    Raises:
        ValueError: the environment was made without ``render_mode="rgb_array"``, or its agents are not the policy's.
    """
    render_mode = getattr(env, "render_mode", None)
    if render_mode != "rgb_array":
        raise ValueError(
            f"the environment has render_mode={render_mode!r}; make it with render_mode='rgb_array' to film it."
        )
    acting: Any = Scripted.by(policy, [env]) if makes_scripts(policy) else policy
    camera = _Camera(acting, env, seed, overlay and hasattr(env, "overlay"))
    try:
        spec = spec_from_env(env)
        trajectory = run_episode(EpisodeRecorder(env, spec), camera, spec, seed)
        camera.shoot(None)
    finally:
        camera.clear()
    success = trajectory.labels.get("success")
    return Rollout(trajectory, np.stack(camera.frames), camera.plans, None if success is None else bool(success))


class _Camera:
    """Drives one environment by a policy for many, and takes a picture before every step."""

    def __init__(self, policy: Policy, env: Any, seed: int, overlay: bool):
        self.policy, self.env, self.seed, self.overlay = policy, env, seed, overlay
        self.labels: dict[str, str | int | float | bool] = {}
        self.frames: list[np.ndarray] = []
        self.plans: list[Plan | None] = []

    def reset(self, env: EpisodeRecorder, seed: int) -> None:
        self.recorder = env
        self.policy.reset([self.seed])

    def __call__(self, observations: Observations) -> Actions:
        if isinstance(self.policy, SensingPolicy):
            self.policy.sense([self.recorder.infos])
        (actions,) = self.policy([observations])
        (plan,) = getattr(self.policy, "plans", None) or [None]
        self.plans.append(plan)
        self.shoot(plan)
        return actions or {}

    def shoot(self, plan: Plan | None) -> None:
        if self.overlay:
            self.env.overlay({} if plan is None else _paths(plan))
        self.frames.append(np.asarray(self.env.render()))

    def clear(self) -> None:
        if self.overlay:
            self.env.overlay({})


def _paths(plan: Plan) -> dict[str, np.ndarray]:
    """{agent: S paths of H points seen from above} of the agents that are there and have a position."""
    drawn = (name for name in plan.present if len(plan.spec.role_of(name).position) >= 2)
    return {name: plan.positions(name)[..., :2] for name in drawn}


def save_video(
    frames: UInt8[np.ndarray, "K height width 3"] | Sequence[np.ndarray],
    path: str | Path,
    fps: float = 10.0,
    hold: float = 1.0,
) -> None:
    """Writes a video file, whole or not at all: MP4 (H.264) or GIF, by the ending of its name.

    A GIF cannot show more than 50 frames a second: it leaves out as many as it takes to last as long as the film.

    Args:
        frames: pictures of one size.
        path: ends in ``.mp4`` or ``.gif``.
        fps: frames a second.
        hold: seconds for which the last frame stays.

    Raises:
        ValueError: no frames, another ending, or a rate that is not positive.
        OSError: the file cannot be written; what was there before is unchanged.
    """
    path, film = Path(path), np.asarray(frames)
    if film.ndim != 4 or film.shape[-1] != 3 or not film.size or film.dtype != np.uint8:
        got = f"shape {film.shape} and dtype {film.dtype}"
        raise ValueError(f"frames have {got}, expected one or more pictures (K, height, width, 3) of uint8.")
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise ValueError(f"{path}: videos end in .mp4 or .gif, not {path.suffix!r}.")
    if not (fps > 0 and hold >= 0):
        raise ValueError(f"fps={fps}, hold={hold}; give a positive number of frames a second, and 0 or more seconds.")
    with atomic_path(path) as temporary:
        write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
        write(film, temporary, fps, hold)


def _write_gif(film: UInt8[np.ndarray, "K height width 3"], path: Path, fps: float, hold: float) -> None:
    every = math.ceil(fps / 50)
    shown = np.arange((len(film) - 1) % every, len(film), every)  # the last one, too
    begins = np.round(np.array([0, *shown[1:], len(film) + hold * fps]) * 100 / fps)
    durations = (10 * np.diff(begins)).tolist()  # GIFs count in 0.01 s, and viewers show 0.01 s as 0.1 s
    duration = durations if len(durations) > 1 else durations[0]  # a list is for several frames
    iio.imwrite(path, film[shown], plugin="pillow", duration=duration, loop=0)


def _write_mp4(film: UInt8[np.ndarray, "K height width 3"], path: Path, fps: float, hold: float) -> None:
    film = np.concatenate([film, np.repeat(film[-1:], round(hold * fps), axis=0)])
    film = np.pad(film, ((0, 0), (0, film.shape[1] % 2), (0, film.shape[2] % 2), (0, 0)), mode="edge")
    iio.imwrite(path, film, plugin="FFMPEG", fps=fps, codec="libx264", quality=8, macro_block_size=2)
    try:
        written, _ = count_frames_and_secs(str(path))
    except RuntimeError:
        written = 0
    if written != len(film):  # ffmpeg fails, and nobody says so
        raise OSError("the end of the video is missing")
