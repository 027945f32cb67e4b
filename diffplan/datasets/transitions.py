"""Transitions of a store for value learning: what a team saw and did, what it got, and where that led.

Over ``n`` steps: rewards are summed with their discount, and what follows is worth ``discount^n`` times the value of
the next observation. The steps are cut short where an agent ends, leaves or joins, and at the end of the recording.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.signal import lfilter

from diffplan.datasets.store import TrajectoryStore
from diffplan.datasets.windows import TrajectoryDataset, check_windows

_MOST_EPISODES = 2_000  # statistics are of at most so many, drawn at random


@dataclass(frozen=True)
class TransitionBatch:
    """B joint transitions; observations and actions are normalised, rewards in physical units.

    ``mask`` says who acts at the step. ``rewards`` are those of the step itself, ``returns`` those of all steps of the
    transition, discounted. ``next_mask`` says who has a future at ``next_observations``: agents that were terminated
    or are gone have none, truncated agents do. ``discounts`` weigh that future.
    """

    observations: Float[np.ndarray, "B N O"]
    actions: Float[np.ndarray, "B N A"]
    mask: Bool[np.ndarray, "B N"]
    rewards: Float[np.ndarray, "B N"]
    returns: Float[np.ndarray, "B N"]
    next_observations: Float[np.ndarray, "B N O"]
    next_mask: Bool[np.ndarray, "B N"]
    discounts: Float[np.ndarray, "B"]
    episode: Int[np.ndarray, "B"]
    step: Int[np.ndarray, "B"]


def take_transitions(
    dataset: TrajectoryDataset, indices: Int[np.ndarray, "B"], discount: float, steps: int = 1
) -> TransitionBatch:
    """The transitions from the presents of these windows over up to ``steps`` steps.

    Raises ``IndexError`` for a window that the dataset does not have.
    """
    store, (episode, step) = dataset.store, dataset.locate(indices)
    time = step[:, None] + np.arange(-1, steps + 1)
    rows = store.first_rows[episode][:, None] + np.clip(time, 0, store.lengths[episode][:, None])
    there, ended, truncated = store.take(rows, "agent_mask", "terminations", "truncations")
    rewards = store.take(rows[:, 1:-1], "rewards")[0]
    done = (ended | truncated) & (time >= 0)[..., None]
    active = there[:, 1:] & ~done[:, :-1]
    acting = active[:, 0]
    changes = (active[:, 1:] != acting[:, None]).any(-1) | (time[:, 2:] >= store.lengths[episode][:, None])
    taken = np.where(changes.any(1), changes.argmax(1) + 1, steps)
    counted = np.arange(steps) < taken[:, None]
    weights = (discount ** np.arange(steps) * counted).astype(np.float32)
    at = np.arange(len(rows)), taken
    observations, next_observations, actions = _normalised(dataset, rows[:, 1], rows[at[0], taken + 1])
    return TransitionBatch(
        observations,
        actions,
        acting,
        rewards[:, 0] * acting,
        np.einsum("bkn,bk->bn", rewards, weights) * acting,
        next_observations,
        there[at[0], taken + 1] & ~ended[at],
        (discount**taken).astype(np.float32),
        episode,
        step,
    )


def _normalised(dataset: TrajectoryDataset, now: Int[np.ndarray, "B"], then: Int[np.ndarray, "B"]) -> list[np.ndarray]:
    """Observations now and then, and actions now, in the units of the dataset's normaliser."""
    rows, O = np.stack([now, then], 1), dataset.spec.observation_size
    observations, actions = dataset.store.take(rows, "observations", "actions")
    cells = np.concatenate([observations, actions], -1)
    if dataset.normalizer is not None:
        cells = dataset.normalizer.normalize(cells[..., None, :], dataset.spec.role_index)[..., 0, :]
    cells = cells * dataset.spec.feature_mask
    return [cells[:, 0, :, :O], cells[:, 1, :, :O], cells[:, 0, :, O:]]


@dataclass(frozen=True)
class RewardStatistics:
    """Per agent and step, in physical units: the reward, and the discounted return from there on."""

    reward_mean: float
    reward_std: float
    return_mean: float
    return_std: float


def reward_statistics(dataset: TrajectoryDataset, discount: float) -> RewardStatistics:
    """How large rewards and discounted returns are in a dataset's episodes (at most 2,000 of them).

    A truncated episode is taken to go on with the mean reward of truncated episodes' last steps.

    Raises:
        TypeError: a store in place of its windows.
        ValueError: all returns are the same, so that there is nothing to learn.
    """
    check_windows(dataset)
    store, chosen = dataset.store, dataset.episodes
    if len(chosen) > _MOST_EPISODES:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, _MOST_EPISODES, replace=False))
    rewards, there, last, ended = _episodes(store, chosen)
    final = rewards[np.arange(len(chosen)), store.lengths[chosen] - 1]
    goes_on = last & ~ended
    after = final[goes_on].mean() / (1 - discount) if goes_on.any() else 0.0
    continued = rewards.copy()
    continued[np.arange(len(chosen)), store.lengths[chosen] - 1] += discount * after * goes_on
    returns = discounted_sums(continued, discount)[there]
    _check_spread(dataset, rewards[there], returns)
    spread = float(rewards[there].std())
    return RewardStatistics(
        float(rewards[there].mean()), spread if spread > 0 else 1.0, float(returns.mean()), float(returns.std())
    )


def _check_spread(dataset: TrajectoryDataset, rewards: Float[np.ndarray, "K"], returns: Float[np.ndarray, "K"]) -> None:
    if not np.isfinite(returns).all():
        raise ValueError(f"{dataset.store.path} has rewards that are not finite; run `diffplan data verify` on it.")
    if returns.std() <= 1e-6 * np.abs(returns).max():
        raise ValueError(
            f"every reward in {dataset.store.path} is {rewards.max():g} and nothing ends early, so that all returns "
            "are the same and there is no value to learn; expected rewards that differ; record the task's rewards."
        )


def _episodes(store: TrajectoryStore, chosen: Int[np.ndarray, "E"]) -> tuple[np.ndarray, ...]:
    """Rewards [E, L, N] and who was there (0 and False beyond an episode's end); who was there, and terminated, last.

    L is the longest episode's length.
    """
    length, time = store.lengths[chosen][:, None], np.arange(store.lengths[chosen].max())
    rows = store.first_rows[chosen][:, None] + np.minimum(time, length - 1)
    rewards, there = store.take(rows, "rewards", "agent_mask")
    there &= (time < length)[..., None]
    final = rows[:, -1:]
    last, ended = store.take(final + 1, "agent_mask")[0][:, 0], store.take(final, "terminations")[0][:, 0]
    return rewards.astype(np.float64) * there, there, last, ended


def discounted_sums(rewards: Float[np.ndarray, "E L N"], discount: float) -> Float[np.ndarray, "E L N"]:
    """At every step, the discounted sum of the rewards from there to the end."""
    return np.asarray(lfilter([1.0], [1.0, -discount], rewards[:, ::-1], axis=1)[:, ::-1])
