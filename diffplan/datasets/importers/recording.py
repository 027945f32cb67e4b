"""What every importer gives: who the agents are, and their episodes, to be read through as often as asked."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

MOST_AGENTS = 10_000
MOST_ENTRIES = 1_000_000  # of an observation or an action
MOST_COMPRESSED = 1_032  # bytes that deflate makes of one, at most
UNBOUNDED = (-1.0, 1.0)  # stands for bounds that the files do not tell, until all actions have been seen


@dataclass(frozen=True)
class Recording:
    """Somebody's episodes, not read yet.

    Args:
        spec: the agents; every episode has it.
        episodes: reads all episodes, from the first one on, each time it is called.
        source: where they come from, in words.
        notes: what a user should know about how they were understood.
        bounded: whether the action bounds in ``spec`` are known; else the data's own take their place.
    """

    spec: JointSpec
    episodes: Callable[[], Iterator[Trajectory]]
    source: str
    notes: tuple[str, ...] = ()
    bounded: bool = True

    def without(self, agents: Sequence[str]) -> Self:
        """The same episodes without some agents. Raises ``ValueError`` for one that is not there, or if none stays."""
        if not agents:
            return self
        missing = [name for name in agents if name not in self.spec.agents]
        if missing:
            raise ValueError(f"cannot drop {missing}: {self.source} has the agents {list(self.spec.agents)}.")
        kept = [name for name in self.spec.names if name not in agents]
        team = {name: self.spec.agents[name] for name in kept}
        roles = {name: role for name, role in self.spec.roles.items() if name in team.values()}
        return self._among(dataclasses.replace(self.spec, agents=team, roles=roles), kept)

    def of(self, spec: JointSpec) -> Self:
        """The same episodes as those of an environment with this spec: its roles, its names, its step.

        Agents are told apart by name, or where names differ by their order, which the notes tell then.

        Raises:
            ValueError: the environment has other agents, or they observe or do another number of entries.
        """
        by_name = {*self.spec.names} == {*spec.names}
        own = spec.names if by_name else self.spec.names  # in the environment's order
        ours, theirs = ([one.role_of(name) for name in names] for one, names in ((self.spec, own), (spec, spec.names)))
        widths = [[(role.observation_size, role.action_size) for role in roles] for roles in (ours, theirs)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"{self.source} has agents {list(own)} of so many (observed, acted) entries: {widths[0]}, the "
                f"environment {list(spec.names)} of {widths[1]}; name the environment, and its options, that the data "
                "are from, or leave agents out (drop_agents)."
            )
        if mixed := [
            name for name, one, other in zip(own, ours, theirs, strict=True) if one.discrete != other.discrete
        ]:
            raise ValueError(f"agents {mixed} choose in {self.source} or in the environment, but not in both.")
        notes = (*self.notes, f"bounds, positions, static entries and the step of {spec.dt:g} s are the environment's")
        if not by_name:
            notes += (f"agents {list(self.spec.names)} are taken for {list(spec.names)} of the environment",)
        return self._among(spec, own, notes=notes, bounded=True)

    def _among(self, spec: JointSpec, agents: Sequence[str], **others: Any) -> Self:
        """The episodes of these agents, which ``spec`` describes."""
        columns = [self.spec.names.index(name) for name in agents]
        return dataclasses.replace(
            self, spec=spec, episodes=lambda: (episode.among(spec, columns) for episode in self.episodes()), **others
        )


class Importer(Protocol):
    """One format; the fields of the class are what its files do not say."""

    def read(self) -> Recording:
        """Checks what can be checked without reading everything. Raises ``ValueError`` naming what is wrong where."""


def make_spec(
    source: Path,
    names: Sequence[str],
    widths: Sequence[tuple[int, int]],
    dt: float,
    roles: Sequence[str] = (),
    discrete: bool = False,
    legal: int = 0,
) -> JointSpec:
    """The spec of agents of these (observation, action) widths.

    Agents of equal widths share a role, unless ``roles`` names each one's. The action bounds are ``UNBOUNDED``, or 0
    and 1 where actions are ``discrete`` (one-hot); the last ``legal`` entries of an observation say which are legal.

    Raises:
        ValueError: too many agents, as many roles as there are no agents, or a role of agents of different widths.
    """
    check_team(len(names), source)
    for width in widths:
        check_widths(width, source)
    kinds = list(dict.fromkeys(widths))
    if not roles:
        roles = ["agent" if len(kinds) == 1 else f"agent_{kinds.index(width)}" for width in widths]
    if len(roles) != len(names):
        raise ValueError(f"roles={tuple(roles)} for the {len(names)} agents {list(names)} of {source}; name one each.")
    described: dict[str, Role] = {}
    for name, role, (observation, action) in zip(names, roles, widths, strict=True):
        low, high = (0.0, 1.0) if discrete else UNBOUNDED
        made = Role(
            observation,
            (low,) * action,
            (high,) * action,
            discrete=discrete,
            legal=tuple(range(observation - legal, observation)),
        )
        if described.setdefault(role, made) != made:
            raise ValueError(
                f"{name!r} of {source} has widths {(observation, action)}, other agents of role {role!r} have others; "
                "give it a role of its own."
            )
    return JointSpec(dict(zip(names, roles, strict=True)), described, dt)


def check_dt(dt: float | None) -> None:
    """Raises ``ValueError`` for a step that takes no time; None is for the files to say."""
    if dt is not None and not 0 < dt < float("inf"):
        raise ValueError(f"dt={dt:g}; a step takes a positive number of seconds.")


def check_team(number: int, source: Path) -> None:
    """Raises ``ValueError`` for a team larger than anything that one model could see at once."""
    if not 1 <= number <= MOST_AGENTS:
        raise ValueError(
            f"{source} has {number:,} agents in an episode, expected 1 to {MOST_AGENTS:,}; is the axis of agents (or "
            "the column that names them) another one, or should episodes be cut into shorter ones?"
        )


def check_widths(widths: Iterable[Any], source: Path) -> None:
    """Raises ``ValueError`` for an observation or action that is wider than anything that is recorded."""
    for width in widths:
        if not isinstance(width, int | np.integer) or not 0 <= width <= MOST_ENTRIES:
            raise ValueError(f"{source} tells of {width} entries, expected a whole number up to {MOST_ENTRIES:,}.")


def joint_episode(
    spec: JointSpec,
    observations: Iterable[np.ndarray],
    actions: Iterable[np.ndarray],
    rewards: np.ndarray,
    terminations: np.ndarray,
    agent_mask: np.ndarray | None = None,
    labels: dict[str, str | int | float | bool] | None = None,
) -> Trajectory:
    """Stacks each agent's observations [L + 1, its width] and actions [L, its width].

    ``rewards`` and ``terminations`` are [L, N]. Who is there at the last step and has not terminated was truncated.
    """
    rewards, terminations = np.asarray(rewards, np.float32), np.asarray(terminations, bool)
    L, N = rewards.shape
    mask = np.ones((L + 1, N), bool) if agent_mask is None else agent_mask
    truncations = np.zeros((L, N), bool)
    truncations[-1:] = mask[-2:-1] & ~terminations.any(0)
    return Trajectory(
        spec,
        _padded(observations, (L + 1, N, spec.observation_size)),
        _padded(actions, (L, N, spec.action_size)),
        rewards,
        terminations,
        truncations,
        mask,
        labels or {},
    )


def _padded(arrays: Iterable[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    padded = np.zeros(shape, np.float32)
    for index, array in enumerate(arrays):
        padded[:, index, : array.shape[-1]] = array
    return padded


HELD = "the observation after the last action is not in the files; the last one is repeated"


def held(rows: np.ndarray) -> np.ndarray:
    """The rows with the last one twice: what is observed after the last action, where nobody wrote it down."""
    return np.concatenate([rows, rows[-1:]])


def check_finite(array: np.ndarray, source: object, first_row: int = 0) -> np.ndarray:
    """The array [rows, ...]. Raises ``ValueError`` that names row and column of the first number that is not finite."""
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.argwhere(~finite)
        row, *column = bad[0].tolist()
        where = f", column {', '.join(map(str, column))}" if column else ""
        rows = len(np.unique(bad[:, 0]))
        raise ValueError(
            f"{source}: row {first_row + row}{where} is {array[tuple(bad[0])]} ({rows} such rows from there on); "
            "repair or leave out these rows, or name the value that stands for absent agents (pad_value) where the "
            "format has one."
        )
    return array


def one_hot(choices: np.ndarray, number: int, source: object, first_row: int = 0) -> np.ndarray:
    """Integers 0 .. number - 1 as one-hot float32 rows. Raises ``ValueError`` that names the first one outside."""
    outside = np.argwhere((choices < 0) | (choices >= number) | (choices != np.floor(choices)))
    if len(outside):
        value = choices[tuple(outside[0])]
        raise ValueError(
            f"{source}: row {first_row + outside[0][0]} has the action {value}, expected a whole number from 0 to "
            f"{number - 1}; is the number of actions right?"
        )
    rows = np.zeros((*choices.shape, number), np.float32)
    np.put_along_axis(rows, choices.astype(np.int64)[..., None], 1.0, -1)
    return rows
