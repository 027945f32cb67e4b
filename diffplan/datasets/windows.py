"""Windows of a store: some steps of history and a horizon of steps from the present on, drawn by index, normalised."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from diffplan.datasets.normalizer import Normalizer
from diffplan.datasets.store import TrajectoryStore


@dataclass(frozen=True)
class WindowBatch:
    """B windows of W = history + horizon steps; the present is step ``history`` of the window.

    ``mask`` says which entries of ``cells`` exist: the step is inside the episode, the agent is there, the entry is
    within its true width, and an action was taken (none is at an agent's final observation). ``cells`` are normalised,
    and 0 where nothing exists. ``agent_mask`` says who is there at the present, ``episode`` and ``step`` where that is.
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
        ValueError: no window at all, a size that is not positive, an episode that is not in the store, or a normalizer
            of another spec.
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
        expected = (len(self.spec.roles), self.spec.size)
        if normalizer is not None and np.shape(normalizer.config.center) != expected:
            got = np.shape(normalizer.config.center)
            raise ValueError(
                f"the normalizer has [roles, entries] {got}, {store.path} {expected}; fit it to this store."
            )
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

    def sample(self, batch_size: int, rng: np.random.Generator, start_share: float = 0.0) -> WindowBatch:
        """``batch_size`` windows, with replacement: ``start_share`` of them from episodes' first steps."""
        return self.batch(self.draw(batch_size, rng, start_share))

    def draw(self, batch_size: int, rng: np.random.Generator, start_share: float = 0.0) -> Int[np.ndarray, "B"]:
        """The indices of the windows that ``sample`` takes."""
        anywhere = rng.integers(len(self), size=batch_size)
        start = self._first_window[rng.integers(len(self.episodes), size=batch_size)]
        return np.where(rng.random(batch_size) < start_share, start, anywhere)

    def batch(self, indices: Int[np.ndarray, "B"]) -> WindowBatch:
        """The windows of these indices, in this order. Raises ``IndexError`` outside 0 .. len - 1."""
        episode, step = self.locate(indices)
        time = step[:, None] + np.arange(-self.history, self.horizon)
        last = self.store.lengths[episode][:, None]
        cells, mask = self._read(
            self.store.first_rows[episode][:, None] + np.clip(time, 0, last), (time >= 0) & (time <= last)
        )
        return WindowBatch(cells, mask, np.asarray(mask[:, :, self.history].any(-1)), episode, step)

    def locate(self, indices: Int[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """In which episode and at which step the presents of these windows are. Raises as ``batch``."""
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"windows {indices.min()}..{indices.max()} of a dataset of {len(self)}.")
        place = np.searchsorted(self._first_window, indices, side="right") - 1
        return self.episodes[place], (indices - self._first_window[place]) * self.stride

    def _read(
        self, rows: Int[np.ndarray, "B W"], inside: Bool[np.ndarray, "B W"]
    ) -> tuple[Float[np.ndarray, "B N W D"], Bool[np.ndarray, "B N W D"]]:
        """Cells and mask at global rows; rows that are not ``inside`` the window's episode do not exist."""
        names = ("observations", "actions", "agent_mask", "action_mask")
        observations, actions, there, acts = self.store.take(rows, *names)
        grid = np.empty((*there.shape, self.spec.size), np.float32)
        grid[..., : self.spec.observation_size], grid[..., self.spec.observation_size :] = observations, actions
        if self.normalizer is not None:  # as B x W grids of N x 1 x D cells: contiguous, four times as fast
            grid = self.normalizer.normalize(grid[..., None, :], self.spec.role_index)[..., 0, :]
        state = np.where(inside[..., None], there.view(np.int8) + acts, 0).swapaxes(1, 2)
        mask = self._masks.take(state + 3 * np.arange(self.spec.num_agents)[:, None], axis=0)
        return grid.swapaxes(1, 2) * mask, mask

    @cached_property
    def return_ranks(self) -> Float[np.ndarray, "E"]:
        """Where each of the store's episodes stands among them by its team return: 0 (worst) to 1 (best)."""
        returns = self.store.returns.sum(1)
        below, up_to = (np.searchsorted(np.sort(returns), returns, side) for side in ("left", "right"))
        return ((below + up_to) / (2 * len(returns))).astype(np.float32)

    @cached_property
    def _masks(self) -> Bool[np.ndarray, "states D"]:
        """Which entries of a cell exist when the agent is absent, there, or there and acting."""
        entry_is_action = np.arange(self.spec.size) >= self.spec.observation_size
        states = np.stack([entry_is_action < 0, ~entry_is_action, entry_is_action >= 0])
        return (self.spec.feature_mask[:, None] & states).reshape(-1, self.spec.size)


def load_dataset(
    path: str | Path,
    horizon: int,
    history: int = 0,
    normalizer: str | Normalizer | None = "gaussian",
    stride: int = 1,
    episodes: Sequence[int] | None = None,
) -> TrajectoryDataset:
    """Opens a store as windows, with a normalizer fitted to the chosen episodes.

    Args:
        path: folder of a ``TrajectoryStore``.
        horizon: steps from the present on.
        history: steps before the present.
        normalizer: ``"gaussian"``, ``"limits"``, ``"quantile"``, one that is fitted already, or ``None``.
        stride: steps between the presents of neighbouring windows.
        episodes: which episodes to use (all by default).

    Raises:
        ValueError: as ``TrajectoryStore.open``, ``Normalizer.fit`` and ``TrajectoryDataset``.
    """
    store = TrajectoryStore.open(path)
    fitted = Normalizer.fit(store, normalizer, episodes) if isinstance(normalizer, str) else normalizer
    return TrajectoryDataset(store, horizon, history, stride, fitted, episodes)
