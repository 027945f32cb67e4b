"""Tables of tracks, CSV or Parquet: one row an agent and time, with columns such as time, agent, x, y."""

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

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
_JITTER_OF_DT = 0.25  # the same where the step is told: cameras and clocks are not that exact


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
        velocity: which observed columns are the velocity; by default those called as the position's, with a v before.
        units: of the position columns (and of the velocity columns, a second): m, cm, mm, km, ft or in.
        rate: how many of the time column's units make a second: 25 where it counts frames of a film, 1000 for ms.
        dt: seconds a step, of which times may be off by a quarter; by default the median time between two rows.
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
        if self.units not in METRES:
            raise ValueError(f"units={self.units!r}; choose one of {', '.join(METRES)}.")
        check_pieces(self.frames, self.stride)
        source = Path(self.source)
        words = {name for name in (self.agent, self.episode, self.role) if name is not None}
        sheets = [_sheet(path, words) for path in _paths(source)]
        observed = self._observed(sheets)
        position = self.position or tuple(name for name in ("x", "y", "z") if name in observed)
        usual = tuple(f"v{name}" for name in position)
        velocity = self.velocity or (usual if {*usual} <= {*observed} else ())
        _check_known(source, "position", position, observed)
        _check_known(source, "velocity", velocity, observed)
        if self.units != "m" and not (position or velocity):
            raise ValueError(
                f"units={self.units!r}, but none of the columns {observed} is known to be a position; say which are, "
                "e.g. position=('X', 'Y') (--position X Y)."
            )
        groups = [group for sheet in sheets for group in self._recordings(sheet)]
        times = [sheet.finite(self.time, rows) for sheet, rows, _ in groups]
        dt = self.dt or _median_step(source, times) / self.rate
        scaled = {*position, *velocity}
        recordings = [self._tracks(group, observed, scaled, dt) for group in groups]
        for one in recordings:
            one.check_times(dt)
            one.check_roles()
            one.check_speed([observed.index(name) for name in position], dt, self.units)
        pieces = cut(recordings, self.frames, self.stride, self.least, self.complete, source)
        role = role_of(observed, len(self.actions), position, velocity)
        spec = team(pieces, self.anonymous, role, dt, source)

        def episodes() -> Iterator[Trajectory]:
            return (episode(spec, piece, self.anonymous) for piece in pieces)

        notes = (f"observed columns: {', '.join(observed)}", f"one step is {dt:g} s", *_rounding(sheets, observed))
        notes += (f"columns of the position: {', '.join(position) or 'none'}",)
        notes += (f"columns of the velocity: {', '.join(velocity)}",) if velocity else ()
        if self.episode is None:
            notes += tuple(_names_a_recording(recordings, observed))
        notes += tuple(note for note in map(_unpaid, recordings) if note)
        if self.rate == 1 and all(np.array_equal(time, np.round(time)) for time in times):
            notes += (f"all of {self.time} are whole numbers: if they count frames, say how many a second has (rate)",)
        return Recording(spec, episodes, f"table {source.name}", notes, bounded=not self.actions)

    def _observed(self, sheets: list["_Sheet"]) -> list[str]:
        """The columns that agents observe; all columns that are asked for are in every table."""
        named = [self.time, self.agent, self.episode, self.role, *self.observations, *self.actions, self.reward]
        for sheet in sheets:
            missing = [name for name in named if name is not None and name not in sheet.columns]
            if missing:
                remedy = "say which is which, e.g. time='frame', agent='id' (--time frame --agent id)"
                if len(sheet.columns) == 1 and sheet.path.suffix == ".csv":
                    remedy = "separate columns by commas"
                raise ValueError(f"{sheet.path} has no columns {missing}; it has {list(sheet.columns)}: {remedy}.")
            lists = [name for name in named if name is not None and sheet.columns[name].ndim > 1]
            if lists:
                raise ValueError(
                    f"{sheet.path}: the columns {lists} hold lists; write each number into a column of its own."
                )
        first, *others = sheets
        for other in others:
            if list(other.columns) != list(first.columns):
                raise ValueError(
                    f"{other.path} has the columns {list(other.columns)}, {first.path.name} {list(first.columns)}; "
                    "import them apart."
                )
        if self.observations:
            return list(self.observations)
        taken = {self.time, self.agent, self.episode, self.role, self.reward, *self.actions}
        free = [name for name in first.columns if name not in taken]
        for sheet in sheets:
            for name in free:
                sheet.check_mixed(name)
        columns = {name: [sheet.columns[name] for sheet in sheets] for name in free}
        observed = [name for name in free if all(one.dtype.kind == "f" and one.ndim == 1 for one in columns[name])]
        if not observed:
            raise ValueError(
                f"{first.path} has no column of numbers for agents to observe; it has {list(first.columns)}."
            )
        return observed

    def _recordings(self, sheet: "_Sheet") -> Iterator["_Group"]:
        """The rows of each episode in a file."""
        rows = np.arange(len(sheet.line))
        if self.episode is None:
            yield sheet, rows, sheet.path.stem
            return
        words = sheet.words(self.episode, rows)
        names, first = np.unique(words, return_index=True)
        for name in names[np.argsort(first)]:
            yield sheet, np.flatnonzero(words == name), str(name)

    def _tracks(self, group: "_Group", observed: Sequence[str], scaled: set[str], dt: float) -> Tracks:
        sheet, rows, name = group
        path, time = sheet.path, sheet.finite(self.time, rows) / self.rate
        steps = (time - time.min()) / dt
        off = np.flatnonzero(np.abs(steps - np.round(steps)) > (_JITTER if self.dt is None else _JITTER_OF_DT))
        if len(off):
            line, told = sheet.line[rows[off[0]]], f"{self.time}={time[off[0]] * self.rate:g}"
            raise ValueError(
                f"{path}: line {line} is of {told}, between two steps of {dt:g} s ({len(off)} such lines); resample "
                "the data, or give the right dt."
            )
        order = np.argsort(np.round(steps), kind="stable")
        rows = rows[order]
        metres = METRES[self.units]
        values = [sheet.finite(one, rows) * (metres if one in scaled else 1) for one in observed]
        names, who = np.unique(sheet.words(self.agent, rows), return_inverse=True)
        acted = [sheet.numbers(one, rows) for one in self.actions]
        count = len(rows)
        return Tracks(
            path,
            name,
            sheet.line[rows],
            whole_steps(path, steps[order], sheet.line[rows]),
            who,
            tuple(map(str, names)),
            np.full(count, "agent") if self.role is None else sheet.words(self.role, rows),
            np.stack(values, 1).astype(np.float32),
            np.stack(acted, 1).astype(np.float32) if acted else np.zeros((count, 0), np.float32),
            np.zeros(count, np.float32) if self.reward is None else sheet.numbers(self.reward, rows).astype(np.float32),
        )


@dataclass(frozen=True)
class _Sheet:
    """A file's columns: float64 where all entries are numbers or empty (NaN), else words; and each row's line."""

    path: Path
    columns: dict[str, np.ndarray]
    line: Int[np.ndarray, "R"]

    def words(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of names. Raises ``ValueError`` that names the first line in which there is none."""
        words = np.array([agent_name(value) for value in self.columns[name][rows].tolist()])
        blank = np.flatnonzero((words == "") | (words == "nan"))
        if len(blank):
            line = self.line[rows[blank[0]]]
            raise ValueError(f"{self.path}: line {line} has no {name!r} ({len(blank)} such lines); fill it in.")
        return words

    def numbers(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of numbers. Raises ``ValueError`` that names the first line in which there is none."""
        column = self.columns[name][rows]
        if column.dtype.kind == "f":
            return np.asarray(column)
        values = [_number(word) for word in column]
        if None in values:
            bad = values.index(None)
            raise ValueError(
                f"{self.path}: line {self.line[rows[bad]]}, column {name!r} is {str(column[bad])!r}, expected a number."
            )
        return np.array(values, np.float64)

    def finite(self, name: str, rows: np.ndarray) -> np.ndarray:
        values = self.numbers(name, rows)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"{self.path}: line {self.line[rows[bad[0]]]}, column {name!r} is {values[bad[0]]} ({len(bad)} such "
                "lines); remove these lines (the agent is then absent), fill them in, or leave the column out with "
                "observations=."
            )
        return values

    def check_mixed(self, name: str) -> None:
        """Raises ``ValueError`` for a column of words most of which are numbers: a bad cell shall not cost a column."""
        column = self.columns[name]
        if column.dtype.kind == "f":
            return
        bad = [row for row, word in enumerate(column) if _number(word) is None]
        if 2 * len(bad) < len(column):
            raise ValueError(
                f"{self.path}: line {self.line[bad[0]]}, column {name!r} is {str(column[bad[0]])!r}, though most lines "
                f"have numbers there ({len(bad)} such lines); mend or remove them, or say which columns agents observe "
                "(observations=)."
            )


_Group = tuple[_Sheet, np.ndarray, str]


def _names_a_recording(recordings: Sequence[Tracks], observed: Sequence[str]) -> Iterator[str]:
    """Columns of whole numbers that stay what they are for an agent, and tell some agents from others."""
    agents = np.cumsum([0, *(len(one.names) for one in recordings)])[:-1]
    everybody = np.concatenate([start + one.agent for start, one in zip(agents, recordings, strict=True)])
    _, first, who = np.unique(everybody, return_index=True, return_inverse=True)
    for column, name in enumerate(observed):
        values = np.concatenate([one.values[:, column] for one in recordings])
        several = 1 < len(np.unique(values)) < len(first)
        if several and (values == np.round(values)).all() and (values == values[first][who]).all():
            yield f"{name} is whole and never changes for an agent: if it names a recording, say --episode {name}"


def _paths(source: Path) -> list[Path]:
    kinds = (".csv", ".tsv", ".parquet")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in kinds) if source.is_dir() else [source]
    if not paths or not all(path.is_file() and path.suffix.lower() in kinds for path in paths):
        raise wrong_format(source, "table", "a .csv, .tsv or .parquet file, or a folder of these")
    return paths


def _sheet(path: Path, words: Collection[str]) -> _Sheet:
    if path.suffix.lower() == ".parquet":
        columns = read_parquet(path, words=words)
        for name, column in columns.items():
            if column.dtype.kind == "U" and name not in words:
                columns[name] = _typed(column.tolist())
        line = np.arange(len(next(iter(columns.values()), ()))) + 2  # as if the first line named the columns
    else:
        columns, line = _read_csv(path, words)
    if not len(line):
        raise ValueError(f"{path} has no rows; expected one an agent and time.")
    return _Sheet(path, columns, line)


def _read_csv(path: Path, words: Collection[str]) -> tuple[dict[str, np.ndarray], Int[np.ndarray, "R"]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            lines = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table in UTF-8 ({error}); export it anew.") from error
    names = [name.strip() for name in lines.pop(0)[1]] if lines else []
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"{path}: the first line {names[:12]} must name every column, each once.")
    for number, row in lines:
        if len(row) != len(names):
            raise ValueError(
                f"{path}: line {number} has {len(row)} columns, the first line {len(names)}; mend the line."
            )
    cells = {name: [row[column] for _, row in lines] for column, name in enumerate(names)}
    columns = {name: _names(column) if name in words else _typed(column) for name, column in cells.items()}
    return columns, np.array([number for number, _ in lines], np.int64)


def _names(words: list[str]) -> np.ndarray:
    """Names stay as they are written, 01 is not 1; only a number that became a float on its way, 3.0, is "3"."""
    return np.array([re.sub(r"^(0|[1-9]\d*)\.0$", r"\1", word.strip()) for word in words])


def _typed(words: list[str]) -> np.ndarray:
    numbers = [_number(word) for word in words]
    return np.array(words) if None in numbers else np.array(numbers)


def _number(word: str) -> float | None:
    """What a cell says; NaN where it is empty, None where it is no number."""
    try:
        return float(word) if word.strip() else np.nan
    except ValueError:
        return None


def _check_known(source: Path, what: str, columns: Sequence[str], observed: Sequence[str]) -> None:
    missing = [name for name in columns if name not in observed]
    if missing:
        raise ValueError(f"{source}: {what} columns {missing} are not observed; observed are {list(observed)}.")


def _median_step(source: Path, times: list[np.ndarray]) -> float:
    steps = np.concatenate([np.diff(np.unique(time)) for time in times])
    if not len(steps):
        raise ValueError(f"{source}: the time is the same in all lines; expected seconds, two or more different ones.")
    return float(np.median(steps))


def _rounding(sheets: list[_Sheet], observed: Sequence[str]) -> Iterator[str]:
    """Says where float32 is too coarse for the numbers, such as map coordinates."""
    for name in observed:
        columns = [sheet.numbers(name, np.arange(len(sheet.line))) for sheet in sheets]
        lost = max(float(np.nanmax(np.abs(one - one.astype(np.float32)), initial=0)) for one in columns)
        if lost > 1e-3:
            yield f"column {name!r} loses up to {lost:.2g} as float32; subtract an offset first"


def _unpaid(tracks: Tracks) -> str:
    """Says what is paid in rows that no other row of the agent follows: there is no step that it could belong to."""
    order = np.lexsort((tracks.frame, tracks.agent))
    frame, agent, paid = tracks.frame[order], tracks.agent[order], np.nan_to_num(tracks.rewards[order])
    goes_on = np.append((agent[1:] == agent[:-1]) & (frame[1:] == frame[:-1] + 1), False)
    lost = paid[~goes_on & (paid != 0)]
    if not len(lost):
        return ""
    return (
        f"{tracks.name}: {len(lost)} rewards, {lost.sum():g} in all, are left out: they stand in an agent's last row "
        "(or the last before a gap); write what a step is paid into the row where it begins"
    )
