"""Who the agents are: ``Role`` says what one kind of agent observes and does, ``JointSpec`` lists them all.

At the edges (environments, users) data are dictionaries keyed by agent name; inside they are stacked, padded arrays.
``JointSpec`` alone converts, and alone knows the order of the agents, their true widths, bounds and units.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

Observations = dict[str, np.ndarray]
Actions = dict[str, np.ndarray]
Infos = dict[str, dict[str, Any]]
Seen = tuple[Observations, Infos]
"""What agents observe, and what is said about them: what ``ParallelEnv.reset`` gives."""
Step = tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], Infos]
"""What ``ParallelEnv.step`` gives: observations, rewards, terminations, truncations and infos."""

_ENTRIES = ("position", "static", "velocity", "obstacles", "goal", "legal")


@dataclass(frozen=True)
class Role:
    """What one kind of agent observes and does. Agents of one role share statistics and weights: they are
    interchangeable.

    Args:
        observation_size: entries of the observation.
        action_low: lowest action, one number an entry (units of the environment); its length is the action width.
        action_high: highest action.
        position: which observation entries are the agent's position (m): drawn, kept apart, used as neighbourhood.
        static: which observation entries stay the same during an episode (a goal, an obstacle): known now is known
            always.
        velocity: which observation entries are the agent's velocity (m/s).
        obstacles: which observation entries are x, y and radius (m) of round obstacles, three entries each.
        radius: of the agent's body (m); 0 is a point.
        goal: which observation entries are the position where the agent wants to be (m), as many as ``position``.
            ``velocity``, ``obstacles``, ``radius`` and ``goal`` only describe the observation, for guides, the safety
            filter and stated intentions: roles that differ in nothing else are equal.
        discrete: whether an action is a choice, one entry for each (one-hot); a planned one is the likeliest choice.
        legal: which observation entries say (1 or 0) which choices are legal, one for each; planned ones are legal.

    Raises:
        ValueError: an index outside the observation, bounds that do not fit each other or are not finite, obstacle
            entries that are no whole triples, a goal of another width than the position, or not one legal entry for
            each choice.
    """

    observation_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    position: tuple[int, ...] = ()
    static: tuple[int, ...] = ()
    velocity: tuple[int, ...] = field(default=(), compare=False)
    obstacles: tuple[int, ...] = field(default=(), compare=False)
    radius: float = field(default=0.0, compare=False)
    goal: tuple[int, ...] = field(default=(), compare=False)
    discrete: bool = False
    legal: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("action_low", "action_high"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        for name in _ENTRIES:
            object.__setattr__(self, name, tuple(map(operator.index, getattr(self, name))))
        if self.observation_size < 1:
            raise ValueError(f"observation_size={self.observation_size}; an agent observes at least one number.")
        if len(self.action_low) != len(self.action_high):
            raise ValueError(
                f"action_low has {len(self.action_low)} entries, action_high {len(self.action_high)}; give as many."
            )
        if any(not low < high for low, high in zip(self.action_low, self.action_high, strict=True)):
            raise ValueError(
                f"action_low={self.action_low} must lie below action_high={self.action_high} in every entry."
            )
        if not np.isfinite((*self.action_low, *self.action_high)).all():
            raise ValueError(f"action_low={self.action_low}, action_high={self.action_high}; give finite bounds.")
        if not 0 <= self.radius < float("inf"):
            raise ValueError(f"radius={self.radius}; give the body's radius (m), or 0 for a point.")
        if len(self.obstacles) % 3:
            raise ValueError(f"obstacles={self.obstacles} are no triples; give the entries of x, y and radius of each.")
        if self.goal and len(self.goal) != len(self.position):
            raise ValueError(f"goal={self.goal}, position={self.position}; a goal has as many entries as a position.")
        if self.legal and (not self.discrete or len(self.legal) != self.action_size):
            raise ValueError(
                f"legal={self.legal} for discrete={self.discrete} actions of {self.action_size} entries; give one "
                "entry for each choice of a discrete action."
            )
        for name in _ENTRIES:
            outside = [i for i in getattr(self, name) if not 0 <= i < self.observation_size]
            if outside:
                raise ValueError(
                    f"{name} entries {outside} are outside the observation of {self.observation_size} entries."
                )

    @property
    def action_size(self) -> int:
        """Entries of the agent's action."""
        return len(self.action_low)


@dataclass(frozen=True)
class JointSpec:
    """Who the agents are, in which order, how wide, in which units: all that is needed to stack their data and take it
    apart.

    Args:
        agents: agent name -> name of its role; the order is the order of every N axis.
        roles: role name -> ``Role``; the order is the order of the role index.
        dt: seconds between two environment steps.
        env_id: the registered environment that the data are from, if any; never an import path.
        env_options: the plain options it was made with.

    Example:
        >>> role = Role(observation_size=4, action_low=(-1.0, -1.0), action_high=(1.0, 1.0), position=(0, 1))
        >>> spec = JointSpec({"left": "arm", "right": "arm"}, {"arm": role}, dt=0.1)
        >>> spec
        JointSpec(2 agents: left, right; O=4 A=2 D=6; dt=0.1 s)
        >>> stacked, mask = spec.stack_observations({"right": np.ones(4)})
        >>> stacked.shape, mask.tolist()
        ((2, 4), [False, True])
    """

    agents: dict[str, str]
    roles: dict[str, Role]
    dt: float = 1.0
    env_id: str | None = None
    env_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.agents:
            raise ValueError("a JointSpec needs at least one agent.")
        if not all(isinstance(name, str) for name in (*self.agents, *self.roles)):
            raise ValueError(f"agents {list(self.agents)}, roles {list(self.roles)}; their names are words.")
        unknown = sorted(set(self.agents.values()) - set(self.roles))
        if unknown:
            raise ValueError(f"agents have roles {unknown} that are not in roles {sorted(self.roles)}; add them.")
        if not 0 < self.dt < float("inf"):
            raise ValueError(f"dt={self.dt}; the time between two steps is a positive number of seconds.")

    def __repr__(self) -> str:
        names = list(self.agents)
        shown = ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])
        sizes = f"O={self.observation_size} A={self.action_size} D={self.size}"
        return f"JointSpec({len(names)} agents: {shown}; {sizes}; dt={self.dt:g} s)"

    @property
    def names(self) -> tuple[str, ...]:
        """The agents, in the order of every N axis."""
        return tuple(self.agents)

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.agents)

    @cached_property
    def observation_size(self) -> int:
        """O, the width of the widest agent's observation."""
        return max(role.observation_size for role in self.roles.values())

    @cached_property
    def action_size(self) -> int:
        """A, the width of the widest agent's action."""
        return max(role.action_size for role in self.roles.values())

    @property
    def size(self) -> int:
        """D = O + A, the width of a cell."""
        return self.observation_size + self.action_size

    @cached_property
    def role_index(self) -> Int[np.ndarray, "N"]:
        """Each agent's role as an index into ``roles``."""
        order = list(self.roles)
        return np.array([order.index(role) for role in self.agents.values()])

    def role_of(self, agent: str) -> Role:
        """What this agent observes and does. Raises ``KeyError`` for a stranger."""
        return self.roles[self.agents[agent]]

    @cached_property
    def feature_mask(self) -> Bool[np.ndarray, "N D"]:
        """Which entries of a cell exist for each agent (narrower agents are padded)."""
        O = self.observation_size
        entry = np.arange(self.size)
        rows = [
            (entry < role.observation_size) | ((entry >= O) & (entry < O + role.action_size))
            for role in map(self.role_of, self.names)
        ]
        return np.stack(rows)

    @cached_property
    def static_mask(self) -> Bool[np.ndarray, "N D"]:
        """Which entries of a cell stay the same during an episode."""
        return np.stack([np.isin(np.arange(self.size), self.role_of(name).static) for name in self.names])

    @cached_property
    def action_bounds(self) -> tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "N A"]]:
        """Lowest and highest action of each agent; padded entries are bounded by 0 and 0."""
        low, high = np.zeros((2, self.num_agents, self.action_size), np.float32)
        for index, role in enumerate(map(self.role_of, self.names)):
            low[index, : role.action_size], high[index, : role.action_size] = role.action_low, role.action_high
        return low, high

    def stack_observations(
        self, observations: Mapping[str, Any]
    ) -> tuple[Float[np.ndarray, "N O"], Bool[np.ndarray, "N"]]:
        """Stacks {agent: observation}; an agent without a key is absent, a NaN entry is unknown.

        Raises:
            ValueError: an agent that the spec does not have, or an observation of another width.
        """
        return self._stack(observations, "observation")

    def stack_actions(self, actions: Mapping[str, Any]) -> tuple[Float[np.ndarray, "N A"], Bool[np.ndarray, "N"]]:
        """Stacks {agent: action}; an agent without a key is absent, a choice may be its number.

        Raises as ``stack_observations``.
        """
        whole = {
            name: _one_hot(name, action, self.role_of(name).action_size) if self._chooses(name, action) else action
            for name, action in actions.items()
        }
        return self._stack(whole, "action")

    def _chooses(self, name: str, action: Any) -> bool:
        """Whether an agent's action is a choice that is given as its number."""
        return name in self.agents and self.role_of(name).discrete and np.ndim(action) == 0

    def _stack(self, values: Mapping[str, Any], what: str) -> tuple[np.ndarray, np.ndarray]:
        """Stacks observations or actions (``what`` says which), padded to the widest agent's."""
        foreign = [name for name in values if name not in self.agents]
        if foreign:
            raise ValueError(
                f"{what}s of agents {foreign}, but the spec has {list(self.agents)}; rename with JointSpec.rename, or "
                "plan for a larger team with planner.for_agents(env.joint_spec)."
            )
        size = f"{what}_size"
        stacked = np.zeros((self.num_agents, getattr(self, size)), np.float32)
        mask = np.zeros(self.num_agents, bool)
        for index, name in enumerate(self.agents):
            if name not in values:
                continue
            expected = getattr(self.role_of(name), size)
            try:
                value = np.asarray(values[name], np.float32)
            except (TypeError, ValueError) as error:
                told = f"{what} of agent {name!r} is {values[name]!r:.60}"
                raise ValueError(f"{told}, expected {expected} numbers.") from error
            if value.shape != (expected,):
                raise ValueError(f"{what} of agent {name!r} has shape {value.shape}, expected ({expected},).")
            stacked[index, :expected], mask[index] = value, True
        return stacked, mask

    def unstack_observations(
        self, observations: Float[np.ndarray, "N O"], agent_mask: Bool[np.ndarray, "N"]
    ) -> Observations:
        """{agent: observation} of the present agents."""
        rows = zip(self.agents, observations, agent_mask, strict=True)
        return {name: row[: self.role_of(name).observation_size] for name, row, there in rows if there}

    def unstack_actions(
        self,
        actions: Float[np.ndarray, "N A"],
        agent_mask: Bool[np.ndarray, "N"],
        observations: Float[np.ndarray, "N O"] | None = None,
    ) -> Actions:
        """{agent: action} of the present agents, within the action bounds.

        A discrete action is the one-hot vector of the largest entry, among the choices that observations call legal.
        """
        bounded = np.clip(actions, *self.action_bounds)
        taken = {}
        for i, (name, role) in enumerate(zip(self.agents, map(self.role_of, self.agents), strict=True)):
            if agent_mask[i]:
                taken[name] = bounded[i, : role.action_size]
                if role.discrete:
                    legal = None if observations is None else observations[i, list(role.legal)]
                    taken[name] = _likeliest(actions[i, : role.action_size], legal)
        return taken

    def rename(self, names: Mapping[str, str]) -> Self:
        """The same spec with other agent names, e.g. ``spec.rename({"left": "robot_0"})``."""
        missing = [name for name in names if name not in self.agents]
        if missing:
            raise ValueError(f"cannot rename {missing}: the spec has agents {list(self.agents)}.")
        agents = {names.get(name, name): role for name, role in self.agents.items()}
        if len(agents) != len(self.agents):
            raise ValueError(f"renaming by {dict(names)} gives two agents the same name; choose distinct names.")
        return dataclasses.replace(self, agents=agents)

    def among(self, agents: Sequence[str]) -> Self:
        """The same spec with some of its agents alone. Raises ``ValueError`` for others."""
        if others := [name for name in agents if name not in self.agents]:
            raise ValueError(f"agents {others} are not in the team; it has {list(self.agents)}.")
        return dataclasses.replace(self, agents={name: self.agents[name] for name in agents})

    def check_same_roles(self, other: "JointSpec", mine: str, theirs: str) -> None:
        """Raises ``ValueError`` unless ``other`` has the same roles and time step (number and names may differ)."""
        for name in dict.fromkeys(other.agents.values()):
            if name not in self.roles:
                raise ValueError(
                    f"{theirs} has agents of role {name!r}, but {mine} knows {list(self.roles)}; they do not mix."
                )
            if other.roles[name] != self.roles[name]:
                ours, others = _differing(self.roles[name], other.roles[name])
                raise ValueError(
                    f"role {name!r}: {mine} has {ours}, {theirs} has {others}; match them (data that are imported take "
                    "on their environment's by --env)."
                )
        if not np.isclose(self.dt, other.dt, rtol=1e-3):
            raise ValueError(f"{mine} has dt={self.dt:g} s, but {theirs} dt={other.dt:g} s; resample the data.")

    def for_agents(self, other: "JointSpec") -> "JointSpec":
        """The agents of ``other``, of the same roles, with these roles in their order and this time step."""
        roles = {
            name: other.roles[name] if other.roles.get(name) == role else role for name, role in self.roles.items()
        }
        return JointSpec(other.agents, roles, self.dt, other.env_id, other.env_options)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; ``from_dict`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises ``ValueError`` naming what is missing or of the wrong kind."""
        try:
            kinds = {"observation_size": int, "radius": float, "discrete": bool}
            roles = {
                str(name): Role(**role | {key: kind(role[key]) for key, kind in kinds.items()})
                for name, role in data["roles"].items()
            }
            agents = {str(name): str(role) for name, role in data["agents"].items()}
            env_id = None if data["env_id"] is None else str(data["env_id"])
            return cls(agents, roles, float(data["dt"]), env_id, dict(data["env_options"]))
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"not a JointSpec ({type(error).__name__}: {error}); expected agents, roles, dt, env_id, env_options."
            ) from error


def seen_by_egos(observations: Observations, partners: Sequence[str], spec: JointSpec) -> Observations:
    """The observations as the egos have them: static entries of partners, such as their goals, are unknown (NaN)."""
    seen = dict(observations)
    for name in partners:
        if name in seen:
            seen[name] = np.array(seen[name], np.float32)
            seen[name][list(spec.role_of(name).static)] = np.nan
    return seen


def sensed_by(
    name: str, observations: Observations, infos: Mapping[str, Any], spec: JointSpec
) -> Mapping[str, np.ndarray]:
    """What an agent senses of the others: what the environment's ``infos`` tell, else all but their static entries."""
    told = infos.get(name, {})
    if "sensed" in told:
        sensed: Mapping[str, np.ndarray] = told["sensed"]
        return sensed
    others = {other: seen for other, seen in observations.items() if other != name}
    return seen_by_egos(others, list(others), spec)


def _differing(one: Role, other: Role) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields by which two roles are not the same."""
    names = [field.name for field in dataclasses.fields(Role) if field.compare]
    names = [name for name in names if getattr(one, name) != getattr(other, name)]
    first, second = ({name: getattr(role, name) for name in names} for role in (one, other))
    return first, second


def _one_hot(name: str, choice: Any, number: int) -> Float[np.ndarray, "A"]:
    """The one-hot vector of a choice that is given as its number."""
    if choice not in range(number):
        raise ValueError(f"action of agent {name!r} is {choice!r:.60}, expected a choice from 0 to {number - 1}.")
    return np.eye(number, dtype=np.float32)[int(choice)]


def _likeliest(action: Float[np.ndarray, "A"], legal: Float[np.ndarray, "_"] | None) -> Float[np.ndarray, "A"]:
    """One-hot of the largest entry, of the legal ones where any is known to be."""
    allowed = np.ones(len(action), bool) if legal is None or not (legal > 0.5).any() else legal > 0.5
    chosen = np.zeros_like(action)
    chosen[np.where(allowed, action, -np.inf).argmax()] = 1
    return chosen
