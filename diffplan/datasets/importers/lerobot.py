"""LeRobot's data sets, version 3: parquet shards in ``data/`` and ``meta/info.json`` (Cadene et al. 2024)."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from diffplan.datasets.importers.parquet import open_parquet, read_parquet
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import (
    HELD,
    Recording,
    check_finite,
    check_widths,
    held,
    joint_episode,
    make_spec,
)
from diffplan.files import inside, read_json
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

_NUMBERS = ("float32", "float64", "int32", "int64", "bool")


@dataclass(frozen=True)
class LeRobot:
    """Imports the numeric columns: ``observation.*`` and ``action``; images and videos are left out.

    The one vector of a robot with several arms is cut by the names of its entries: ``left_waist`` is of arm ``left``.
    Observed entries of no arm are observed by all; without names, vectors are cut into equal parts. The observation
    after the last action is not in the files; the last one is repeated.

    Args:
        source: a folder with ``meta/info.json`` and ``data/``.
        arms: names of the arms, e.g. left and right; by default one agent, "robot".
    """

    source: Path
    arms: tuple[str, ...] = ()

    def read(self) -> Recording:
        source = Path(self.source)
        if not (source / "meta" / "info.json").exists():
            raise wrong_format(source, "lerobot", "a folder with meta/info.json")
        info = read_json(inside(source, "meta/info.json"))
        features = _features(info, source)
        files = _files(info, source)
        names = list(self.arms) or ["robot"]
        acts = self._acts(features["action"], names)
        seen = [
            {key: self._part(key, features[key], arm) for key in features if key.startswith("observation.")}
            for arm in names
        ]
        widths = [(sum(map(len, own.values())), len(act)) for own, act in zip(seen, acts, strict=True)]
        spec = make_spec(source, names, widths, _dt(info, source), roles=names)

        def episodes() -> Iterator[Trajectory]:
            total = 0
            for index, rows in _episodes(files, {key: int(one["shape"][0]) for key, one in features.items()}):
                total += len(rows["action"])
                yield _episode(spec, index, rows, seen, acts)
            if total != info.get("total_frames", total):
                raise ValueError(f"{source} has {total} rows, but info.json says {info['total_frames']}; copy it anew.")

        left_out = sorted(set(info["features"]) - set(features))
        notes = (f"observed columns: {', '.join(seen[0])}; left out: {', '.join(left_out)}", HELD)
        return Recording(spec, episodes, f"LeRobot data {source.resolve().name}", notes, bounded=False)

    def _acts(self, feature: Any, names: list[str]) -> list[list[int]]:
        """Which entries of the action are whose."""
        acts = [self._part("action", feature, arm) for arm in names]
        whole, shared = int(feature["shape"][0]), sum(map(len, acts))
        if shared != whole or not all(acts):
            raise ValueError(
                f"{self.source}: the arms {names} have {[len(act) for act in acts]} of the {whole} entries of action "
                f"{feature.get('names')}; every entry must be of one arm, and every arm have some."
            )
        return acts

    def _part(self, key: str, feature: Any, arm: str) -> list[int]:
        """Which entries of a vector are an arm's."""
        width, names = int(feature["shape"][0]), feature.get("names")
        names = next(iter(names.values())) if isinstance(names, dict) and len(names) == 1 else names
        if len(self.arms) < 2:
            return list(range(width))
        if not isinstance(names, list) or len(names) != width:
            if width % len(self.arms):
                raise ValueError(
                    f"{self.source}: {key} has {width} entries without names, not equal parts for {self.arms}."
                )
            part = width // len(self.arms)
            return list(range(self.arms.index(arm) * part, (self.arms.index(arm) + 1) * part))
        owners = [set(self.arms) & set(re.split(r"[^a-zA-Z0-9]+", str(name))) for name in names]
        shared = key != "action"
        return [index for index, owner in enumerate(owners) if arm in owner or (shared and not owner)]


def _features(info: Any, source: Path) -> dict[str, Any]:
    """The columns to read, with their shapes."""
    try:
        numeric = {
            key: one for key, one in info["features"].items() if one["dtype"] in _NUMBERS and len(one["shape"]) == 1
        }
        for one in numeric.values():
            check_widths(one["shape"], source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source / 'meta' / 'info.json'} does not tell the features ({error}); copy it anew."
        ) from error
    wanted = {key: one for key, one in numeric.items() if key.startswith("observation.") or key == "action"}
    if "action" not in wanted or len(wanted) < 2:
        raise ValueError(
            f"{source} needs numeric observation.* and action columns; its features are {list(info['features'])}."
        )
    return wanted | {key: numeric[key] for key in ("next.reward", "next.done") if key in numeric}


def _dt(info: Any, source: Path) -> float:
    fps = info.get("fps")
    if not isinstance(fps, int | float) or not fps > 0:
        raise ValueError(f"{source / 'meta' / 'info.json'} says fps={fps!r}, expected frames a second.")
    return 1 / fps


def _files(info: Any, source: Path) -> list[Path]:
    """All data files; none outside the folder, whatever ``info.json`` or a link says."""
    pattern = PurePosixPath(str(info.get("data_path", "")))
    if pattern.is_absolute() or ".." in pattern.parts:
        raise ValueError(
            f"{source / 'meta' / 'info.json'} names files outside its folder ({pattern}); this is refused."
        )
    paths = [inside(source, str(path.relative_to(source))) for path in sorted((source / "data").glob("*/*.parquet"))]
    if not paths:
        raise ValueError(f"{source} has no data/*/*.parquet; copy the whole data set.")
    return paths


def _episodes(files: list[Path], widths: dict[str, int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Index and columns [rows, width] of every episode."""
    for path in files:
        if not open_parquet(path).metadata.num_rows:
            continue
        table = read_parquet(path, [*widths, "episode_index", "frame_index"])
        for key, width in widths.items():
            got = math.prod(table[key].shape[1:])
            if got != width:
                raise ValueError(f"{path}: {key} has {got} numbers a row, but info.json says {width}; copy it anew.")
        index, frame = table.pop("episode_index"), table.pop("frame_index")
        for start, stop in pairwise([0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]):
            if not np.array_equal(frame[start:stop], np.arange(stop - start)):
                raise ValueError(
                    f"{path}: episode {index[start]:g} does not count its frames from 0 without a gap "
                    f"(rows {start}..{stop - 1}); a part of it is missing."
                )
            rows = {k: check_finite(v[start:stop], f"{path}: {k}", start) for k, v in table.items()}
            yield int(index[start]), {k: v.reshape(stop - start, -1) for k, v in rows.items()}


def _episode(
    spec: JointSpec,
    index: int,
    rows: dict[str, np.ndarray],
    seen: list[dict[str, list[int]]],
    acts: list[list[int]],
) -> Trajectory:
    shape = (len(rows["action"]), spec.num_agents)
    zeros = np.zeros((shape[0], 1))
    rewards, done = (np.broadcast_to(rows.get(key, zeros)[:, :1], shape) for key in ("next.reward", "next.done"))
    ended = np.zeros(shape, bool)
    ended[-1] = done[-1] != 0
    observations = [held(np.concatenate([rows[key][:, part] for key, part in own.items()], 1)) for own in seen]
    actions = [rows["action"][:, act] for act in acts]
    return joint_episode(spec, observations, actions, rewards, ended, labels={"episode_index": index})
