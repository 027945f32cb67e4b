"""Roll-outs as lists of PettingZoo dictionaries, as a loop over ``env.step`` collects them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.datasets.importers.recording import Recording, make_spec, one_hot
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory


@dataclass(frozen=True)
class Rollout:
    """One episode: L + 1 observations, L of everything else, each {agent: value}; an agent without a key is absent."""

    observations: Sequence[Mapping[str, Any]]
    actions: Sequence[Mapping[str, Any]]
    rewards: Sequence[Mapping[str, float]]
    terminations: Sequence[Mapping[str, bool]]
    truncations: Sequence[Mapping[str, bool]]
    labels: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollouts:
    """Imports roll-outs from memory. Whole numbers as actions are choices, which become one-hot vectors.

    Args:
        rollouts: the episodes.
        dt: seconds a step.
        roles: role of each agent, in the order in which agents first appear; by default equal widths share one.
        num_actions: how many choices there are, where actions are whole numbers (by default one more than the largest).
    """

    rollouts: Sequence[Rollout]
    dt: float = 1.0
    roles: tuple[str, ...] = ()
    num_actions: int | None = None

    def read(self) -> Recording:
        if not self.rollouts:
            raise ValueError("no rollouts to import; give at least one.")
        observed = _first(step for rollout in self.rollouts for step in rollout.observations)
        acted = _first(step for rollout in self.rollouts for step in rollout.actions)
        if not observed:
            raise ValueError(f"no agent is seen in {len(self.rollouts)} rollouts; give observations of at least one.")
        idle = [name for name in observed if name not in acted]
        if idle:
            raise ValueError(f"agents {idle} never act in {len(self.rollouts)} rollouts; leave out their observations.")
        discrete = all(np.ndim(acted[name]) == 0 for name in observed)
        choices = (self._largest() + 1 if self.num_actions is None else self.num_actions) if discrete else 0
        if discrete and choices < 1:
            raise ValueError(f"{choices} choices of actions that are whole numbers; they count from 0 (num_actions).")
        widths = [(_width(name, seen), choices or _width(name, acted[name])) for name, seen in observed.items()]
        spec = make_spec(Path("rollouts"), list(observed), widths, self.dt, self.roles, discrete)

        def episodes() -> Iterator[Trajectory]:
            return (_trajectory(spec, index, rollout, choices) for index, rollout in enumerate(self.rollouts))

        return Recording(spec, episodes, f"{len(self.rollouts)} rollouts", bounded=discrete)

    def _largest(self) -> int:
        return max(int(a) for rollout in self.rollouts for step in rollout.actions for a in step.values())


def _first(steps: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The first value of every agent, in the order in which agents appear."""
    first: dict[str, Any] = {}
    for step in steps:
        first |= {name: value for name, value in step.items() if name not in first}
    return first


def _width(name: str, value: Any) -> int:
    if np.ndim(value) != 1:
        raise ValueError(f"agent {name!r} has values of shape {np.shape(value)}, expected (width,); flatten them.")
    return len(value)


def _trajectory(spec: JointSpec, index: int, rollout: Rollout, choices: int) -> Trajectory:
    actions = rollout.actions
    if choices:
        actions = [
            {
                name: one_hot(np.array([a]), choices, f"rollout {index}, agent {name!r}", step)[0]
                for name, a in taken.items()
            }
            for step, taken in enumerate(actions)
        ]
    try:
        return Trajectory.from_steps(
            spec,
            rollout.observations,
            actions,
            rollout.rewards,
            rollout.terminations,
            rollout.truncations,
            rollout.labels,
        )
    except ValueError as error:
        raise ValueError(f"rollout {index}: {error}") from error
