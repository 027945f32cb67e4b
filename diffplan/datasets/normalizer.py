"""Brings observations and actions to a common size: one affine map per role and entry, fitted once, saved as JSON.

normalized = (value - center[role]) / scale[role]
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from jaxtyping import Float

from diffplan.datasets.store import TrajectoryStore

KINDS = ("limits", "gaussian", "quantile")
_CHUNK_BYTES = 64 * 2**20
_SAMPLE_ROWS, _SAMPLE_BYTES = 1_000_000, 256 * 2**20


class Normalizer(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """An affine map per role and entry of a cell. Statistics are float64 and live in the configuration, never in tensors
    that ``.to(dtype)`` could round; it is a component that ``DiffusionPipeline`` saves and loads.

    Args:
        kind: ``"limits"`` (least..greatest -> -1..1), ``"gaussian"`` (mean 0, std 1), ``"quantile"`` (1 %..99 % -> -1..1).
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
        if not np.isfinite(self._center).all() or not (self._scale > 0).all() or not np.isfinite(self._scale).all():
            raise ValueError("center must be finite and scale finite and positive; fit the normalizer again.")

    def __repr__(self) -> str:
        roles, entries = self._center.shape
        return f"Normalizer({self.config.kind!r}, {roles} roles, {entries} entries)"

    @classmethod
    def fit(cls, store: TrajectoryStore, kind: str = "limits", episodes: Sequence[int] | None = None) -> Self:
        """Statistics of a store (or of some of its episodes), per role. Absent agents and entries do not count.

        Constant columns get scale 1 and map to exactly 0. Quantiles are of at most 1 million rows, drawn at random.
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}; choose one of {KINDS}.")
        chosen = np.arange(len(store)) if episodes is None else np.unique(np.asarray(episodes, np.int64))
        if not len(chosen):
            raise ValueError(f"no episodes to fit the normalizer to: {store} has {len(store)}, chosen 0; collect some.")
        if chosen[0] < 0 or chosen[-1] >= len(store):
            raise ValueError(
                f"episodes {chosen[0]}..{chosen[-1]} of a store of {len(store)}; choose 0..{len(store) - 1}."
            )
        moments = _moments(store, chosen)
        low, high, mean, std = moments
        if kind == "quantile":
            low, high = _quantiles(store, chosen, moments)
        center, scale = (mean, std) if kind == "gaussian" else (low / 2 + high / 2, high / 2 - low / 2)
        constant = (moments[0] == moments[1]) | ~(scale > 0)
        center = np.where(constant, np.where(moments[0] == moments[1], moments[0], center), center)
        return cls(kind, center.tolist(), np.where(constant, 1.0, scale).tolist())

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
        if cells.shape[-1] != self._center.shape[-1]:
            raise ValueError(
                f"cells have {cells.shape[-1]} entries, the normalizer {self._center.shape[-1]}; use the spec it was fitted to."
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


def _chunks(store: TrajectoryStore, episodes: np.ndarray) -> Any:
    """All rows of some episodes, as arrays of global rows that fit into memory."""
    lengths = store.lengths[episodes] + 1
    ends = np.cumsum(lengths)
    chunk = max(1, _CHUNK_BYTES // (4 * store.spec.num_agents * store.spec.size))
    for start in range(0, int(ends[-1]), chunk):
        place = np.arange(start, min(start + chunk, int(ends[-1])))
        yield _rows(store, episodes, ends, place)


def _rows(store: TrajectoryStore, episodes: np.ndarray, ends: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The global rows of places on the axis of the chosen episodes alone."""
    index = np.searchsorted(ends, place, side="right")
    return store.first_rows[episodes[index]] + place - (ends[index] - store.lengths[episodes[index]] - 1)


def _cells(store: TrajectoryStore, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells [rows, N, D] in physical units, and which entries exist."""
    cells = np.concatenate([store.take("observations", rows), store.take("actions", rows)], axis=-1)
    O = store.spec.observation_size
    mask = np.empty(cells.shape, bool)
    mask[..., :O] = store.take("agent_mask", rows)[..., None]
    mask[..., O:] = store.take("action_mask", rows)[..., None]
    return cells, mask & store.spec.feature_mask


def _moments(store: TrajectoryStore, episodes: np.ndarray) -> tuple[Float[np.ndarray, "R D"], ...]:
    """Least, greatest, mean and standard deviation per role and entry, merged over chunks (Chan et al. 1979)."""
    shape = (len(store.spec.roles), store.spec.size)
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    count, mean, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for rows in _chunks(store, episodes):
        cells, mask = _cells(store, rows)
        for role in range(shape[0]):
            agents = store.spec.role_index == role
            values, exists = cells[:, agents], mask[:, agents]
            low[role] = np.minimum(low[role], values.min((0, 1), initial=np.inf, where=exists))
            high[role] = np.maximum(high[role], values.max((0, 1), initial=-np.inf, where=exists))
            new = exists.sum((0, 1))
            total = np.maximum(count[role] + new, 1)
            new_mean = values.sum((0, 1), dtype=np.float64, where=exists) / np.maximum(new, 1)
            deviation = np.square(values - new_mean).sum((0, 1), where=exists)
            shift = new_mean - mean[role]
            squares[role] += deviation + shift**2 * count[role] * new / total
            mean[role] += shift * new / total
            count[role] += new
    missing = count == 0
    low, high, mean = (np.where(missing, 0.0, array) for array in (low, high, mean))
    return low, high, mean, np.sqrt(squares / np.maximum(count, 1))


def _quantiles(
    store: TrajectoryStore, episodes: np.ndarray, moments: tuple[np.ndarray, ...]
) -> tuple[Float[np.ndarray, "R D"], Float[np.ndarray, "R D"]]:
    """The 1 % and 99 % quantiles per role and entry."""
    ends = np.cumsum(store.lengths[episodes] + 1)
    most = min(_SAMPLE_ROWS, _SAMPLE_BYTES // (4 * store.spec.num_agents * store.spec.size))
    place = np.arange(int(ends[-1]))
    if len(place) > most:
        place = np.sort(np.random.default_rng(0).integers(len(place), size=most))
    cells, mask = _cells(store, _rows(store, episodes, ends, place))
    low, high = moments[0].copy(), moments[1].copy()
    for role in range(len(low)):
        agents = store.spec.role_index == role
        for entry in range(store.spec.size):
            values = cells[:, agents, entry][mask[:, agents, entry]]
            if len(values):
                low[role, entry], high[role, entry] = np.quantile(values.astype(np.float64), (0.01, 0.99))
    return low, high
