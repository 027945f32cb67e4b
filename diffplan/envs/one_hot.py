"""Environments of choices, as planners see them: actions one-hot, and what is legal among the observations."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper

from diffplan.envs.spaces import spec_from_env
from diffplan.spec import Actions, Observations, Role, Seen, Step


class OneHotActions(BaseParallelWrapper[str, np.ndarray, np.ndarray]):
    """An environment whose agents choose, with their choices as one-hot vectors; of a vector the largest entry is done.

    Who acts by a script may also give a choice as a number: which entry it is, from 0 on.

    Observations ``{"observation": ..., "action_mask": ...}``, as PettingZoo has them where not every choice is legal at
    every time, become one vector that ends with the mask: so planners know, and foresee, what is legal.

    Args:
        env: a ``ParallelEnv``; agents with other than Discrete action spaces stay as they are.
        dt: seconds between two steps, where the environment states no ``joint_spec``.

    Raises:
        ValueError: as ``spec_from_env`` for spaces of any other kind.

    Example:
        ``env = OneHotActions(Maze()); store = collect_episodes(lambda: OneHotActions(Maze()), Script, out="data")``
    """

    def __init__(self, env: ParallelEnv, dt: float = 1.0):
        super().__init__(env)
        self._acted = {name: _boxed(env.action_space(name)) for name in env.possible_agents}
        self._observed = {
            name: _joined(env.observation_space(name), env.action_space(name)) for name in env.possible_agents
        }
        derived = spec_from_env(self, dt)
        roles = {derived.agents[name]: self._role(derived.role_of(name), name) for name in derived.names}
        self.joint_spec = replace(derived, roles=derived.roles | roles)

    def _role(self, role: Role, name: str) -> Role:
        """The role of an agent as it sees and acts here: whether it chooses, and which entries say what is legal."""
        chooses = isinstance(self.env.action_space(name), Discrete)
        joined = isinstance(self.env.observation_space(name), Dict) and isinstance(self._observed[name], Box)
        legal = tuple(range(role.observation_size - role.action_size, role.observation_size))
        return replace(role, discrete=role.discrete or chooses, legal=legal if joined else role.legal)

    def observation_space(self, agent: str) -> Space[Any]:
        return self._observed[agent]

    def action_space(self, agent: str) -> Space[Any]:
        return self._acted[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Seen:
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._flat(observations), infos

    def step(self, actions: Actions) -> Step:
        observations, *told = self.env.step({name: self._choice(name, one) for name, one in actions.items()})
        return self._flat(observations), *told

    def _choice(self, name: str, action: Any) -> Any:
        space = self.env.action_space(name)
        if not isinstance(space, Discrete):
            return action
        if np.ndim(action) == 0 and action in range(int(space.n)):
            return int(space.start) + int(action)
        if np.shape(action) == (space.n,) and np.isfinite(action).all():
            return int(space.start) + int(np.argmax(action))
        raise ValueError(f"agent {name!r} chooses {action!r}, expected {space.n} numbers, or one of them by its place.")

    def _flat(self, observations: Mapping[str, Any]) -> Observations:
        return {
            name: np.concatenate([np.ravel(seen["observation"]), seen["action_mask"]]).astype(np.float32)
            if isinstance(seen, Mapping)
            else seen
            for name, seen in observations.items()
        }


def _boxed(space: Space[Any]) -> Space[Any]:
    """Where one-hot vectors of choices live."""
    return Box(0, 1, (int(space.n),), np.float32) if isinstance(space, Discrete) else space


def _joined(space: Space[Any], chosen: Space[Any]) -> Space[Any]:
    """Where observations that end with what is legal live."""
    if not (isinstance(space, Dict) and {*space.spaces} == {"observation", "action_mask"}):
        return space
    seen = space["observation"]
    if not (isinstance(seen, Box) and isinstance(chosen, Discrete)):
        return space
    low, high = np.append(seen.low, np.zeros(chosen.n)), np.append(seen.high, np.ones(chosen.n))
    return Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
