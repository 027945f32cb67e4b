"""The joint spec of an environment that does not state one, read off its spaces."""

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space

from diffplan.spec import JointSpec, Role


def spec_from_env(env: Any, dt: float = 1.0) -> JointSpec:
    """The environment's own ``joint_spec``, else one derived from the spaces of its ``possible_agents``.

    Agents whose names differ only in a trailing number and whose spaces are equal share a role (``adversary_0`` and
    ``adversary_1`` are of role ``adversary``); otherwise each agent is a role of its own.

    Args:
        env: a PettingZoo ``ParallelEnv``.
        dt: seconds between two steps, which no space tells.

    Raises:
        ValueError: an environment of another kind; a ``joint_spec`` that contradicts its agents or Box spaces; without
            one, an observation space that is not a flat Box, or an action space that is not a flat, bounded Box.

    Example:
        >>> from mpe2 import simple_spread_v3
        >>> spec_from_env(simple_spread_v3.parallel_env(continuous_actions=True))
        JointSpec(3 agents: agent_0, agent_1, agent_2; O=18 A=5 D=23; dt=1 s)
    """
    check_parallel(env)
    stated = getattr(env, "joint_spec", None)
    if isinstance(stated, JointSpec):
        _check_stated(env, stated)
        return stated
    roles = {name: _role(env, name) for name in env.possible_agents}
    stems = {name: str(name).rstrip("0123456789").rstrip("_") or name for name in roles}
    of_stem = {stem: [role for name, role in roles.items() if stems[name] == stem] for stem in stems.values()}
    shared = [stem for stem, same in of_stem.items() if all(role == same[0] for role in same)]
    agents = {name: stem if stem in shared else name for name, stem in stems.items()}
    return JointSpec(agents, {agents[name]: role for name, role in roles.items()}, dt)


def check_parallel(env: Any) -> None:
    """Raises ``ValueError`` for an environment of another kind, whose agents take turns or that has a single one."""
    if hasattr(env, "agent_iter") or not hasattr(env, "possible_agents"):
        raise ValueError(
            f"{env} is no PettingZoo ParallelEnv; make one, e.g. with parallel_env() instead of env(), or wrap what is "
            "an environment of another kind in one."
        )


def _check_stated(env: Any, spec: JointSpec) -> None:
    """What an environment states of its agents must be what its spaces say, else actions leave these."""
    if {*spec.names} != {*env.possible_agents}:
        raise ValueError(
            f"{env} has the agents {list(env.possible_agents)}, its joint_spec {list(spec.names)}; name the same ones."
        )
    for name in spec.names:
        role, observed, acted = spec.role_of(name), env.observation_space(name), env.action_space(name)
        for what, space, width in ("observation", observed, role.observation_size), ("action", acted, role.action_size):
            if isinstance(space, Box) and space.shape != (width,):
                shapes = f"{what} space of shape {space.shape}, its joint_spec says ({width},)"
                raise ValueError(f"agent {name!r} of {env} has an {shapes}; match them.")
        if isinstance(acted, Discrete):
            _check_box(name, "action", acted)
        if isinstance(acted, Box) and not _within(role, acted):
            raise ValueError(
                f"agent {name!r} of {env} has the action space {acted}, its joint_spec bounds from "
                f"{list(role.action_low)} to {list(role.action_high)}; these must lie within it."
            )


def _within(role: Role, space: Box) -> bool:
    """Whether a role's actions lie in a space, whose bounds are often of a smaller precision."""
    bounds = (role.action_low, role.action_high, space.low, space.high)
    low, high, least, most = (np.asarray(one, np.float32) for one in bounds)
    return bool(((low >= least) & (high <= most)).all())


def _role(env: Any, name: str) -> Role:
    observed, acted = env.observation_space(name), env.action_space(name)
    _check_box(name, "observation", observed)
    _check_box(name, "action", acted)
    if not (np.isfinite(acted.low).all() and np.isfinite(acted.high).all()):
        raise ValueError(f"agent {name!r} has the unbounded action space {acted}; give it finite bounds.")
    return Role(int(observed.shape[0]), tuple(acted.low), tuple(acted.high))


def _check_box(name: str, what: str, space: Space[Any]) -> None:
    if not isinstance(space, Box) or space.shape is None or len(space.shape) != 1:
        remedy = "flatten it, e.g. with a wrapper"
        masked = isinstance(space, Dict) and {*space.spaces} == {"observation", "action_mask"}
        if masked or (what == "action" and isinstance(space, Discrete)):
            remedy = "diffplan.OneHotActions(env) makes one of it (or continuous_actions=True, in mpe2)"
        raise ValueError(f"agent {name!r} has the {what} space {space}, expected a flat Box; {remedy}.")
