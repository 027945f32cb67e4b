"""Tracks, one row an agent and time, as tracking data come: put on a grid of frames, and cut into episodes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from diffplan.datasets.importers.recording import UNBOUNDED, check_team, joint_episode
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "km": 1000.0, "ft": 0.3048, "in": 0.0254}
FASTEST = 50.0  # m/s: what moves faster than this most of the time is measured in other units
MOST_FRAMES = 10_000_000  # of a recording
SPARSEST = 1_000  # frames a row, at most: what has more is of another time step
_MOST_BYTES = 2**31  # of one episode


@dataclass(frozen=True)
class Tracks:
    """Rows of one recording, sorted by frame.

    Args:
        path: the file, for messages.
        name: what the recording is called.
        line: where each row is in the file.
        frame: time as a number of steps.
        agent: who, as an index into ``names``.
        names: of the agents.
        role: of what kind, one a row.
        values: what is observed.
        actions: what is done at that step; may be of width 0.
        rewards: what is paid at that step.
    """

    path: Path
    name: str
    line: Int[np.ndarray, "R"]
    frame: Int[np.ndarray, "R"]
    agent: Int[np.ndarray, "R"]
    names: tuple[str, ...]
    role: np.ndarray
    values: Float[np.ndarray, "R O"]
    actions: Float[np.ndarray, "R A"]
    rewards: Float[np.ndarray, "R"]

    def check_times(self, dt: float) -> None:
        """Raises ``ValueError`` where an agent has two rows of one time, or fewer than two frames are there."""
        order = np.lexsort((self.line, self.agent, self.frame))
        frame, agent, line = self.frame[order], self.agent[order], self.line[order]
        twice = np.flatnonzero((frame[1:] == frame[:-1]) & (agent[1:] == agent[:-1]))
        if len(twice):
            first = twice[0]
            raise ValueError(
                f"{self.path}: line {line[first + 1]} says of agent {self.names[agent[first]]!r} at step "
                f"{frame[first]} ({frame[first] * dt:g} s) what line {line[first]} says already "
                f"({len(twice)} such lines); keep one."
            )
        if self.frame[0] == self.frame[-1]:
            raise ValueError(
                f"{self.path}: {self.name} has a single time, {self.frame[0] * dt:g} s; expected two or more."
            )

    def check_roles(self) -> None:
        """Raises ``ValueError`` naming the line from which on an agent is of another kind than before."""
        _, first, who = np.unique(self.agent, return_index=True, return_inverse=True)
        changed = np.flatnonzero(self.role != self.role[first][who])
        if len(changed):
            row = changed[0]
            name, kind, before = self.names[self.agent[row]], self.role[row], self.role[first][who][row]
            raise ValueError(
                f"{self.path}: line {self.line[row]} says that agent {name!r} is a {str(kind)!r}, before it was a "
                f"{str(before)!r} ({len(changed)} such lines); an agent has one role."
            )

    def check_speed(self, position: Sequence[int], dt: float, units: str) -> None:
        """Raises ``ValueError`` when nearly everything moves faster than anything that walks or drives."""
        order = np.lexsort((self.frame, self.agent))
        moved = np.diff(self.values[order][:, list(position)], axis=0)
        after = (self.agent[order][1:] == self.agent[order][:-1]) & (np.diff(self.frame[order]) == 1)
        if position and after.any():
            typical = float(np.median(np.hypot.reduce(moved[after], axis=1))) / dt
            if typical > FASTEST:
                raise ValueError(
                    f"{self.path}: agents move {typical:,.0f} m/s at the median with units={units!r} and dt={dt:g} s; "
                    f"name the units of the positions (one of {', '.join(METRES)}) or the right dt."
                )

    @cached_property
    def starts(self) -> Int[np.ndarray, "_"]:
        """Where the rows of each frame begin."""
        return np.searchsorted(self.frame, np.arange(self.frame[0], self.frame[-1] + 2))


@dataclass(frozen=True)
class Piece:
    """Some frames of a recording that make an episode, their rows, and who is in them, in order of first appearance."""

    tracks: Tracks
    start: int
    frames: int
    rows: slice
    agents: tuple[int, ...]
    roles: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tracks.names[agent] for agent in self.agents)

    @property
    def places(self) -> tuple[str, ...]:
        """A place for each agent: walker_0, walker_1, ..."""
        return tuple(f"{kind}_{self.roles[:index].count(kind)}" for index, kind in enumerate(self.roles))


def whole_steps(path: Path, steps: Float[np.ndarray, "R"], line: Int[np.ndarray, "R"]) -> Int[np.ndarray, "R"]:
    """The nearest whole numbers. Raises ``ValueError`` naming the line of a time that is far from all others."""
    after = steps - steps.min()
    if after.max() > MOST_FRAMES:
        raise ValueError(
            f"{path}: line {line[after.argmax()]} is {after.max():.3g} steps after the first, expected at most "
            f"{MOST_FRAMES:,} in a recording; mend the time, or give the right dt."
        )
    return np.round(steps).astype(np.int64)


def agent_name(value: object) -> str:
    """A name that may have been read as a number: 3.0 is "3"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def check_pieces(frames: int | None, stride: int | None) -> None:
    """Raises ``ValueError`` for pieces that are no episodes, or do not go on, or a stride of no pieces."""
    if frames is None and stride is not None:
        raise ValueError(f"stride={stride} is of pieces; say how many frames these have, too (frames).")
    if frames is not None and frames < 2:
        raise ValueError(f"frames={frames}; an episode has at least two.")
    if stride is not None and stride < 1:
        raise ValueError(f"stride={stride}; pieces begin 1 frame or more apart.")


def cut(
    recordings: Sequence[Tracks], frames: int | None, stride: int | None, least: int, whole: bool, source: Path
) -> list[Piece]:
    """The pieces of ``frames`` frames, one every ``stride``, in which there are at least ``least`` agents.

    Without ``frames`` each whole recording is one piece. With ``whole`` only agents that are there in every frame of a
    piece count. Raises ``ValueError`` where there is no such piece.
    """
    frames_in_all = sum(int(tracks.frame[-1] - tracks.frame[0]) for tracks in recordings)
    if (rows := sum(len(tracks.frame) for tracks in recordings)) * SPARSEST < frames_in_all > MOST_FRAMES:
        raise ValueError(
            f"{source} has {rows:,} rows in {frames_in_all:,} frames, nearly all of them empty; mend the times, "
            "give the right dt, or say which rows make a recording."
        )
    pieces = [piece for tracks in recordings for piece in _pieces(tracks, frames, stride, least, whole)]
    if not pieces:
        raise ValueError(
            f"{source} has no piece of {frames or 'all its'} frames with {least} agents{' in all of them' * whole}; "
            "ask for fewer of either."
        )
    return pieces


def _pieces(tracks: Tracks, frames: int | None, stride: int | None, least: int, whole: bool) -> Iterator[Piece]:
    first, last = int(tracks.frame[0]), int(tracks.frame[-1])
    length = frames or last - first + 1
    for start in range(first, last - length + 2, stride or length):
        rows = slice(int(tracks.starts[start - first]), int(tracks.starts[start - first + length]))
        if rows.start == rows.stop:
            continue
        agents, index, counts = np.unique(tracks.agent[rows], return_index=True, return_counts=True)
        order = np.argsort(index)
        kept = [i for i in order.tolist() if not whole or counts[i] == length]
        if len(kept) >= least:
            roles = tracks.role[rows][index[kept]]
            yield Piece(tracks, start, length, rows, tuple(agents[kept].tolist()), tuple(map(str, roles)))


def team(pieces: Sequence[Piece], anonymous: bool, role: Role, dt: float, source: Path) -> JointSpec:
    """The agents of all pieces: by their names, or as many places of each role as are taken at most (``anonymous``)."""
    agents: dict[str, str] = {}
    for piece in pieces:
        for name, kind in zip(piece.places if anonymous else piece.names, piece.roles, strict=True):
            if agents.setdefault(name, kind) != kind:
                raise ValueError(
                    f"{source}: agent {name!r} is a {agents[name]!r} and a {kind!r}; an agent has one role."
                )
        check_team(len(agents), source)
    if anonymous:
        agents = dict(sorted(agents.items(), key=lambda item: (item[1], int(item[0].rsplit("_", 1)[1]))))
    spec = JointSpec(agents, dict.fromkeys(sorted(set(agents.values())), role), dt)
    longest = max(piece.frames for piece in pieces)
    if longest * spec.num_agents * spec.size * 4 > _MOST_BYTES:
        raise ValueError(
            f"{source}: an episode of {longest:,} frames and {spec.num_agents:,} agents does not fit into memory; cut "
            "it into pieces with frames= (and anonymous=True where agents come and go)."
        )
    return spec


def episode(spec: JointSpec, piece: Piece, anonymous: bool) -> Trajectory:
    """The piece on the grid of frames and agents; where an agent has no row, it is absent."""
    tracks, L, N = piece.tracks, piece.frames - 1, spec.num_agents
    place = {name: index for index, name in enumerate(spec.names)}
    column = np.full(len(tracks.names), -1)
    column[list(piece.agents)] = [place[name] for name in (piece.places if anonymous else piece.names)]
    rows = np.arange(piece.rows.start, piece.rows.stop)
    rows = rows[column[tracks.agent[rows]] >= 0]
    at = tracks.frame[rows] - piece.start, column[tracks.agent[rows]]
    grid = np.zeros((L + 1, N, spec.size + 1), np.float32)
    mask = np.zeros((L + 1, N), bool)
    mask[at] = True
    grid[at] = np.concatenate([tracks.values[rows], tracks.actions[rows], tracks.rewards[rows, None]], 1)
    done = grid[:-1, :, spec.observation_size :]
    done[~(mask[:-1] & mask[1:])] = 0  # no action is taken at an agent's last step
    _check_done(tracks, rows, at, done, spec)
    labels: dict[str, str | int | float | bool] = {"recording": tracks.name, "first_step": piece.start}
    if anonymous:
        labels["ids"] = " ".join(piece.names)
    observed = grid[..., : spec.observation_size]
    return joint_episode(
        spec,
        observed.swapaxes(0, 1),
        done[..., :-1].swapaxes(0, 1),
        done[..., -1],
        np.zeros((L, N), bool),
        mask,
        labels,
    )


def _check_done(
    tracks: Tracks, rows: np.ndarray, at: tuple[np.ndarray, ...], done: np.ndarray, spec: JointSpec
) -> None:
    """Raises ``ValueError`` naming the line in which an action or reward is missing, at a step that is not the last."""
    inside = at[0] < len(done)
    bad = np.flatnonzero(~np.isfinite(done[at[0][inside], at[1][inside]]).all(-1))
    if len(bad):
        line = tracks.line[rows[inside][bad[0]]]
        raise ValueError(
            f"{tracks.path}: line {line} has no finite action or reward ({len(bad)} such lines), though the agent goes "
            "on; fill them in, or leave these columns out."
        )


def role_of(columns: Sequence[str], actions: int, position: Sequence[str], velocity: Sequence[str] = ()) -> Role:
    """The role of agents that observe these columns and act by so many numbers."""
    low, high = UNBOUNDED
    places, moves = (tuple(columns.index(name) for name in named) for named in (position, velocity))
    return Role(len(columns), (low,) * actions, (high,) * actions, position=places, velocity=moves)
