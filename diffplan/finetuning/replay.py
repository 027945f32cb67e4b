"""What fine-tuning learns from: offline data and the episodes that were met online, in a set proportion.

Mixing both, half and half, keeps what the offline data know while the new is learned (RLPD, arXiv 2302.02948).
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from diffplan.datasets.store import TrajectoryStore
from diffplan.datasets.transitions import TransitionBatch, take_transitions
from diffplan.datasets.windows import TrajectoryDataset, WindowBatch, mid_ranks

Batch = TypeVar("Batch", WindowBatch, TransitionBatch)
Draw = list[tuple[TrajectoryDataset, np.ndarray]]
_OVERDRAWN = 8  # so many times as many windows as are taken are drawn, where they are chosen by priority


class Replay:
    """Windows and transitions of two stores, which have the same agents.

    Episodes are numbered through: those of the offline store first, then the online ones.

    Args:
        offline: windows of the data that the planner was trained on; its normaliser is the planner's.
        online: grows while the planner acts.
        online_share: share of every batch that comes from the online store, once it holds episodes.
        newest: draw only from so many newest online episodes; None: from all. Bounds what is mapped into memory.
        priority: windows of episodes with the best return among the offline ones are drawn up to e^priority times as
            often as of those with the worst; 0: all alike. Transitions, of which critics learn, are always drawn alike:
            chosen by return, they would teach that a gamble pays.

    The attribute ``since`` is the first online episode to draw from.
    """

    def __init__(
        self,
        offline: TrajectoryDataset,
        online: TrajectoryStore,
        online_share: float,
        newest: int | None,
        priority: float = 0.0,
    ):
        self.offline, self.store, self.online_share, self.newest = offline, online, online_share, newest
        self.priority, self.since = priority, 0
        self.refresh()

    def refresh(self, stop: int | None = None) -> None:
        """Takes in the online episodes before ``stop``: a run that resumes at an earlier round has later ones."""
        stop = len(self.store) if stop is None else stop
        held = range(max(self.since, stop - (self.newest or stop)), stop)
        self.online = self.windows_of(held) if held else None
        self._ranks = self.return_ranks if self.priority else np.zeros(0, np.float32)
        self._best = {1.0: (self.offline, self.online, float(self.online is not None))}

    def changed(self, since: int, stop: int) -> None:
        """The world changed: earlier online episodes are not learned from, the offline data half as much."""
        self.since, self.online_share = since, (1 + self.online_share) / 2
        self.refresh(stop)

    def windows_of(self, episodes: Sequence[int]) -> TrajectoryDataset:
        """Online episodes as a dataset like the offline one, to their very ends."""
        return self.offline.like(store=self.store, episodes=episodes, inside=False, crowd=None)

    def draw(self, batch_size: int, rng: np.random.Generator, start_share: float = 0.0, best: float = 1.0) -> Draw:
        """Which windows make up a batch; ``start_share`` of them are of episodes' first steps.

        All are of the ``best`` share of the offline episodes, by return, and of online ones that are as good (once the
        world has changed, of the best share of those met since), from which the fewer come the fewer they are.
        """
        offline, online, good = self._best_of(best)
        fresh = round(good * self.online_share * batch_size)
        shares = ((offline, batch_size - fresh), (online or offline, fresh))
        return [(dataset, self._draw(dataset, size, rng, start_share)) for dataset, size in shares if size]

    def _draw(
        self, dataset: TrajectoryDataset, size: int, rng: np.random.Generator, start_share: float
    ) -> Int[np.ndarray, "size"]:
        if not self.priority:
            return dataset.draw(size, rng, start_share)
        drawn = dataset.draw(_OVERDRAWN * size, rng, start_share)
        first = self._first_number(dataset)
        weights = np.exp(self.priority * (self._ranks[first + dataset.locate(drawn)[0]] - 1))
        return np.asarray(rng.choice(drawn, size, p=weights / weights.sum()))

    def _best_of(self, share: float) -> tuple[TrajectoryDataset, TrajectoryDataset | None, float]:
        """The windows of the offline episodes that are good enough, of the online ones, and how many of these are."""
        if share not in self._best:
            offline, online, good = self.offline.best(share), self.online, 0.0
            if online is not None:
                returns, known = self.store.mean_returns[online.episodes], offline.store.mean_returns[offline.episodes]
                episodes = online.best(share).episodes if self.since else online.episodes[returns >= known.min()]
                good = len(episodes) / len(online.episodes) / (share if self.since else 1)
                online = self.windows_of(episodes.tolist()) if len(episodes) else None
            self._best[share] = offline, online, min(1.0, good)
        return self._best[share]

    def _first_number(self, dataset: TrajectoryDataset) -> int:
        """Of its store's episodes."""
        return 0 if dataset.store is self.offline.store else len(self.offline.store)

    def windows(self, draw: Draw) -> WindowBatch:
        """The windows drawn."""
        return self._joined([(dataset, dataset.batch(indices)) for dataset, indices in draw])

    def transitions(self, batch_size: int, rng: np.random.Generator, discount: float, steps: int) -> TransitionBatch:
        """Transitions of up to ``steps`` steps, in the same proportion, from any step of an episode."""
        fresh = 0 if self.online is None else round(self.online_share * batch_size)
        sizes = ((self.offline, batch_size - fresh), (self.online or self.offline, fresh))
        parts = [(dataset.every_step(), size) for dataset, size in sizes if size]
        drawn = [(dataset, dataset.draw(size, rng)) for dataset, size in parts]
        return self._joined([(dataset, take_transitions(dataset, at, discount, steps)) for dataset, at in drawn])

    def _joined(self, parts: list[tuple[TrajectoryDataset, Batch]]) -> Batch:
        numbered = [replace(batch, episode=batch.episode + self._first_number(dataset)) for dataset, batch in parts]
        columns = [np.concatenate([getattr(batch, one.name) for batch in numbered]) for one in fields(numbered[0])]
        return type(numbered[0])(*columns)

    @property
    def return_ranks(self) -> Float[np.ndarray, "E"]:
        """Where every episode's mean return of an agent stands among the offline ones, 0 (worst) to 1 (best)."""
        met = mid_ranks(self.store.mean_returns, self.offline.store.mean_returns)
        return np.concatenate([self.offline.return_ranks, met])


def round_seeds(seed: int, round_: int, episodes: int) -> Int[np.ndarray, "E"]:
    """The seeds of a round's episodes, of another stream than those of collection and evaluation."""
    return np.random.SeedSequence([seed, round_, 2]).generate_state(episodes).astype(np.int64)


def evaluation_seed(seed: int, final: bool = False) -> int:
    """The ``seed`` of ``evaluate`` for a run's own evaluations: the same starts every time, but others at the end."""
    return int(np.random.SeedSequence([seed, 5 if final else 3]).generate_state(1)[0])
