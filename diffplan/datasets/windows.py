"""Windows of a store: some steps of history and a horizon of steps from the present on, drawn by index, normalised."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from diffplan.datasets.normalizer import Normalizer, chosen_episodes
from diffplan.datasets.store import TrajectoryStore

_BATCHES = 8  # so many are drawn at once, and one is taken, to put windows of similar crowds together


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

    Windows reach over an episode's ends without inventing transitions: what lies outside is masked, unless ``inside``
    leaves such windows out.

    Args:
        store: the episodes.
        horizon: steps from the present on (the present included).
        history: steps before the present.
        stride: steps between the presents of neighbouring windows.
        normalizer: brings cells to a common size; ``None`` leaves them in physical units.
        episodes: which episodes to draw from (all by default), e.g. to hold some out: indices, or a mask with a truth
            value for each episode of the store.
        inside: only windows that lie within their episode as a whole.
        crowd: ``sample`` shows at most so many agents of a window: one of them and those nearest to it, of one role;
            windows of similar crowds are drawn together. None: all agents, in their places.

    Raises:
        ValueError: no window at all, a size that is not positive, an episode that is not in the store, ``episodes``
            that are neither indices nor a mask of the store's length, a normalizer of another spec, or a ``crowd`` of
            agents that are not of one role or have no position.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        horizon: int,
        history: int = 0,
        stride: int = 1,
        normalizer: Normalizer | None = None,
        episodes: Sequence[int] | None = None,
        inside: bool = False,
        crowd: int | None = None,
    ):
        for name, value, least in (("horizon", horizon, 1), ("history", history, 0), ("stride", stride, 1)):
            if value < least:
                raise ValueError(f"{name}={value}; choose at least {least}.")
        self.store, self.spec, self.normalizer = store, store.spec, normalizer
        expected = (len(self.spec.roles), self.spec.size)
        if normalizer is not None and np.shape(normalizer.config.center) != expected:
            got = np.shape(normalizer.config.center)
            raise ValueError(
                f"the normalizer has [roles, entries] {got}, {store.path} {expected}: "
                "it was fitted to data of another task; give data of its own, or fit one to this store."
            )
        role = next(iter(self.spec.roles.values()))
        if crowd is not None and (crowd < 1 or len(self.spec.roles) > 1 or not role.position):
            raise ValueError(
                f"crowd={crowd} of roles {list(self.spec.roles)}; it takes at least one agent, of one role that has a "
                "position. Leave it out to show all agents."
            )
        self.horizon, self.history, self.stride, self.inside, self.crowd = horizon, history, stride, inside, crowd
        self.episodes = chosen_episodes(store, episodes)
        if not len(self.episodes):
            raise ValueError(
                f"no episodes to draw windows from: {store.path} has {len(store)}; collect or choose some."
            )
        if self.episodes.min() < 0 or self.episodes.max() >= len(store):
            outside = self.episodes[(self.episodes < 0) | (self.episodes >= len(store))]
            raise ValueError(f"episodes {outside[:5].tolist()} are not in {store.path}; it has 0..{len(store) - 1}.")
        presents = store.lengths[self.episodes] + (2 - history - max(2, horizon) if inside else 0)
        self._first_window = np.concatenate([[0], np.cumsum(-(-presents.clip(0) // stride))])
        if not len(self):
            raise ValueError(
                f"no episode of {store.path} is as long as a window, {history + horizon} cells; shorten it."
            )

    def __len__(self) -> int:
        return int(self._first_window[-1])

    def __repr__(self) -> str:
        return (
            f"TrajectoryDataset({len(self)} windows of {self.history} + {self.horizon} steps, "
            f"{len(self.episodes)} episodes, {self.normalizer}; {self.spec})"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Which windows of an episode these are: horizon, history, stride, inside and crowd."""
        names = ("horizon", "history", "stride", "inside", "crowd")
        return {name: getattr(self, name) for name in names}

    @property
    def facts(self) -> dict[str, Any]:
        """What tells these windows of a store from others."""
        return self.settings | {"episodes": self.digest}

    def like(self, **changes: Any) -> Self:
        """The same windows but for these arguments of the constructor: ``dataset.like(stride=1)``."""
        same = {"store": self.store, "normalizer": self.normalizer, "episodes": self.episodes, **self.settings}
        return type(self)(**(same | changes))

    def best(self, share: float) -> Self:
        """The windows of this share of its episodes, those of the best return.

        Where episodes succeed or fail, what imitates these alone does far better than what imitates all (filtered
        behaviour cloning, %BC of arXiv 2106.01345); not where returns tell of the start rather than of what was done.
        Episodes of one return stand or fall together: of rewards that few episodes earn, these few are left.

        Raises ``ValueError`` for a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"best {share}; it is a share of the episodes, more than 0 and at most 1.")
        returns = self.store.mean_returns[self.episodes]
        ranks = mid_ranks(returns, returns)
        chosen = self.episodes[ranks >= min(1 - share, ranks.max())]
        return self.like(episodes=chosen)

    def every_step(self) -> Self:
        """The windows at every step of the same episodes, to their very ends: those of which values are learned."""
        return self.like(stride=1, inside=False) if self.stride > 1 or self.inside else self

    def sample(self, batch_size: int, rng: np.random.Generator, start_share: float = 0.0) -> WindowBatch:
        """``batch_size`` windows, with replacement: ``start_share`` of them from episodes' first steps."""
        if self.crowd is None:
            return self.batch(self.draw(batch_size, rng, start_share))
        drawn = self.draw(_BATCHES * batch_size, rng, start_share)
        if (deserted := self._crowds[drawn] == 0).any():
            drawn[deserted] = rng.choice(np.flatnonzero(self._crowds), deserted.sum())
        alike = np.argsort(self._crowds[drawn], kind="stable").reshape(_BATCHES, batch_size)
        return self._nearest(self.batch(drawn[alike[rng.integers(_BATCHES)]]), self.crowd, rng)

    def draw(self, batch_size: int, rng: np.random.Generator, start_share: float = 0.0) -> Int[np.ndarray, "B"]:
        """The indices of the windows that ``sample`` takes."""
        anywhere = rng.integers(len(self), size=batch_size)
        starts = self._first_window[:-1][np.diff(self._first_window) > 0]  # an episode may be too short for a window
        start = starts[rng.integers(len(starts), size=batch_size)]
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

    def __getitems__(self, indices: Sequence[int]) -> WindowBatch:
        """``batch``, as torch's ``DataLoader(dataset, batch_size, collate_fn=lambda windows: windows)`` asks for it."""
        return self.batch(np.asarray(indices))

    def locate(self, indices: Int[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """In which episode and at which step the presents of these windows are. Raises as ``batch``."""
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"windows {indices.min()}..{indices.max()} of a dataset of {len(self)}.")
        place = np.searchsorted(self._first_window, indices, side="right") - 1
        first = self.history if self.inside else 0
        return self.episodes[place], first + (indices - self._first_window[place]) * self.stride

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

    def _nearest(self, windows: WindowBatch, crowd: int, rng: np.random.Generator) -> WindowBatch:
        """Of each window's agents at the present any one and the nearest to it, at most ``crowd``."""
        place = list(next(iter(self.spec.roles.values())).position)
        present, there = windows.cells[:, :, self.history][..., place], windows.agent_mask
        anchor = (rng.random(there.shape) * there).argmax(1)
        distance = np.linalg.norm(present - present[np.arange(len(present)), anchor][:, None], axis=-1)
        order = np.where(there, distance, np.inf).argsort(1, kind="stable")[:, : min(crowd, int(there.sum(1).max()))]
        cells, mask = (
            np.take_along_axis(grid, order[..., None, None], axis=1) for grid in (windows.cells, windows.mask)
        )
        agent_mask = np.take_along_axis(there, order, axis=1)
        return WindowBatch(cells, mask, agent_mask, windows.episode, windows.step)

    @cached_property
    def _crowds(self) -> Int[np.ndarray, "windows"]:
        """How many agents there are at each window's present."""
        episode, step = self.locate(np.arange(len(self)))
        (there,) = self.store.take((self.store.first_rows[episode] + step)[:, None], "agent_mask")
        return np.asarray(there[:, 0].sum(-1))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of which episodes of the store it holds."""
        return hashlib.sha256(self.episodes.astype(np.int64).tobytes()).hexdigest()

    @cached_property
    def return_ranks(self) -> Float[np.ndarray, "E"]:
        """Where each of the store's episodes stands among them by its agents' mean return: 0 (worst) to 1 (best)."""
        return mid_ranks(self.store.mean_returns, self.store.mean_returns)

    @cached_property
    def _masks(self) -> Bool[np.ndarray, "states D"]:
        """Which entries of a cell exist when the agent is absent, there, or there and acting."""
        entry_is_action = np.arange(self.spec.size) >= self.spec.observation_size
        states = np.stack([entry_is_action < 0, ~entry_is_action, entry_is_action >= 0])
        return (self.spec.feature_mask[:, None] & states).reshape(-1, self.spec.size)


def mid_ranks(returns: Float[np.ndarray, "E"], among: Float[np.ndarray, "K"]) -> Float[np.ndarray, "E"]:
    """Where each stands among some: 0 (worst) to 1 (best), equal ones in the middle of their places."""
    below, up_to = (np.searchsorted(np.sort(among), returns, side) for side in ("left", "right"))
    return ((below + up_to) / (2 * len(among))).astype(np.float32)


def check_windows(dataset: object) -> None:
    """Raises ``TypeError`` where it is something else, such as the store itself."""
    if not isinstance(dataset, TrajectoryDataset):
        what = type(dataset).__name__
        raise TypeError(f"dataset is a {what}; pass windows of it, load_dataset(folder, horizon=..., history=...).")


def check_horizon(dataset: TrajectoryDataset, horizon: int, history: int) -> None:
    """Raises ``ValueError`` unless these windows are as long as those of a planner, before and after the present."""
    if (horizon, history) != (dataset.horizon, dataset.history):
        raise ValueError(
            f"the planner has horizon={horizon}, history={history}, the dataset horizon={dataset.horizon}, "
            f"history={dataset.history}; load the dataset with the planner's."
        )


def load_dataset(
    path: str | Path,
    horizon: int,
    history: int = 0,
    normalizer: str | Normalizer | None = "gaussian",
    stride: int = 1,
    episodes: Sequence[int] | None = None,
    inside: bool = False,
    crowd: int | None = None,
) -> TrajectoryDataset:
    """Opens a store as windows, with a normalizer fitted to the chosen episodes.

    Args:
        path: folder of a ``TrajectoryStore``.
        horizon: steps from the present on.
        history: steps before the present.
        normalizer: ``"gaussian"``, ``"limits"``, ``"quantile"``, ``"motion"``, one that is fitted already, or ``None``.
        stride: steps between the presents of neighbouring windows.
        episodes: which episodes to use (all by default), see ``TrajectoryDataset``.
        inside: only windows that lie within their episode as a whole.
        crowd: at most so many agents a window, see ``TrajectoryDataset``.

    Raises:
        ValueError: as ``TrajectoryStore.open``, ``Normalizer.fit`` and ``TrajectoryDataset``.
    """
    store = TrajectoryStore.open(path)
    fitted = Normalizer.fit(store, normalizer, episodes, horizon) if isinstance(normalizer, str) else normalizer
    return TrajectoryDataset(store, horizon, history, stride, fitted, episodes, inside, crowd)
