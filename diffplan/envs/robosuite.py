"""The two-arm tasks of robosuite 1.5.1 (Zhu et al. 2020, arXiv 2009.12293): two Panda arms, each an agent, at 20 Hz.

An action is a change of the hand's pose for robosuite's OSC_POSE controller: 3 entries of position (1 is 5 cm) and 3 of
rotation (1 is 0.5 rad) in the frame of the arm's base, then the gripper (-1 opens, 1 closes) where there is one. An
observation holds the hand's position (m) and orientation (x, y, z, w), the fingers (m), and the objects that matter, in
the world's frame. The arms see the world from opposite sides, so each is a role of its own.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import mujoco
import numpy as np
from pettingzoo import ParallelEnv

from diffplan.envs import two_arm_lift_expert
from diffplan.envs.behavior import SkilledPolicy, random_policy
from diffplan.envs.spaces import spec_from_env
from diffplan.extras import how_to_install, load_extra
from diffplan.spec import Actions, JointSpec, Observations, Seen, Step

_HAND = ("robot{arm}_eef_pos", "robot{arm}_eef_quat", "robot{arm}_gripper_qpos")
_LOADS = ("payload_pos", "payload_quat", "lid_handle_pos", "lid_handle_quat", "trash_pos", "trash_quat")
_OBSERVED = {  # robosuite's names of what an arm observes
    "TwoArmLift": (*_HAND, "gripper{arm}_to_handle{arm}", "pot_pos", "pot_quat"),
    "TwoArmHandover": (*_HAND, "gripper{arm}_to_handle", "hammer_pos", "hammer_quat"),
    "TwoArmPegInHole": (*_HAND[:2], "peg_to_hole", "peg_quat", "hole_pos", "hole_quat"),
    "TwoArmTransport": (*_HAND, *_LOADS, "target_bin_pos", "trash_bin_pos"),
}
TASKS = tuple(_OBSERVED)
DT = 0.05  # s
_HOLD = 5  # steps of success that end an episode


def parallel_env(
    task: str, max_steps: int = 200, reward_shaping: bool = False, render_mode: str | None = None
) -> "TwoArmEnv":
    """A two-arm task, e.g. ``parallel_env("TwoArmLift")``.

    Args:
        task: one of ``TASKS``.
        max_steps: time limit; reaching it is a truncation.
        reward_shaping: pay for progress too, not only for success (robosuite has none for TwoArmTransport).
        render_mode: ``"rgb_array"`` (headless: set ``MUJOCO_GL=egl``) or None.

    Raises:
        ValueError: the task does not exist.
        ImportError: robosuite is missing, or mujoco is too new for it.
    """
    _check_task(task)
    logging.getLogger("robosuite_logs").addFilter(_is_error)
    robosuite = load_extra("robosuite", "robots", f"robosuite:{task} needs robosuite")
    if tuple(map(int, mujoco.__version__.split(".")[:2])) >= (3, 6):
        raise ImportError(
            f"robosuite:{task} needs mujoco<3.6, got {mujoco.__version__}; in an environment of its own: "
            f"{how_to_install('robots')}"
        )
    with _global_seed(0):  # the hammer's and the peg's size are drawn here: always the same
        raw = robosuite.make(
            task,
            robots=["Panda", "Panda"],
            reward_shaping=reward_shaping,
            has_renderer=False,
            has_offscreen_renderer=False,
            renderer="mujoco",
            use_camera_obs=False,
            control_freq=round(1 / DT),
            ignore_done=True,
            hard_reset=False,
        )
    return TwoArmEnv(task, raw, max_steps, render_mode, {"max_steps": max_steps, "reward_shaping": reward_shaping})


def behavior_policy(task: str, skill: str = "expert", style: str = "mixed") -> SkilledPolicy:
    """The scripted policy of ``TwoArmLift`` (see ``two_arm_lift_expert``); others: skill "random"."""
    _check_task(task)
    if task != "TwoArmLift":
        return random_policy(f"robosuite:{task}", skill, style, scripted="robosuite:TwoArmLift")
    expert = two_arm_lift_expert.TwoArmLiftExpert
    return SkilledPolicy(expert, skill, style, two_arm_lift_expert.STYLES, two_arm_lift_expert.MEDIUM_NOISE)


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown task 'robosuite:{task}'; known: {', '.join(TASKS)}.")


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """robosuite draws from numpy's global generator only: seeds it for a moment, then puts it back as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


class TwoArmEnv(ParallelEnv[str, np.ndarray, np.ndarray]):
    """One robosuite task as two agents that are paid alike; it terminates when success has held for 5 steps.

    ``infos[agent]["success"]`` says that it has. robosuite knows no generator but numpy's global one: ``reset`` seeds
    that for a moment and puts it back as it was, so do not draw from it in another thread meanwhile.
    """

    def __init__(self, task: str, raw: Any, max_steps: int, render_mode: str | None, options: dict[str, Any]):
        self.metadata = {
            "name": task,
            "render_modes": ["rgb_array"],
            "render_fps": round(1 / DT),
            "is_parallelizable": True,
        }
        self.render_mode, self._raw, self._max_steps = render_mode, raw, max_steps
        self._renderer: mujoco.Renderer | None = None
        self._rng = np.random.default_rng()
        self._steps = self._held = 0
        self.agents: list[str] = []
        self.possible_agents = ["arm_0", "arm_1"]
        self._observed = {
            name: [key.format(arm=arm) for key in _OBSERVED[task]] for arm, name in enumerate(self.possible_agents)
        }
        observations = self._observe()
        self._observation_spaces = {
            name: gymnasium.spaces.Box(-np.inf, np.inf, observations[name].shape, np.float32) for name in observations
        }
        self._action_spaces = {
            name: gymnasium.spaces.Box(-1, 1, (robot.action_dim,), np.float32)
            for name, robot in zip(self.possible_agents, raw.robots, strict=True)
        }
        derived = spec_from_env(self, DT)
        roles = {name: replace(derived.role_of(name), position=(0, 1, 2)) for name in self.possible_agents}
        self.joint_spec = JointSpec({name: name for name in roles}, roles, DT, f"robosuite:{task}", options)

    def observation_space(self, agent: str) -> gymnasium.spaces.Box:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.spaces.Box:
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Seen:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        with _global_seed(int(self._rng.integers(2**32))):
            self._raw.reset()
        self._steps = self._held = 0
        self.agents = list(self.possible_agents)
        return self._observe(), {name: {} for name in self.agents}

    def step(self, actions: Actions) -> Step:
        agents = self.agents
        _, reward, _, _ = self._raw.step(np.concatenate([actions[name] for name in agents]).astype(float))
        self._steps += 1
        self._held = self._held + 1 if self._raw._check_success() else 0
        success = self._held >= _HOLD
        late = not success and self._steps >= self._max_steps
        if success or late:
            self.agents = []
        paid, infos = dict.fromkeys(agents, float(reward)), {name: {"success": success} for name in agents}
        return self._observe(), paid, dict.fromkeys(agents, success), dict.fromkeys(agents, late), infos

    def _observe(self) -> Observations:
        """What the arms see now: robosuite's own observations are from the start of the control step, 48 ms earlier."""
        now = self._raw._get_observations(force_update=True)
        return {
            name: np.concatenate([now[key] for key in keys]).astype(np.float32) for name, keys in self._observed.items()
        }

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        model, data = self._raw.sim.model._model, self._raw.sim.data._data
        if self._renderer is None:
            self._renderer = mujoco.Renderer(model, 480, 640)
        shown = mujoco.MjvOption()
        shown.geomgroup[0] = 0  # collision shapes
        self._renderer.update_scene(data, "frontview", shown)
        return self._renderer.render()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._raw.close()  # an environment takes 240 MB
