"""ETH/UCY pedestrians (Pellegrini et al. 2009, Lerner et al. 2007) as text: ``frame  pedestrian  x  y``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffplan.datasets.importers.recognition import is_number, wrong_format
from diffplan.datasets.importers.recording import Recording, check_dt
from diffplan.datasets.importers.tracks import (
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


@dataclass(frozen=True)
class EthUcy:
    """Imports pedestrians' tracks in metres; they observe their position and have no action.

    The files are those of Social-GAN's and Trajectron++'s repositories: a line for each pedestrian in each frame.

    Pedestrians come and go, and their ids are unique within a file only: an episode has as many places
    (``pedestrian_0``, ...) as it needs, and its label ``ids`` says who took them.

    Args:
        source: a text file, or a folder of them (one recording each).
        frames: cut into pieces of so many frames (20 in the published protocol); by default a file is one episode.
        stride: frames between the starts of two pieces; by default ``frames``.
        complete: only pedestrians that are there in all frames of a piece.
        least: pieces with fewer pedestrians are left out.
        frame_step: how far the frame number goes on from one frame to the next.
        dt: seconds from one frame to the next.
    """

    source: Path
    frames: int | None = None
    stride: int | None = None
    complete: bool = False
    least: int = 1
    frame_step: int = 10
    dt: float = 0.4

    def read(self) -> Recording:
        check_dt(self.dt)
        source = Path(self.source)
        paths = sorted(source.glob("*.txt")) if source.is_dir() else [source]
        if not paths or not all(path.is_file() for path in paths):
            raise wrong_format(source, "eth_ucy", "text files of four columns: frame, pedestrian, x, y")
        check_pieces(self.frames, self.stride)
        if self.frame_step < 1:
            raise ValueError(f"frame_step={self.frame_step}; frame numbers go on by 1 or more.")
        recordings = [self._read(path) for path in paths]
        pieces = cut(recordings, self.frames, self.stride, self.least, self.complete, source)
        spec = team(pieces, True, role_of(("x", "y"), 0, ("x", "y")), self.dt, source)

        def episodes() -> Iterator[Trajectory]:
            return (episode(spec, piece, True) for piece in pieces)

        return Recording(spec, episodes, f"ETH/UCY pedestrians, {', '.join(path.stem for path in paths)}")

    def _read(self, path: Path) -> Tracks:
        try:
            lines = [line.split() for line in path.read_text().splitlines()]
        except UnicodeDecodeError as error:
            raise wrong_format(path, "eth_ucy", "text of four columns: frame, pedestrian, x, y") from error
        if not lines:
            raise ValueError(f"{path} is empty; expected four columns: frame, pedestrian, x, y.")
        wrong = next((number for number, words in enumerate(lines, 1) if len(words) != 4), None)
        if wrong == 1:
            raise wrong_format(path, "eth_ucy", f"four columns, but line 1 has {len(lines[0])}")
        if wrong:
            raise ValueError(
                f"{path}: line {wrong} has {len(lines[wrong - 1])} columns, expected 4; mend or remove it."
            )
        values = _numbers(path, lines)
        frame = values[:, 0] / self.frame_step
        if (frame != np.floor(frame)).any():
            line = int(np.flatnonzero(frame != np.floor(frame))[0])
            raise ValueError(
                f"{path}: line {line + 1} is of frame {values[line, 0]:g}, no multiple of "
                f"frame_step={self.frame_step}; give the frame_step of this file."
            )
        order = np.argsort(frame, kind="stable")
        people, who = np.unique(values[:, 1], return_inverse=True)
        count = len(values)
        tracks = Tracks(
            path,
            path.stem,
            order + 1,
            whole_steps(path, frame[order], order + 1),
            who[order],
            tuple(agent_name(person) for person in people.tolist()),
            np.full(count, "pedestrian"),
            values[order, 2:].astype(np.float32),
            np.zeros((count, 0), np.float32),
            np.zeros(count, np.float32),
        )
        tracks.check_times(self.dt)
        tracks.check_speed((0, 1), self.dt, "m")
        return tracks


def _numbers(path: Path, lines: list[list[str]]) -> np.ndarray:
    try:
        values = np.array(lines, np.float64)
    except ValueError:
        number = next(number for number, words in enumerate(lines, 1) if not all(map(is_number, words)))
        raise ValueError(f"{path}: line {number} is {lines[number - 1]}, expected four numbers.") from None
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        line, column = bad[0]
        name = ("frame", "pedestrian", "x", "y")[column]
        raise ValueError(f"{path}: line {line + 1}, column {name!r} is {values[line, column]}; remove the line.")
    return values
