"""MaMuJoCo, one MuJoCo body driven by several agents (Peng et al. 2021, arXiv 2003.06709), from gymnasium-robotics.

A task is ``SCENARIO-PARTITION``: ``HalfCheetah-2x3`` is a cheetah of two agents with three joints each. Every agent is
a role of its own, for each drives other limbs. All agents are paid the same. An action is a torque, as a share of the
joint's strength.
"""

import contextlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from pettingzoo import ParallelEnv

from diffplan.envs.behavior import SkilledPolicy, random_policy
from diffplan.envs.spaces import spec_from_env
from diffplan.extras import load_extra
from diffplan.spec import Actions, JointSpec, Observations, Seen, Step

PARTITIONS = {  # NxM is any number of agents with any number of segments each
    "Ant": ("2x4", "2x4d", "4x2"),
    "CoupledHalfCheetah": ("1p1",),
    "HalfCheetah": ("2x3", "6x1"),
    "Hopper": ("3x1",),
    "Humanoid": ("9|8",),
    "HumanoidStandup": ("9|8",),
    "ManySegmentAnt": ("NxM",),
    "ManySegmentSwimmer": ("NxM",),
    "Pusher": ("3p",),
    "Reacher": ("2x1",),
    "Swimmer": ("2x1",),
    "Walker2d": ("2x3",),
}
TASKS = tuple(f"{scenario}-{partition}" for scenario, known in PARTITIONS.items() for partition in known)
CAMERA = "track"  # goes along with the body; scenes without one of that name are seen from where they always are


def parallel_env(task: str, agent_obsk: int = 1, render_mode: str | None = None) -> "MultiAgentMujoco":
    """A body shared by several agents, e.g. ``parallel_env("HalfCheetah-2x3")``.

    Args:
        task: one of ``TASKS``; CoupledHalfCheetah needs mujoco < 3.6.
        agent_obsk: each agent observes its own joints and those at most this many joints away.
        render_mode: ``"rgb_array"`` (headless: set ``MUJOCO_GL=egl``), ``"depth_array"``, ``"human"`` or None.

    Raises:
        ValueError: the task does not exist, or ``agent_obsk`` is negative.
        ImportError: gymnasium-robotics is missing, or mujoco is too new for the task.
    """
    scenario, partition = _check_task(task)
    if agent_obsk < 0:
        raise ValueError(f"agent_obsk={agent_obsk}; the number of joints to look ahead is 0 or more.")
    with contextlib.redirect_stderr(io.StringIO()):  # its import prints news about other environments
        library = load_extra("gymnasium_robotics", "mamujoco", f"mamujoco:{task} needs gymnasium-robotics")
    body = _many_segments(scenario, partition, render_mode) if scenario.startswith("ManySegment") else None
    view = {"render_mode": render_mode, "camera_name": CAMERA}
    env = library.mamujoco_v1.parallel_env(scenario, partition, agent_obsk, gym_env=body, **view)
    return MultiAgentMujoco(task, env, {"agent_obsk": agent_obsk})


def behavior_policy(task: str, skill: str = "expert", style: str = "mixed") -> SkilledPolicy:
    """Smooth random actions: no task here has a script. Raises ``ValueError`` for other skills."""
    _check_task(task)
    return random_policy(f"mamujoco:{task}", skill, style, scripted="none of this family")


def _check_task(task: str) -> tuple[str, str]:
    scenario, _, partition = task.partition("-")
    known = PARTITIONS.get(scenario, ())
    if partition not in known and not (known == ("NxM",) and re.fullmatch(r"[1-9]\d*x[1-9]\d*", partition)):
        raise ValueError(f"unknown task 'mamujoco:{task}'; known: {', '.join(TASKS)} (N, M: any numbers).")
    if scenario == "CoupledHalfCheetah" and tuple(map(int, mujoco.__version__.split(".")[:2])) >= (3, 6):
        raise ImportError(f'mamujoco:{task} needs mujoco<3.6, got {mujoco.__version__}: pip install "mujoco<3.6"')
    return scenario, partition


def _many_segments(scenario: str, partition: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The body, built in a folder of its own: the library writes it among its own files, where processes collide."""
    from gymnasium_robotics.envs.multiagent_mujoco import many_segment_ant, many_segment_swimmer

    agents, segments = map(int, partition.split("x"))
    body, module = (
        ("Ant-v5", many_segment_ant) if scenario == "ManySegmentAnt" else ("Swimmer-v5", many_segment_swimmer)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "body.xml")
        module.gen_asset(agents * segments, path)
        return gymnasium.make(body, xml_file=path, render_mode=render_mode, camera_name=CAMERA)


class MultiAgentMujoco(ParallelEnv[str, np.ndarray, np.ndarray]):
    """One MaMuJoCo task with a ``joint_spec``; a time limit is a truncation, a fall a termination."""

    def __init__(self, task: str, env: Any, options: dict[str, Any]):
        self._env = env
        body = env.single_agent_env
        self.metadata = {**body.metadata, "name": f"mamujoco:{task}", "is_parallelizable": True}
        self.render_mode = body.render_mode
        self.possible_agents: list[str] = list(env.possible_agents)
        self.agents: list[str] = []
        sizes = {name: env.observation_space(name).shape for name in self.possible_agents}
        self._observation_spaces = {
            name: gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32) for name, shape in sizes.items()
        }
        derived = spec_from_env(self, body.unwrapped.dt)
        roles = {name: derived.role_of(name) for name in self.possible_agents}
        self.joint_spec = JointSpec({name: name for name in roles}, roles, derived.dt, f"mamujoco:{task}", options)

    def observation_space(self, agent: str) -> gymnasium.spaces.Box:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.spaces.Box:
        return self._env.action_space(agent)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Seen:
        observations, infos = self._env.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return _single(observations), {name: dict(info) for name, info in infos.items()}

    def step(self, actions: Actions) -> Step:
        observations, rewards, terminations, truncations, infos = self._env.step(actions)
        if any(terminations.values()) or any(truncations.values()):
            self.agents = []
        paid = {name: float(reward) for name, reward in rewards.items()}
        return _single(observations), paid, terminations, truncations, {n: dict(info) for n, info in infos.items()}

    def state(self) -> np.ndarray:
        return np.asarray(self._env.state(), np.float32)

    def render(self) -> np.ndarray | None:
        return self._env.render()

    def close(self) -> None:
        self._env.close()


def _single(observations: dict[str, np.ndarray]) -> Observations:
    return {name: observation.astype(np.float32) for name, observation in observations.items()}
