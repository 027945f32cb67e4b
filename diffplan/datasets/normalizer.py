"""Brings observations and actions to a common size: one affine map per role and entry, fitted once, saved as JSON.

normalized = (value - center[role]) / scale[role]
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from jaxtyping import Bool, Float, Int

from diffplan.datasets.statistics import rounding
from diffplan.datasets.store import TrajectoryStore

KINDS = ("limits", "gaussian", "quantile", "motion")
_CHUNK_BYTES = 4 * 2**20
_SAMPLE_ROWS, _SAMPLE_BYTES = 200_000, 128 * 2**20
_MOTIONS = 20_000


class Normalizer(SchedulerMixin, ConfigMixin):
    """An affine map per role and entry of a cell, a component that ``DiffusionPipeline`` saves and loads.

    The statistics are float64 and live in the configuration, never in tensors that ``.to(dtype)`` could round.

    Args:
        kind: ``"limits"`` (least..greatest -> -1..1), ``"gaussian"`` (mean 0, std 1), ``"quantile"`` (the 1 % and 99 %
            quantiles -> -1 and 1), or ``"motion"``: for agents that the network sees in their own frames; 1 is how far
            positions stray from going straight on within the horizon, for all agents and directions alike.
        center: [R, D], what maps to 0, for each role and entry.
        scale: [R, D], what maps to 1 above it; positive.

    Raises:
        ValueError: an unknown kind, or ``center`` and ``scale`` of different shapes, not finite or not positive.
    """

    config_name = "normalizer_config.json"

    @register_to_config
    def __init__(self, kind: str, center: list[list[float]], scale: list[list[float]]):
        self._center, self._scale = np.array(center, np.float64), np.array(scale, np.float64)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}; choose one of {KINDS}.")
        if self._center.ndim != 2 or self._center.shape != self._scale.shape:
            raise ValueError(
                f"center has shape {self._center.shape}, scale {self._scale.shape}; both are [roles, entries]."
            )
        with np.errstate(over="ignore", under="ignore"):
            to_zero, to_one = self._center.astype(np.float32), self._scale.astype(np.float32)
        if not (np.isfinite(to_zero).all() and (to_one > 0).all() and np.isfinite(to_one).all()):
            raise ValueError("center must be finite and scale finite and positive; fit the normalizer again.")

    def __repr__(self) -> str:
        roles, entries = self._center.shape
        return f"Normalizer({self.config.kind!r}, {roles} roles, {entries} entries)"

    @property
    def fingerprint(self) -> str:
        """Its kind, and the SHA-256 of its statistics."""
        told = {name: self.config[name] for name in sorted(self.config) if not name.startswith("_")}
        return f"{self.config.kind} {hashlib.sha256(json.dumps(told).encode()).hexdigest()}"

    @classmethod
    def fit(
        cls,
        store: TrajectoryStore,
        kind: str = "gaussian",
        episodes: Sequence[int] | None = None,
        horizon: int | None = None,
    ) -> Self:
        """Statistics of a store (or of some of its episodes), per role. Absent agents and entries do not count.

        Constant columns, up to ``rounding``, get scale 1 and map to 0. Quantiles are of at most 200,000 rows, drawn at
        random, and so is what ``"motion"`` needs the ``horizon`` for (steps); what is neither position nor velocity nor
        goal is treated as by ``"gaussian"`` there. ``episodes`` are indices or a mask, see ``TrajectoryDataset``.
        Raises ``ValueError`` for what cannot be fitted.
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}; choose one of {KINDS}.")
        chosen = np.unique(chosen_episodes(store, episodes))
        if not len(chosen):
            raise ValueError(f"no episodes to fit to: {store.path} has {len(store)}, chosen 0; collect or choose some.")
        if chosen[0] < 0 or chosen[-1] >= len(store):
            raise ValueError(f"episodes {chosen[0]}..{chosen[-1]} chosen, but {store.path} has 0..{len(store) - 1}.")
        least, greatest, mean, std = _moments(store, np.isin(np.arange(len(store)), chosen))
        low, high = _quantiles(store, chosen, least, greatest) if kind == "quantile" else (least, greatest)
        if kind in ("gaussian", "motion"):
            center, scale = mean, std
        else:
            center, scale = low / 2 + high / 2, high / 2 - low / 2
        exists = np.zeros(center.shape, bool)
        exists[store.spec.role_index] = store.spec.feature_mask
        center = np.where(least == greatest, least, center)
        varies = exists & (scale > 0) & (greatest - least > rounding(least, greatest))
        center, scale = np.where(exists, center, 0.0), np.where(varies, scale, 1.0)
        if kind == "motion":
            _without_direction(center, scale, store, chosen, horizon)
        return cls(kind, center.tolist(), scale.tolist())

    def normalize(self, cells: Any, role_index: Any) -> Any:
        """Physical units to normalised ones.

        Args:
            cells: float32 [..., N, W, D], a numpy array or a torch tensor (the result is of the same kind and device).
            role_index: [N], each agent's role (``JointSpec.role_index``).
        """
        center, scale = self._statistics(cells, role_index)
        return (cells - center) / scale

    def unnormalize(self, cells: Any, role_index: Any) -> Any:
        """Normalised units to physical ones; the inverse of ``normalize``."""
        center, scale = self._statistics(cells, role_index)
        return cells * scale + center

    def _statistics(self, cells: Any, role_index: Any) -> tuple[Any, Any]:
        """center and scale [N, 1, D] in float32, where the cells are."""
        entries = self._center.shape[-1]
        if cells.shape[-1] != entries:
            raise ValueError(
                f"cells have {cells.shape[-1]} entries, the normalizer {entries}; use the spec it was fitted to."
            )
        if isinstance(cells, np.ndarray):
            center, scale = self._center[role_index], self._scale[role_index]
            return center[..., None, :].astype(np.float32), scale[..., None, :].astype(np.float32)
        import torch

        index = torch.as_tensor(role_index, device=cells.device)
        center, scale = (
            torch.as_tensor(array, dtype=torch.float32, device=cells.device)[index].unsqueeze(-2)
            for array in (self._center, self._scale)
        )
        return center, scale


def chosen_episodes(store: TrajectoryStore, episodes: Sequence[int] | None) -> Int[np.ndarray, "K"]:
    """The indices of the chosen episodes (None: all), given as such or as a mask with a truth value for each.

    Raises:
        ValueError: neither whole numbers nor a mask of the store's length.
    """
    chosen = np.arange(len(store)) if episodes is None else np.asarray(episodes)
    if chosen.dtype == bool and chosen.shape == (len(store),):
        return np.flatnonzero(chosen)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
        raise ValueError(
            f"episodes is an array {list(chosen.shape)} of {chosen.dtype}; give whole numbers, the indices, "
            f"or a truth value for each of the {len(store)} of {store.path}."
        )
    return chosen.astype(np.int64)


def _present(
    store: TrajectoryStore, rows: Int[np.ndarray, "B W"], chosen: Bool[np.ndarray, "E"]
) -> Iterator[tuple[int, slice, Float[np.ndarray, "K F"]]]:
    """What a role's agents observed, then did, at some rows of the chosen episodes: role, place in a cell, K values."""
    O = store.spec.observation_size
    used = chosen[np.searchsorted(store.first_rows, rows, side="right") - 1][..., None]
    for entries, name, exists in (
        (slice(0, O), "observations", "agent_mask"),
        (slice(O, None), "actions", "action_mask"),
    ):
        values, mask = store.take(rows, name, exists)
        for role in range(len(store.spec.roles)):
            agents = store.spec.role_index == role
            present = values[:, :, agents][mask[:, :, agents] & used]
            if len(present):
                yield role, entries, present


def _chunks(store: TrajectoryStore, chosen: Bool[np.ndarray, "E"]) -> Iterator[Int[np.ndarray, "1 W"]]:
    """Rows of the chosen episodes (and perhaps of some between), few enough at a time to stay in the cache."""
    most = max(1, _CHUNK_BYTES // (4 * store.spec.num_agents * store.spec.size))
    for first, end in pairwise(store.shard_rows.tolist()):
        for start in range(first, end, most):
            stop = min(start + most, end)
            episodes = np.searchsorted(store.first_rows, [start, stop - 1], side="right") - 1
            if chosen[episodes[0] : episodes[1] + 1].any():
                yield np.arange(start, stop)[None]


def _moments(store: TrajectoryStore, chosen: Bool[np.ndarray, "E"]) -> tuple[Float[np.ndarray, "R D"], ...]:
    """Least, greatest, mean and standard deviation per role and entry, merged over chunks (Chan et al. 1979)."""
    shape = (len(store.spec.roles), store.spec.size)
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    count, mean, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for rows in _chunks(store, chosen):
        for role, entries, present in _present(store, rows, chosen):
            at, values = (role, entries), present.astype(np.float64)
            low[at] = np.minimum(low[at], values.min(0))
            high[at] = np.maximum(high[at], values.max(0))
            new, new_mean = len(values), values.mean(0)
            values -= new_mean
            share = new / (count[at] + new)
            squares[at] += np.einsum("kf,kf->f", values, values) + (new_mean - mean[at]) ** 2 * count[at] * share
            mean[at] += (new_mean - mean[at]) * share
            count[at] += new
    low, high, mean = (np.where(count > 0, array, 0.0) for array in (low, high, mean))
    return low, high, mean, np.sqrt(squares / np.maximum(count, 1))


def _quantiles(
    store: TrajectoryStore,
    episodes: Int[np.ndarray, "K"],
    low: Float[np.ndarray, "R D"],
    high: Float[np.ndarray, "R D"],
) -> tuple[Float[np.ndarray, "R D"], Float[np.ndarray, "R D"]]:
    """The 1 % and 99 % quantiles per role and entry (``low`` and ``high`` where there are no data)."""
    most = min(_SAMPLE_ROWS, _SAMPLE_BYTES // (4 * store.spec.num_agents * store.spec.size))
    ends = np.cumsum(store.lengths[episodes] + 1)
    place = np.arange(ends[-1])
    if len(place) > most:
        place = np.sort(np.random.default_rng(0).integers(len(place), size=most))
    index = np.searchsorted(ends, place, side="right")
    rows = store.first_rows[episodes[index]] + place - (ends[index] - store.lengths[episodes[index]] - 1)
    low, high = low.copy(), high.copy()
    for role, entries, present in _present(store, rows[:, None], np.ones(len(store), bool)):
        for entry, values in zip(range(store.spec.size)[entries], present.T, strict=True):
            low[role, entry], high[role, entry] = np.quantile(values.astype(np.float64), (0.01, 0.99))
    return low, high


def _without_direction(
    center: Float[np.ndarray, "R D"],
    scale: Float[np.ndarray, "R D"],
    store: TrajectoryStore,
    episodes: Int[np.ndarray, "K"],
    horizon: int | None,
) -> None:
    """Gives positions, goals and velocities of all roles a common center and scale, in place."""
    roles = list(store.spec.roles.values())
    if any(len(role.position) != 2 for role in roles) or horizon is None or horizon < 2:
        names = [name for name, role in store.spec.roles.items() if len(role.position) != 2]
        raise ValueError(
            f"kind='motion' with horizon={horizon}, roles without a position of two entries: {names}; give a horizon "
            "of 2 or more, and Role(position=(x, y))."
        )
    middle = np.mean([center[index, list(role.position)] for index, role in enumerate(roles)], axis=0)
    strayed = _strayed(store, episodes, horizon)
    for index, role in enumerate(roles):
        for places in (list(role.position), list(role.goal)):
            center[index, places], scale[index, places] = middle[: len(places)], strayed
        moving = list(role.velocity)
        scale[index, moving] = np.sqrt(np.mean(scale[index, moving] ** 2 + center[index, moving] ** 2)) if moving else 1
        center[index, moving] = 0


def _strayed(store: TrajectoryStore, episodes: Int[np.ndarray, "K"], horizon: int) -> float:
    """Root mean square of how far positions are, within the horizon, from going straight on (1 where all do)."""
    rng = np.random.default_rng(0)
    long = episodes[store.lengths[episodes] >= 2]
    if not len(long):
        raise ValueError(f"kind='motion' needs episodes of two steps or more; {store.path} has none.")
    episode = rng.choice(long, _MOTIONS, p=store.lengths[long] / store.lengths[long].sum())
    step = rng.integers(1, store.lengths[episode])
    ahead = 1 + rng.integers(np.minimum(horizon - 1, store.lengths[episode] - step))
    rows = (store.first_rows[episode] + step)[:, None] + np.stack([-np.ones_like(ahead), 0 * ahead, ahead], 1)
    values, there = store.take(rows, "observations", "agent_mask")
    place = np.array([role.position for role in store.spec.roles.values()])[store.spec.role_index]
    before, now, then = np.moveaxis(np.take_along_axis(values, place[None, None], -1).astype(np.float64), 1, 0)
    off = (then - now - (now - before) * ahead[:, None, None])[there.all(1)]
    typical = float(np.sqrt(np.square(off).mean())) if len(off) else 0.0
    return typical or 1.0
