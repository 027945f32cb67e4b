"""Windows of a store: some steps of history and a horizon of steps from the present on, drawn by index, normalised."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from diffplan.datasets.normalizer import Normalizer
from diffplan.datasets.store import TrajectoryStore


@dataclass(frozen=True)
class WindowBatch:
    """B windows of W = history + horizon steps; the present is step ``history`` of the window.

    ``mask`` says which entries of ``cells`` exist: the agent is there, the step is inside the episode, the entry is within the
    agent's true width, and an action was taken (none is at an agent's final observation). ``cells`` are normalised, 0 elsewhere.
    """

    cells: Float[np.ndarray, "B N W D"]
    mask: Bool[np.ndarray, "B N W D"]
    agent_mask: Bool[np.ndarray, "B N"]
    episode: Int[np.ndarray, "B"]
    step: Int[np.ndarray, "B"]


class TrajectoryDataset:
    """Every window of a store: the present runs over the steps 0, stride, 2 stride, ... of each episode.

    Windows reach over an episode's ends without inventing transitions: what lies outside is masked.

    Args:
        store: the episodes.
        horizon: steps from the present on (the present included).
        history: steps before the present.
        stride: steps between the presents of neighbouring windows.
        normalizer: brings cells to a common size; ``None`` leaves them in physical units.
        episodes: which episodes to draw from (all by default), e.g. to hold some out.

    Raises:
        ValueError: no window at all, a size that is not positive, an episode that is not in the store, or a normalizer of
            another spec.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        horizon: int,
        history: int = 0,
        stride: int = 1,
        normalizer: Normalizer | None = None,
        episodes: Sequence[int] | None = None,
    ):
        for name, value, least in (("horizon", horizon, 1), ("history", history, 0), ("stride", stride, 1)):
            if value < least:
                raise ValueError(f"{name}={value}; choose at least {least}.")
        self.store, self.spec, self.normalizer = store, store.spec, normalizer
        self.horizon, self.history, self.stride = horizon, history, stride
        self.episodes = np.arange(len(store)) if episodes is None else np.asarray(episodes, np.int64)
        if not len(self.episodes):
            raise ValueError(
                f"no episodes to draw windows from: {store.path} has {len(store)}; collect or choose some."
            )
        if self.episodes.min() < 0 or self.episodes.max() >= len(store):
            outside = self.episodes[(self.episodes < 0) | (self.episodes >= len(store))]
            raise ValueError(f"episodes {outside[:5].tolist()} are not in {store.path}; it has 0..{len(store) - 1}.")
        windows = -(-store.lengths[self.episodes] // stride)
        self._first_window = np.concatenate([[0], np.cumsum(windows)])

    def __len__(self) -> int:
        return int(self._first_window[-1])

    def __repr__(self) -> str:
        return (
            f"TrajectoryDataset({len(self)} windows of {self.history} + {self.horizon} steps, "
            f"{len(self.episodes)} episodes, {self.normalizer}; {self.spec})"
        )

    def sample(self, batch_size: int, rng: np.random.Generator) -> WindowBatch:
        """``batch_size`` windows drawn uniformly, with replacement."""
        return self.batch(rng.integers(len(self), size=batch_size))

    def batch(self, indices: Int[np.ndarray, "B"]) -> WindowBatch:
        """The windows of these indices, in this order. Raises ``IndexError`` outside 0 .. len - 1."""
        indices = np.asarray(indices, np.int64)
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise IndexError(f"windows {indices.min()}..{indices.max()} of a dataset of {len(self)}.")
        place = np.searchsorted(self._first_window, indices, side="right") - 1
        episode, step = self.episodes[place], (indices - self._first_window[place]) * self.stride
        time = step[:, None] + np.arange(-self.history, self.horizon)
        last = self.store.lengths[episode][:, None]
        rows = self.store.first_rows[episode][:, None] + np.clip(time, 0, last)
        cells, mask = self._cells(rows), self._mask(rows, (time >= 0) & (time <= last))
        if self.normalizer is not None:
            cells = self.normalizer.normalize(cells, self.spec.role_index)
        np.multiply(cells, mask, out=cells)
        return WindowBatch(cells, mask, mask[:, :, self.history].any(-1), episode, step)

    def _cells(self, rows: Int[np.ndarray, "B W"]) -> Float[np.ndarray, "B N W D"]:
        B, W = rows.shape
        cells = np.empty((B, self.spec.num_agents, W, self.spec.size), np.float32)
        cells[..., : self.spec.observation_size] = self.store.take("observations", rows).swapaxes(1, 2)
        cells[..., self.spec.observation_size :] = self.store.take("actions", rows).swapaxes(1, 2)
        return cells

    def _mask(self, rows: Int[np.ndarray, "B W"], inside: Bool[np.ndarray, "B W"]) -> Bool[np.ndarray, "B N W D"]:
        B, W = rows.shape
        mask = np.empty((B, self.spec.num_agents, W, self.spec.size), bool)
        there = self.store.take("agent_mask", rows) & inside[..., None]
        acts = self.store.take("action_mask", rows) & inside[..., None]
        mask[..., : self.spec.observation_size] = there.swapaxes(1, 2)[..., None]
        mask[..., self.spec.observation_size :] = acts.swapaxes(1, 2)[..., None]
        np.logical_and(mask, self.spec.feature_mask[:, None], out=mask)
        return mask


def load_dataset(
    path: str | Path,
    horizon: int,
    history: int = 0,
    normalizer: str | Normalizer | None = "limits",
    stride: int = 1,
    episodes: Sequence[int] | None = None,
) -> TrajectoryDataset:
    """Opens a store as windows, with a normalizer fitted to the chosen episodes.

    Args:
        path: folder of a ``TrajectoryStore``.
        horizon: steps from the present on.
        history: steps before the present.
        normalizer: ``"limits"``, ``"gaussian"``, ``"quantile"``, one that is fitted already, or ``None``.
        stride: steps between the presents of neighbouring windows.
        episodes: which episodes to use (all by default).

    Raises:
        ValueError: as ``TrajectoryStore.open``, ``Normalizer.fit`` and ``TrajectoryDataset``.
    """
    store = TrajectoryStore.open(path)
    if isinstance(normalizer, str):
        normalizer = Normalizer.fit(store, normalizer, episodes)
    return TrajectoryDataset(store, horizon, history, stride, normalizer, episodes)
