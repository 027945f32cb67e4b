"""Putting stores together: data of several teams or skills, to train one planner on all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffplan.datasets.card import write_derived
from diffplan.datasets.store import TrajectoryStore
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory


def merge_stores(paths: Sequence[str | Path], out: str | Path) -> TrajectoryStore:
    """Writes all episodes of several stores to a new one; agents that a store does not have are absent in its episodes.

    The merged store is of the environment of the store with the most agents. Its data card, where one of the stores has
    one, says the licences and origins of all of them.

    Raises:
        ValueError: no stores, one with roles that the largest team's lacks, an agent of two roles, different dt, or
            ``out`` is a store already.
    """
    stores = [TrajectoryStore.open(path) for path in paths]
    if not stores:
        raise ValueError("no stores to merge; give at least one.")
    spec = _union(stores)
    source = "merged: " + "; ".join(store.source for store in stores)
    episodes = (_among(spec, episode) for store in stores for episode in store)
    sizes = ", ".join(map(str, map(len, stores)))
    return write_derived(out, spec, source, episodes, {s.path: s.source for s in stores}, f"merged: {sizes} episodes")


def _union(stores: Sequence[TrajectoryStore]) -> JointSpec:
    largest = max(stores, key=lambda store: store.spec.num_agents)
    agents = dict(largest.spec.agents)
    for store in stores:
        largest.spec.check_same_roles(store.spec, str(largest.path), str(store.path))
        for name, role in store.spec.agents.items():
            if agents.setdefault(name, role) != role:
                raise ValueError(f"{name!r} is a {role!r} in {store.path}, but a {agents[name]!r} in {largest.path}.")
    return replace(largest.spec, agents=agents)


def _among(spec: JointSpec, episode: Trajectory) -> Trajectory:
    """The same episode in a team of more agents, which are absent; some may be wider."""
    columns = [spec.names.index(name) for name in episode.spec.names]

    def spread(array: np.ndarray, *width: int) -> np.ndarray:
        wide = np.zeros((len(array), spec.num_agents, *width), array.dtype)
        wide[:, columns] = np.pad(
            array, [(0, 0), (0, 0), *((0, w - s) for w, s in zip(width, array.shape[2:], strict=True))]
        )
        return wide

    return Trajectory(
        spec,
        spread(episode.observations, spec.observation_size),
        spread(episode.actions, spec.action_size),
        spread(episode.rewards),
        spread(episode.terminations),
        spread(episode.truncations),
        spread(episode.agent_mask),
        episode.labels,
    )
