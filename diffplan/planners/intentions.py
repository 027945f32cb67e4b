"""What a robot may say that it will do, as cells to plan around: ``planner(observations, given=straight(...))``."""

import numpy as np
from jaxtyping import Float

from diffplan.spec import JointSpec, Observations
from diffplan.trajectory import Cells


def straight(spec: JointSpec, agent: str, observations: Observations, horizon: int) -> Cells:
    """The agent goes straight to its goal, from rest to rest, and is there at the end of the horizon.

    Its actions, and observation entries that its role does not describe, stay unknown.

    Raises:
        ValueError: an agent that is not in the observations, or whose role does not say where its goal is observed.
    """
    _check(spec, agent, observations)
    role = spec.role_of(agent)
    if not role.goal:
        raise ValueError(
            f"{agent!r} cannot be told to go straight: its role does not say where its goal is (Role.goal)."
        )
    now, goal = (np.asarray(observations[agent])[list(entries)] for entries in (role.position, role.goal))
    time = np.linspace(0, 1, horizon)[:, None]
    return _course(spec, agent, observations, now + (3 * time**2 - 2 * time**3) * (goal - now))


def stay(spec: JointSpec, agent: str, observations: Observations, horizon: int) -> Cells:
    """The agent stays where it is for the whole horizon. Raises as ``straight``, but needs no goal."""
    _check(spec, agent, observations)
    now = np.asarray(observations[agent])[list(spec.role_of(agent).position)]
    return _course(spec, agent, observations, np.repeat(now[None], horizon, 0))


def _check(spec: JointSpec, agent: str, observations: Observations) -> None:
    if agent not in observations:
        raise ValueError(f"{agent!r} is not there; it is one of {list(observations)} who can be told what to do.")
    if not spec.role_of(agent).position:
        raise ValueError(f"{agent!r} has no position entries in its observation; set Role.position.")


def _course(spec: JointSpec, agent: str, observations: Observations, path: Float[np.ndarray, "H P"]) -> Cells:
    """Cells of an agent that moves along a path; its present observation is known anyway."""
    role, cells = spec.role_of(agent), Cells.unknown(spec, len(path))
    future = cells.observations[spec.names.index(agent), 1:]
    future[:, list(role.static)] = np.asarray(observations[agent])[list(role.static)]
    future[:, list(role.position)] = path[1:]
    if len(role.velocity) == len(role.position) and len(path) > 1:
        future[:, list(role.velocity)] = np.gradient(path, spec.dt, axis=0)[1:]
    return cells
