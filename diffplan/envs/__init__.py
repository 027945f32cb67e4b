"""Multi-robot tasks as PettingZoo ``ParallelEnv``: ours on MuJoCo, and adapters to other people's.

``make("crossing-v0", num_robots=4)`` builds an environment by its registered id; every environment has a
``joint_spec``.
"""

import importlib
import inspect
from typing import Any

from pettingzoo import ParallelEnv

from diffplan.envs.behavior import BehaviorPolicy
from diffplan.envs.one_hot import OneHotActions

__all__ = ["BehaviorPolicy", "OneHotActions", "behavior_policy", "make"]

_MODULES = {
    "crossing-v0": "diffplan.envs.crossing",
    "transport-v0": "diffplan.envs.transport",
    "mpe": "diffplan.envs.mpe",
    "mamujoco": "diffplan.envs.mamujoco",
    "robosuite": "diffplan.envs.robosuite",
}


def make(env_id: str, **options: Any) -> ParallelEnv:
    """A registered environment, e.g. ``make("crossing-v0", num_robots=4)`` or ``make("mpe:simple_spread_v3")``.

    Args:
        env_id: ``"crossing-v0"``, ``"transport-v0"``, or ``"FAMILY:TASK"`` with family mpe, mamujoco or robosuite.
        options: the environment's own keyword arguments, plain data only.

    Raises:
        ValueError: the id is not registered, it has no such option, or the task does not exist in its family.
        ImportError: the family's optional dependency is missing; the message gives the pip command.
    """
    module, task = _find(env_id)
    known = inspect.signature(module.parallel_env).parameters
    unknown = sorted(set(options) - set(known))
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise ValueError(f"{env_id} has no options {unknown}; it has {[name for name in known if name != 'task']}.")
    return module.parallel_env(*task, **options)


def behavior_policy(env_id: str, skill: str = "expert", style: str = "mixed") -> BehaviorPolicy:
    """The scripted behaviour policy of a registered environment, for collecting data of known quality.

    Args:
        env_id: as for ``make``.
        skill: ``"expert"``, ``"medium"`` (noisy, about half as good), ``"random"``, or ``"replay"`` (one of them an
            episode).
        style: a style of the environment's own (see its module), or ``"mixed"`` to draw one per episode.

    Raises:
        ValueError: the environment has no script for this skill or style.
    """
    module, task = _find(env_id)
    return module.behavior_policy(*task, skill=skill, style=style)


def _find(env_id: str) -> tuple[Any, tuple[str, ...]]:
    family, *task = env_id.split(":", 1)
    if family not in _MODULES or bool(task) != (not family.endswith("-v0")):
        known = ", ".join(name if name.endswith("-v0") else f"{name}:TASK" for name in _MODULES)
        raise ValueError(
            f"unknown environment {env_id!r}; known: {known}. Pass any other ParallelEnv as an object in Python."
        )
    return importlib.import_module(_MODULES[family]), tuple(task)
