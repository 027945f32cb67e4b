"""Tables of tracks, CSV or Parquet: one row an agent and time, with columns such as time, agent, x, y."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from diffplan.datasets.importers.parquet import read_parquet
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import Recording, check_dt
from diffplan.datasets.importers.tracks import (
    METRES,
    Tracks,
    agent_name,
    check_pieces,
    cut,
    episode,
    role_of,
    team,
    whole_steps,
)
from diffplan.trajectory import Trajectory

_JITTER = 0.05  # of a step, how far a time may be off the grid


@dataclass(frozen=True)
class Table:
    """Imports tracks from a table. Where an agent has no row it is absent; gaps are kept and reported.

    Args:
        source: a .csv, .tsv or .parquet file, or a folder of files of one of these kinds (one recording each).
        time: column of the time (s).
        agent: column that names the agent.
        episode: column that names the episode, where a file holds several.
        role: column that names the agent's kind; by default all are of one kind, "agent".
        observations: columns that an agent observes; by default all columns of numbers that have no other meaning.
        actions: columns of what an agent does at that time; by default none: data without actions are fine.
        reward: column of what is paid at that time.
        position: which observed columns are the position; by default those called x, y and z.
        velocity: which observed columns are the velocity.
        units: of the position columns (and of the velocity columns, a second): m, cm, mm, km, ft or in.
        rate: how many of the time column's units make a second: 25 where it counts frames of a film, 1000 for ms.
        dt: seconds a step; by default the median time between two rows.
        frames: cut episodes into pieces of so many frames.
        stride: frames between the starts of two pieces; by default ``frames``.
        anonymous: agents come and go: an episode has as many places as it needs; the label "ids" says who took them.
        complete: only agents that are there in all frames of a piece.
        least: pieces with fewer agents are left out.
    """

    source: Path
    time: str = "time"
    agent: str = "agent"
    episode: str | None = None
    role: str | None = None
    observations: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    reward: str | None = None
    position: tuple[str, ...] = ()
    velocity: tuple[str, ...] = ()
    units: Literal["m", "cm", "mm", "km", "ft", "in"] = "m"
    rate: float = 1.0
    dt: float | None = None
    frames: int | None = None
    stride: int | None = None
    anonymous: bool = False
    complete: bool = False
    least: int = 1

    def read(self) -> Recording:
        check_dt(self.dt)
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate={self.rate:g}; a second has a positive number of the time column's units.")
        check_pieces(self.frames, self.stride)
        source = Path(self.source)
        tables = {path: _columns(path) for path in _paths(source)}
        observed = self._observed(tables)
        position = self.position or tuple(name for name in ("x", "y", "z") if name in observed)
        _check_known(source, "position", position, observed)
        _check_known(source, "velocity", self.velocity, observed)
        groups = [group for path, table in tables.items() for group in self._recordings(path, table)]
        times = [_finite(path, self.time, table, rows) for path, table, rows, _ in groups]
        dt = self.dt or _median_step(source, times) / self.rate
        scaled = {*position, *self.velocity}
        recordings = [self._tracks(group, observed, scaled, dt) for group in groups]
        for one in recordings:
            one.check_times(dt)
            one.check_speed([observed.index(name) for name in position], dt, self.units)
        pieces = [p for one in recordings for p in cut(one, self.frames, self.stride, self.least, self.complete)]
        if not pieces:
            raise ValueError(f"{source} has no piece of {self.frames} frames with {self.least} agents; ask for fewer.")
        role = role_of(observed, len(self.actions), position, self.velocity)
        spec = team(pieces, self.anonymous, role, dt, source)

        def episodes() -> Iterator[Trajectory]:
            return (episode(spec, piece, self.anonymous) for piece in pieces)

        notes = (f"observed columns: {', '.join(observed)}", f"one step is {dt:g} s", *_rounding(tables, observed))
        if self.rate == 1 and all(np.array_equal(time, np.round(time)) for time in times):
            notes += (f"all of {self.time} are whole numbers: if they count frames, say how many a second has (rate)",)
        return Recording(spec, episodes, f"table {source.name}", notes, bounded=not self.actions)

    def _observed(self, tables: dict[Path, dict[str, np.ndarray]]) -> list[str]:
        """The columns that agents observe; all columns that are asked for are in every table."""
        named = [self.time, self.agent, self.episode, self.role, *self.observations, *self.actions, self.reward]
        for path, table in tables.items():
            missing = [name for name in named if name is not None and name not in table]
            if missing:
                raise ValueError(
                    f"{path} has no columns {missing}; it has {list(table)}: say which is which, e.g. "
                    "time='frame', agent='id' (--time frame --agent id)."
                )
            lists = [name for name in named if name is not None and table[name].ndim > 1]
            if lists:
                raise ValueError(f"{path}: the columns {lists} hold lists; write each number into a column of its own.")
        (first, table), *others = tables.items()
        taken = {self.time, self.agent, self.episode, self.role, self.reward, *self.actions}
        observed = list(self.observations) or [
            name
            for name, column in table.items()
            if name not in taken and column.dtype.kind == "f" and column.ndim == 1
        ]
        if not observed:
            raise ValueError(f"{first} has no column of numbers for agents to observe; it has {list(table)}.")
        for path, other in others:
            if list(other) != list(table):
                raise ValueError(
                    f"{path} has the columns {list(other)}, {first.name} {list(table)}; import them apart."
                )
        return observed

    def _recordings(self, path: Path, table: dict[str, np.ndarray]) -> Iterator["_Group"]:
        """The rows of each episode in a file."""
        if self.episode is None:
            yield path, table, np.arange(len(table[self.time])), path.stem
            return
        words = _words(path, self.episode, table, np.arange(len(table[self.time])))
        names, first = np.unique(words, return_index=True)
        for name in names[np.argsort(first)]:
            yield path, table, np.flatnonzero(words == name), str(name)

    def _tracks(self, group: "_Group", observed: Sequence[str], scaled: set[str], dt: float) -> Tracks:
        path, table, rows, name = group
        time = _finite(path, self.time, table, rows) / self.rate
        steps = (time - time.min()) / dt
        off = np.flatnonzero(np.abs(steps - np.round(steps)) > _JITTER)
        if len(off):
            line, told = rows[off[0]] + 2, f"{self.time}={time[off[0]] * self.rate:g}"
            raise ValueError(
                f"{path}: line {line} is of {told}, between two steps of {dt:g} s ({len(off)} such lines); resample "
                "the data, or give the right dt."
            )
        order = np.argsort(np.round(steps), kind="stable")
        rows = rows[order]
        metres = METRES[self.units]
        values = [_finite(path, one, table, rows) * (metres if one in scaled else 1) for one in observed]
        names, who = np.unique(_words(path, self.agent, table, rows), return_inverse=True)
        acted = [_numeric(path, one, table, rows) for one in self.actions]
        count = len(rows)
        return Tracks(
            path,
            name,
            rows + 2,  # of the file; the first line names the columns
            whole_steps(path, steps[order], rows + 2),
            who,
            tuple(map(str, names)),
            np.full(count, "agent") if self.role is None else _words(path, self.role, table, rows),
            np.stack(values, 1).astype(np.float32),
            np.stack(acted, 1).astype(np.float32) if acted else np.zeros((count, 0), np.float32),
            np.zeros(count, np.float32)
            if self.reward is None
            else _numeric(path, self.reward, table, rows).astype(np.float32),
        )


_Group = tuple[Path, dict[str, np.ndarray], np.ndarray, str]


def _paths(source: Path) -> list[Path]:
    kinds = (".csv", ".tsv", ".parquet")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in kinds) if source.is_dir() else [source]
    if not paths or not all(path.is_file() and path.suffix.lower() in kinds for path in paths):
        raise wrong_format(source, "table", "a .csv, .tsv or .parquet file, or a folder of these")
    return paths


def _columns(path: Path) -> dict[str, np.ndarray]:
    """Columns by name: float64 where all entries are numbers or empty (NaN), else words."""
    columns = read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not len(next(iter(columns.values()), ())):
        raise ValueError(f"{path} has no rows; expected one an agent and time.")
    return columns


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",") if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table in UTF-8 ({error}); export it anew.") from error
    names = [name.strip() for name in lines.pop(0)] if lines else []
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"{path}: the first line {names[:12]} must name every column, each once.")
    for number, row in enumerate(lines, 2):
        if len(row) != len(names):
            raise ValueError(
                f"{path}: line {number} has {len(row)} columns, the first line {len(names)}; mend the line."
            )
    return {name: _typed([row[column] for row in lines]) for column, name in enumerate(names)}


def _typed(words: list[str]) -> np.ndarray:
    try:
        return np.array([float(word) if word.strip() else np.nan for word in words])
    except ValueError:
        return np.array(words)


def _words(path: Path, name: str, table: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """A column of names. Raises ``ValueError`` that names the first line in which there is none."""
    words = np.array([agent_name(value) for value in table[name][rows].tolist()])
    blank = np.flatnonzero((words == "") | (words == "nan"))
    if len(blank):
        raise ValueError(f"{path}: line {rows[blank[0]] + 2} has no {name!r} ({len(blank)} such lines); fill it in.")
    return words


def _numeric(path: Path, name: str, table: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """A column of numbers. Raises ``ValueError`` that names the first line in which there is none."""
    column = table[name]
    if column.dtype.kind == "f":
        return np.asarray(column[rows])
    for row in rows:
        try:
            float(column[row])
        except ValueError:
            raise ValueError(
                f"{path}: line {row + 2}, column {name!r} is {str(column[row])!r}, expected a number."
            ) from None
    return column[rows].astype(np.float64)


def _finite(path: Path, name: str, table: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    values = _numeric(path, name, table, rows)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{path}: line {rows[bad[0]] + 2}, column {name!r} is {values[bad[0]]} ({len(bad)} such lines); remove "
            "these lines (the agent is then absent), fill them in, or leave the column out with observations=."
        )
    return values


def _check_known(source: Path, what: str, columns: Sequence[str], observed: Sequence[str]) -> None:
    missing = [name for name in columns if name not in observed]
    if missing:
        raise ValueError(f"{source}: {what} columns {missing} are not observed; observed are {list(observed)}.")


def _median_step(source: Path, times: list[np.ndarray]) -> float:
    steps = np.concatenate([np.diff(np.unique(time)) for time in times])
    if not len(steps):
        raise ValueError(f"{source}: the time is the same in all lines; expected seconds, two or more different ones.")
    return float(np.median(steps))


def _rounding(tables: dict[Path, dict[str, np.ndarray]], observed: Sequence[str]) -> Iterator[str]:
    """Says where float32 is too coarse for the numbers, such as map coordinates."""
    for name in observed:
        lost = max(
            float(np.nanmax(np.abs(t[name] - t[name].astype(np.float32)), initial=0))
            for t in tables.values()
            if t[name].dtype.kind == "f"
        )
        if lost > 1e-3:
            yield f"column {name!r} loses up to {lost:.2g} as float32; subtract an offset first"
