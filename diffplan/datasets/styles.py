"""Who is a partner in recorded episodes and of which style, from the episodes' labels: for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from diffplan.datasets.store import TrajectoryStore
from diffplan.envs.crossing_partners import STYLE_SIZE, Style

NO_PARTNER = -1


@dataclass(frozen=True)
class StyleTable:
    """Styles of E episodes of N agents, before and after a switch.

    Args:
        families: their names.
        family: index into ``families``, before [0] and after [1] the switch; -1 for an agent that is no partner.
        vectors: the numbers of a style, likewise; NaN for an agent that is no partner.
        switch_step: first step of the second style.
    """

    families: tuple[str, ...]
    family: Int[np.ndarray, "2 E N"]
    vectors: Float[np.ndarray, "2 E N Z"]
    switch_step: Int[np.ndarray, "E"]

    @classmethod
    def of(cls, store: TrajectoryStore, families: Sequence[str]) -> Self:
        """Reads the labels ``partner``, ``family`` and so on, as ``PartneredExpert`` writes them.

        Raises:
            ValueError: an episode without them, or of a family that is not in ``families``.
        """
        shape, names = (2, len(store), store.spec.num_agents), store.spec.names
        family, switch_step = np.full(shape, NO_PARTNER), np.full(len(store), np.iinfo(np.int64).max)
        vectors = np.full((*shape, STYLE_SIZE), np.nan, np.float32)
        for episode, labels in enumerate(store.labels):
            if labels.get("partner") not in names or labels.get("family") not in families:
                told = {name: labels.get(name) for name in ("partner", "family")}
                raise ValueError(
                    f"episode {episode} of {store.path} has {told}, expected one of {names} and of {tuple(families)}; "
                    "record it with PartneredExpert."
                )
            agent, switched = names.index(str(labels["partner"])), "switch_time" in labels
            styles = [Style.of_labels(labels), Style.of_labels(labels, "switched_" if switched else "")]
            for half, style in enumerate(styles):
                family[half, episode, agent] = list(families).index(style.family)
                vectors[half, episode, agent] = style.vector
            if switched:
                switch_step[episode] = np.ceil(float(labels["switch_time"]) / store.spec.dt - 1e-6)
        return cls(tuple(families), family, vectors, switch_step)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that it says."""
        arrays = (self.family, self.vectors, self.switch_step)
        return sha256(b"".join([repr(self.families).encode(), *(one.tobytes() for one in arrays)])).hexdigest()

    def at(
        self, episode: Int[np.ndarray, "B"], step: Int[np.ndarray, "B"]
    ) -> tuple[Int[np.ndarray, "B N"], Float[np.ndarray, "B N Z"]]:
        """Family and vector of every agent at these steps of these episodes."""
        half = (step >= self.switch_step[episode]).astype(int)
        return self.family[half, episode], self.vectors[half, episode]
