"""From words on the command line to environments and planners."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from diffplan.planners import DiffusionPlanner

Run = Annotated[Path, Positional, arg(metavar="RUN")]
Options = Annotated[list[str], UseAppendAction]
Scheduler = Literal["flow", "ddim", "dpm"]


def parse_options(options: list[str]) -> dict[str, Any]:
    """``["num_robots=4", "layout=open"]`` -> ``{"num_robots": 4, "layout": "open"}``; values are JSON, else words.

    Raises:
        ValueError: an entry without ``=``, or a value that is a list or an object.
    """
    parsed = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"option {option!r} is not NAME=VALUE, e.g. --option num_robots=8.")
        try:
            parsed[name] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name] = text
        if isinstance(parsed[name], list | dict):
            raise ValueError(f"option {option!r} is not one plain value (a number, a word, true, false or null).")
    return parsed


def make_env(env_id: str, options: dict[str, Any]) -> Any:
    """``diffplan.envs.make``, in which an option that the environment does not have is a ``ValueError``."""
    from diffplan.envs import make

    try:
        return make(env_id, **options)
    except TypeError as error:
        raise ValueError(f"{env_id} cannot be made with the options {options}: {error}.") from error


def load(path: Path, scheduler: str | None, env_id: str | None, option: list[str]) -> tuple["DiffusionPlanner", Any]:
    """A planner and the environment that it shall act in: the one named, or the one that its data are from."""
    from diffplan.envs.spaces import spec_from_env
    from diffplan.planners import DiffusionPlanner, make_scheduler

    planner = DiffusionPlanner.from_pretrained(path)
    if scheduler:
        planner.scheduler = make_scheduler(scheduler)
    options = parse_options(option)
    if env_id is None:
        if planner.spec.env_id is None:
            raise ValueError(f"the data of {path} name no environment; choose one with --env, e.g. --env crossing-v0.")
        env_id, options = planner.spec.env_id, planner.spec.env_options | options
    env = make_env(env_id, options)
    return planner.for_agents(spec_from_env(env, planner.spec.dt)), env
