"""The particle tasks of mpe2 with continuous actions (Lowe et al. 2017, arXiv 1706.02275).

An action is ``[nothing, left, right, down, up]`` in [0, 1]; agents that talk append their message, agents that cannot
move have the message alone. Positions have no unit (the arena is about 2 wide); a step lasts 0.1 s.
"""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import Space
from pettingzoo import ParallelEnv

from diffplan.envs import simple_spread_expert
from diffplan.envs.behavior import SkilledPolicy, random_policy
from diffplan.envs.spaces import spec_from_env
from diffplan.extras import load_extra
from diffplan.spec import Actions, Infos, JointSpec, Seen, Step

_POSITION = {  # which observation entries are the agent's own position; other tasks observe relative positions only
    "collect_treasure_v1": (0, 1),
    "simple_v3": (),
    "simple_adversary_v3": (),
    "simple_crypto_v3": (),
    "simple_formation_v1": (2, 3),
    "simple_line_v1": (2, 3),
    "simple_push_v3": (),
    "simple_reference_v3": (),
    "simple_speaker_listener_v4": (),
    "simple_spread_v3": (2, 3),
    "simple_tag_v3": (2, 3),
    "simple_world_comm_v3": (2, 3),
}
TASKS = tuple(_POSITION)
_JOINT_GOAL = ("simple_formation_v1", "simple_line_v1", "simple_spread_v3")
_SET_HERE = ("self", "max_cycles", "continuous_actions", "render_mode", "dynamic_rescaling", "benchmark_data")

MOST_BODIES = 1_000

TaskOption = int | float | bool | None


def parallel_env(
    task: str, max_cycles: int = 25, render_mode: str | None = None, **task_options: TaskOption
) -> "ParticleEnv":
    """A particle task, e.g. ``parallel_env("simple_spread_v3", N=5)``.

    Args:
        task: one of ``TASKS``.
        max_cycles: steps of an episode; its end is a truncation.
        render_mode: ``"rgb_array"`` (``render`` gives a picture of 700 x 700), ``"human"`` or None.
        task_options: the task's own options by mpe2's names, e.g. ``N`` and ``local_ratio`` for simple_spread_v3.

    Raises:
        ValueError: the task does not exist, or does not have this option.
        ImportError: mpe2 is missing.
    """
    _check_task(task)
    module = load_extra(f"mpe2.{task}", "mpe", f"mpe:{task} needs mpe2")
    known = [name for name in inspect.signature(module.raw_env.__init__).parameters if name not in _SET_HERE]
    foreign = [name for name in task_options if name not in known]
    if foreign:
        raise ValueError(f"mpe:{task} has no option {foreign[0]!r}; it has {['max_cycles', 'render_mode', *known]}.")
    if many := [name for name, value in task_options.items() if isinstance(value, int) and value > MOST_BODIES]:
        raise ValueError(f"mpe:{task} with {many[0]}={task_options[many[0]]}; at most {MOST_BODIES} fit into a world.")
    env = module.parallel_env(max_cycles=max_cycles, continuous_actions=True, render_mode=render_mode, **task_options)
    return ParticleEnv(task, env, {"max_cycles": max_cycles, **task_options})


def behavior_policy(task: str, skill: str = "expert", style: str = "mixed") -> SkilledPolicy:
    """The scripted policy of ``simple_spread_v3`` (see ``simple_spread_expert``); others: skill "random"."""
    _check_task(task)
    if task != "simple_spread_v3":
        return random_policy(f"mpe:{task}", skill, style, scripted="mpe:simple_spread_v3")
    expert = simple_spread_expert.SimpleSpreadExpert
    return SkilledPolicy(expert, skill, style, simple_spread_expert.STYLES, simple_spread_expert.MEDIUM_NOISE)


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown task 'mpe:{task}'; known: {', '.join(TASKS)}.")


class ParticleEnv(ParallelEnv[str, np.ndarray, np.ndarray]):
    """One mpe2 task with a ``joint_spec``.

    Agents that are named alike share a role (``adversary_0`` and ``adversary_1``); deposits, which differ, do not.
    Where the team has a goal, ``infos[agent]["success"]`` says whether it is reached at this step, as mpe2 defines it.
    """

    def __init__(self, task: str, env: Any, options: dict[str, Any]):
        self._env, self._has_goal = env, task in _JOINT_GOAL
        self.metadata = {**env.metadata, "name": task}
        self.render_mode = env.render_mode
        self.possible_agents: list[str] = list(env.possible_agents)
        self.agents: list[str] = []
        self.state_space = env.state_space
        derived = spec_from_env(env, env.unwrapped.world.dt)
        agents = {name: name if role == "deposit" else role for name, role in derived.agents.items()}
        roles = {role: replace(derived.role_of(name), position=_POSITION[task]) for name, role in agents.items()}
        self.joint_spec = JointSpec(agents, roles, derived.dt, f"mpe:{task}", options)

    def observation_space(self, agent: str) -> Space[Any]:
        return self._env.observation_space(agent)

    def action_space(self, agent: str) -> Space[Any]:
        return self._env.action_space(agent)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Seen:
        observations, _ = self._env.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return observations, {name: {} for name in self.agents}

    def step(self, actions: Actions) -> Step:
        taken = {name: np.asarray(actions[name], np.float32) for name in self.agents}
        observations, rewards, terminations, truncations, _ = self._env.step(taken)
        about = {"success": self._reached_goal()} if self._has_goal else {}
        infos: Infos = {name: dict(about) for name in self.agents}
        self.agents = list(self._env.agents)
        return observations, dict(rewards), terminations, truncations, infos

    def _reached_goal(self) -> bool:
        raw = self._env.unwrapped
        ends_at_goal, raw.scenario.terminate_on_success = raw.scenario.terminate_on_success, True
        reached = raw.scenario.is_terminal(raw.world)
        raw.scenario.terminate_on_success = ends_at_goal
        return bool(reached)

    def state(self) -> np.ndarray:
        return self._env.state()

    def render(self) -> np.ndarray | None:
        return self._env.render()

    def close(self) -> None:
        self._env.close()
