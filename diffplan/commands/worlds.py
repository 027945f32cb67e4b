"""From words on the command line to environments and planners."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from diffplan.planners import DiffusionPlanner, Guide, SafetyFilter
    from diffplan.spec import JointSpec

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


def parse_guides(words: list[str], planner: "DiffusionPlanner") -> list["Guide"]:
    """``["value=0.5", "separation:0.2=2"]`` -> guides of these weights.

    Known are ``value`` (the team's), ``value:AGENT``, ``separation`` (``:METRES``; the robots' diameter by default),
    ``clearance:METRES`` (from obstacles) and ``speed:LIMIT`` (m/s).

    Raises:
        ValueError: anything else, or a value where the planner has no value function.
    """
    return [_parse_guide(word, planner) for word in words]


def _parse_guide(word: str, planner: "DiffusionPlanner") -> "Guide":
    from diffplan.planners import ConstraintGuide, ValueGuide

    head, _, weight = word.partition("=")
    name, *details = head.split(":")
    if name in ("value", "rank") and len(details) <= 1 and _is_number(weight):
        if planner.value_function is None:
            raise ValueError(
                f"guide {word!r}: the planner has no value function; train one: `diffplan train` as before, with "
                "--resume --value-steps 5000."
            )
        guide = ValueGuide(planner.value_function, details[0] if details else None, float(weight))
        return guide if name == "value" else replace(guide, levels=None)
    if name in ("separation", "speed", "clearance") and len(details) <= 1 and all(map(_is_number, (weight, *details))):
        if details:
            constraint: ConstraintGuide = getattr(ConstraintGuide, name)(float(details[0]), float(weight))
            return constraint
        if name == "separation":
            if diameter := 2 * max(role.radius for role in planner.spec.roles.values()):
                return ConstraintGuide.separation(diameter, float(weight))
            raise ValueError(
                f"guide {word!r}: the data do not say how large the robots are; say how far apart they shall keep, as "
                "separation:METRES=WEIGHT."
            )
    raise ValueError(
        f"guide {word!r} is none of value=WEIGHT, value:AGENT=WEIGHT, rank=WEIGHT (by value), "
        "separation=WEIGHT, separation:METRES=WEIGHT, clearance:METRES=WEIGHT and speed:LIMIT=WEIGHT; "
        "e.g. --guide value=0.5 --guide separation:0.2=10"
    )


def check_ranks(guides: list[str], realism: float = 0.0) -> None:
    """For plans of one candidate: raises ``ValueError`` where something only ranks."""
    alone = [f"--guide {word}" for word in guides if word.startswith("rank")] + ["--realism"] * bool(realism)
    if alone:
        raise ValueError(f"{alone[0]} ranks candidates; give more of them, e.g. --num-samples 16.")


def make_safety(env: Any) -> "SafetyFilter":
    """The safety filter for an environment's robots. Raises ``ValueError`` when it does not say what these can do."""
    from diffplan.planners import SafetyFilter

    limits = getattr(env, "robot_limits", None)
    if limits is None:
        raise ValueError(
            f"{env} does not say how fast its robots can brake (robot_limits; crossing-v0 does), so --safe cannot keep "
            "them apart; leave it out, or give their limits in Python: SafetyFilter(max_speed=..., ...)."
        )
    return SafetyFilter(**limits)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


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

    planner = load_planner(path, scheduler)
    env = make_world(planner.spec, env_id, parse_options(option))
    return planner.for_agents(spec_from_env(env, planner.spec.dt)), env


def load_planner(path: Path, scheduler: str | None) -> "DiffusionPlanner":
    """A saved planner, with its own scheduler or the one named."""
    from diffplan.planners import DiffusionPlanner, make_scheduler

    planner = DiffusionPlanner.from_pretrained(path)
    if scheduler:
        planner.scheduler = make_scheduler(scheduler)
    return planner


def make_world(spec: "JointSpec", env_id: str | None, options: dict[str, Any]) -> Any:
    """The environment named, or else the one that the data of a planner with this spec are from, with these options."""
    if env_id is not None:
        return make_env(env_id, options)
    if spec.env_id is None:
        raise ValueError(
            "the planner's data name no environment: they are imported, or of an environment made in Python. Choose "
            "one with --env, forecast what is recorded (diffplan plan RUN --forecast STORE:EPISODE), or go on in "
            "Python, see docs/howto.md."
        )
    return make_env(spec.env_id, spec.env_options | options)
