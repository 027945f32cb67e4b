"""OG-MARL's Vaults (Formanek et al. 2023, arXiv 2302.00521): flashbax's ``<name>.vlt/<uid>/``, one array a quantity.

A dot stands behind every key of the tree, so ``infos["legals"]`` is ``infos.legals.``; axes are lanes x steps x agents,
then those of the quantity. ``vault_index`` tells how many steps were written, of the 10 ** 13 for which there is room.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from diffplan.datasets.importers.npy import dtype_notes
from diffplan.datasets.importers.ocdbt import MANIFEST, REMEDY, OcdbtFolder, StoredArray, check_capacity
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import (
    HELD,
    Recording,
    check_finite,
    check_team,
    held,
    joint_episode,
    make_spec,
    one_hot,
)
from diffplan.files import inside, read_json
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

VERSION = 1  # of flashbax's layout, without the digits behind the point
FLAGS = ("terminals", "truncations")
NEEDED = ("observations", "actions", "rewards", *FLAGS)
LEGALS = "infos.legals"
_CHUNK = 2**16  # steps


@dataclass(frozen=True)
class Vault:
    """Imports OG-MARL's Vaults: transitions one after the other, in one lane or several.

    An episode ends with the step after which ``terminals`` or ``truncations`` have named every agent; where the data
    stop amid one, it is kept as truncated. Integer actions become one-hot actions, and the legal ones are put behind
    the observation, so that a planner knows them. The observation after an episode's last action is not in the files;
    the last one is repeated, so that the action and its reward are kept.

    Args:
        source: a folder ``<name>.vlt`` with one folder a quality (Good, Medium, ...), or one of these.
        pad_value: an agent all of whose observation has this value is absent (0 for dead units of SMAC).
        num_actions: how many discrete actions there are, where no ``infos.legals`` tells.
        dt: seconds a step, which the files do not say.
        roles: each agent's role, in order; by default agents of equal widths share one.
    """

    source: Path
    pad_value: float | None = None
    num_actions: int | None = None
    dt: float = 1.0
    roles: tuple[str, ...] = ()

    def read(self) -> Recording:
        source = Path(self.source)
        here = (source / MANIFEST).exists()
        folders = [source] if here else sorted(path.parent for path in source.glob(f"*/{MANIFEST}"))
        if not folders:
            raise wrong_format(source, "vault", f"folders <name>.vlt/<uid> with metadata.json and {MANIFEST}")
        parts = [_Part(folder if here else inside(source, folder.name), self.pad_value) for folder in folders]
        if self.num_actions is not None and (not parts[0].discrete or LEGALS in parts[0].arrays):
            raise ValueError(f"{source} tells how wide actions are; leave num_actions={self.num_actions} out.")
        spec = self._spec(parts[0])
        for part in parts:
            if self._spec(part) != spec:
                raise ValueError(
                    f"{part.folder} has {self._spec(part)}, {parts[0].name} has {spec}; import them apart."
                )
        notes = dict.fromkeys(note for part in parts for note in part.notes())

        def episodes() -> Iterator[Trajectory]:
            for part in parts:
                for lane, ends in enumerate(part.ends):
                    for start, stop in pairwise([0, *ends]):
                        yield part.episode(spec, lane, start, stop)

        name = f"{source.resolve().parent.name}/{parts[0].name}" if here else source.resolve().name
        return Recording(spec, episodes, f"Vault data of {name}", (HELD, *notes), bounded=parts[0].discrete)

    def _spec(self, part: "_Part") -> JointSpec:
        choices = self._choices(part) if part.discrete else 0
        legal = choices if LEGALS in part.arrays else 0
        widths = [(seen + legal, choices or done) for seen, done in zip(part.observed, part.acted, strict=True)]
        names = [f"agent_{i}" for i in range(len(widths))]
        return make_spec(part.folder, names, widths, self.dt, self.roles, part.discrete, legal)

    def _choices(self, part: "_Part") -> int:
        """How many discrete actions there are."""
        if LEGALS in part.arrays:
            return part.arrays[LEGALS].shape[-1]
        if self.num_actions is None:
            raise ValueError(
                f"{part.arrays['actions'].where} has whole numbers, but there is no {LEGALS} to tell how many actions "
                "there are; give num_actions."
            )
        return self.num_actions


class _Part:
    """One folder ``<uid>``: its arrays, checked against each other, and where its episodes end, lane by lane."""

    def __init__(self, folder: Path, pad_value: float | None):
        self.folder, self.name, self.pad_value = folder, folder.resolve().name, pad_value
        _check_version(folder)
        store = OcdbtFolder(folder)
        self.arrays = _open(store)
        self.discrete = self.arrays["actions"].dtype.kind in "iu"
        self.steps = _steps(store)
        _check_shapes(self.arrays, self.discrete)
        for array in self.arrays.values():
            array.check_stored(self.steps)
        check_capacity(store, self.arrays, self.steps)
        self.left_out = [name for name in store.names if name.removesuffix(".") not in (*self.arrays, "vault_index")]
        lanes, _, self.agents, _ = self.arrays["observations"].shape
        self.observed = _widths(self.arrays["observations"])
        self.acted = [0] * self.agents if self.discrete else _widths(self.arrays["actions"])
        told = [list(self._ends(lane)) for lane in range(lanes)]
        self.ends = [ends if self.steps in ends[-1:] else [*ends, self.steps] for ends in told]
        self.cut = sum(self.steps not in ends[-1:] for ends in told)

    def notes(self) -> Iterator[str]:
        if self.left_out:
            yield f"what no agent observes is left out: {', '.join(self.left_out[:12])}"
        yield from dtype_notes({k: array for k, array in self.arrays.items() if not (self.discrete and k == "actions")})
        if self.cut:
            lanes = f"in {self.cut} of {len(self.ends)} lanes"
            yield f"{self.name}: the data stop amid an episode {lanes}; it is kept as truncated"

    def _done(self, lane: int, start: int, stop: int) -> np.ndarray:
        """Whether an agent's episode ends with a step, [steps, agents]."""
        flags = [self.arrays[name].rows(lane, start, stop).reshape(stop - start, -1) != 0 for name in FLAGS]
        return np.broadcast_to(flags[0] | flags[1], (stop - start, self.agents))

    def _ends(self, lane: int) -> Iterator[int]:
        """The steps after which an episode ends, plus one: every agent has been done since the one before."""
        done = np.zeros(self.agents, bool)
        for start in range(0, self.steps, _CHUNK):
            flags = self._done(lane, start, min(start + _CHUNK, self.steps))
            for row in np.flatnonzero(flags.any(1)).tolist():
                done |= flags[row]
                if done.all():
                    done[:] = False
                    yield start + row + 1

    def episode(self, spec: JointSpec, lane: int, start: int, stop: int) -> Trajectory:
        rows = {name: array.rows(lane, start, stop) for name, array in self.arrays.items()}
        where = {name: f"{array.where}, lane {lane}" for name, array in self.arrays.items()}
        L, N = stop - start, self.agents
        seen = _own(rows["observations"], self.observed, where["observations"], start)
        there = np.ones((L, N), bool)
        if self.pad_value is not None:
            absent = np.isclose(rows["observations"], self.pad_value, rtol=0, atol=0, equal_nan=True)
            there = ~(absent | ~_mask(self.observed, seen.shape[-1])).all(-1)
            seen = np.where(there[..., None], seen, 0)
        if self.discrete:
            actions = one_hot(rows["actions"], spec.action_size, where["actions"], start)
        else:
            actions = _own(rows["actions"], self.acted, where["actions"], start)
        rows |= {"observations": seen, "actions": actions}
        for name, values in rows.items():
            check_finite(values, where[name], start)
        observations = [seen[:, i, : self.observed[i]] for i in range(N)]
        if LEGALS in rows:
            observations = [np.concatenate([one, rows[LEGALS][:, i]], -1) for i, one in enumerate(observations)]
        rewards, terminals = (
            np.broadcast_to(rows[name].reshape(L, -1), there.shape) for name in ("rewards", "terminals")
        )
        return joint_episode(
            spec,
            map(held, observations),
            actions.swapaxes(0, 1),
            rewards,
            (terminals != 0) & there,
            held(there),
            {"uid": self.name, "lane": lane},
        )


def _check_version(folder: Path) -> None:
    path = inside(folder, "metadata.json")
    if not path.exists():
        raise ValueError(f"{folder} lacks metadata.json; {REMEDY}.")
    metadata = read_json(path)
    version = metadata.get("version") if isinstance(metadata, dict) else None
    if not isinstance(version, int | float) or not VERSION <= version < VERSION + 1:
        raise ValueError(
            f"{path} tells the version {version!r}, expected {VERSION}.x; write the Vault again with flashbax of today."
        )


def _open(store: OcdbtFolder) -> dict[str, StoredArray]:
    missing = [name for name in NEEDED if f"{name}." not in store.names]
    if missing:
        raise ValueError(f"{store.path} has the arrays {store.names[:12]}, but not {missing}; is it OG-MARL's?")
    arrays = {name: store.open(f"{name}.") for name in NEEDED}
    legals = f"{LEGALS}." in store.names and arrays["actions"].dtype.kind in "iu"
    return arrays | ({LEGALS: store.open(f"{LEGALS}.")} if legals else {})


def _steps(store: OcdbtFolder) -> int:
    """How many steps were written."""
    index = store.open("vault_index")
    if index.shape != (1,) or index.dtype.kind not in "iu":
        raise ValueError(f"{index.where} is {index.shape} of {index.dtype}, expected one whole number; {REMEDY}.")
    steps = int(index.read()[0])
    if steps < 1:
        raise ValueError(f"{index.where} tells {steps} steps; there is nothing to import.")
    return steps


def _check_shapes(arrays: dict[str, StoredArray], discrete: bool) -> None:
    seen = arrays["observations"]
    if len(seen.shape) != 4 or 0 in seen.shape:
        raise ValueError(f"{seen.where} has the shape {seen.shape}, expected (lanes, steps, agents, width).")
    lanes, _, N, _ = seen.shape
    check_team(N, Path(seen.where))
    axes = {"actions": (3,) if discrete else (4,), LEGALS: (4,)}
    for name, array in arrays.items():
        shape, expected = array.shape, axes.get(name, (2, 3) if name in ("rewards", *FLAGS) else (4,))
        if len(shape) not in expected or shape[0] != lanes or shape[2:3] not in ((), (N,)):
            raise ValueError(
                f"{array.where} has the shape {shape}, expected {' or '.join(map(str, expected))} axes, the first "
                f"{lanes} long (lanes) and the third {N} (agents)."
            )


def _widths(array: StoredArray) -> list[int]:
    """Entries of every agent: those that are not -inf in the first row, up to the last such one."""
    first = array.rows(0, 0, 1)[0] != -np.inf
    return [int(np.flatnonzero(one)[-1]) + 1 if one.any() else len(one) for one in first]


def _mask(widths: list[int], width: int) -> np.ndarray:
    return np.arange(width) < np.array(widths)[:, None]


def _own(values: np.ndarray, widths: list[int], where: str, start: int) -> np.ndarray:
    """The values with 0 in place of the -inf behind those of narrower agents; nothing else may be there."""
    own = _mask(widths, values.shape[-1])
    odd = np.argwhere(~own & (values != -np.inf))
    if len(odd):
        row, agent, column = odd[0].tolist()
        raise ValueError(
            f"{where}: row {start + row}, column {agent}, {column} is {values[row, agent, column]}, but this agent has "
            f"{widths[agent]} entries in the first row of lane 0 and -inf behind them; write all rows alike."
        )
    return np.where(own, values, 0)
