"""What one plan starts from, and how plans are sampled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diffplan.planners.guides import Guide
from diffplan.spec import Actions, Observations
from diffplan.trajectory import Cells, Plan


@dataclass(frozen=True)
class Question:
    """What one plan starts from.

    Args:
        observations: the present. An agent without a key is absent; an entry that is not finite is unknown (partial
            observability, or a sensor that failed).
        past: (observations, actions) of earlier steps, the latest last.
        given: further known cells: a goal, a partner's announced plan, actions to forecast under; step 0 is now. They
            count less than what is known anyway (the present, static entries), and those with a noise level as that
            well known. Give whole observations, whole actions, or both: single entries were not practised, and a path
            of positions alone is mostly ignored. Single cells amid the horizon stand in the plan, but bend the rest
            of it too little, also where they were practised (``QuestionMix(waypoints=)``).
        warm_start: an earlier plan, shifted so that its step 0 is now.
        seed: of this plan's noise.
        latents: what is known of each agent beyond its observation (NaN: nothing), for a denoiser with ``latent_size``;
            None: inferred by the planner's partner encoder, if it has one.
    """

    observations: Mapping[str, Any]
    past: Sequence[tuple[Observations, Actions]] = ()
    given: Cells | None = None
    warm_start: Plan | None = None
    seed: int = 0
    latents: Float[np.ndarray, "N Z"] | None = None

    def __post_init__(self) -> None:
        _check_whole(seed=self.seed)
        if not isinstance(self.observations, Mapping):
            raise TypeError(f"observations are a {type(self.observations).__name__}; pass {{agent: array}}.")
        if not isinstance(self.given, Cells | None):
            raise TypeError(f"given is a {type(self.given).__name__}; pass Cells, e.g. plan.cells('robot_0').")


@dataclass(frozen=True)
class Sampling:
    """How plans are sampled; the arguments of ``DiffusionPlanner.__call__`` that say so, explained there."""

    num_samples: int = 1
    num_inference_steps: int = 5
    warm_start_level: float = 0.7
    decode_actions: bool = False
    return_chain: bool = False
    guides: Sequence[Guide] = ()
    resample: bool = False
    target_return: float | None = None
    guidance_scale: float = 1.0
    realism: float = 0.0
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        _check_whole(num_samples=self.num_samples, num_inference_steps=self.num_inference_steps)
        for name in ("num_samples", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; ask for at least one.")
        if not 0 < self.warm_start_level <= 1:
            raise ValueError(f"warm_start_level={self.warm_start_level}; choose a noise level in (0, 1].")
        if isinstance(self.guides, Guide) or not all(isinstance(one, Guide) for one in self.guides):
            raise TypeError(
                "guides= takes a list of guides; ConstraintGuide(function) makes one of a function, and keeps plans "
                "where that is 0."
            )
        if self.realism and any(guide.name == "realism" for guide in self.guides):
            raise ValueError("a guide is named 'realism', as the term that realism= adds; give it another name.")
        if self.resample and not self._pulled:
            raise ValueError("resample=True needs guides that move plans (levels=); else every candidate counts alike.")
        if self.resample and self.num_samples < 2:
            raise ValueError("resample=True needs candidates to choose from; give num_samples=2 or more.")
        if not 0 <= self.realism < float("inf"):
            raise ValueError(f"realism={self.realism}; give the weight of the realism term, 0 or more.")
        if self.target_return is not None and not 0 <= self.target_return <= 1:
            raise ValueError(f"target_return={self.target_return}; give a rank among the data, 0 (worst) to 1 (best).")
        if self.target_return is None and self.guidance_scale != 1:
            raise ValueError(f"guidance_scale={self.guidance_scale} needs target_return, the return to go for.")
        if not abs(self.guidance_scale) < float("inf"):
            raise ValueError(f"guidance_scale={self.guidance_scale}; give a finite number.")
        if self.deadline_ms is not None and not 0 < self.deadline_ms < float("inf"):
            raise ValueError(
                f"deadline_ms={self.deadline_ms}; give a positive number of milliseconds, or None for no deadline."
            )

    def first_level(self, questions: Sequence[Question]) -> float:
        """Where sampling begins: at pure noise, or at the level to which warm starts are noised.

        Raises ``ValueError`` where only some of the questions have a warm start.
        """
        warm = {question.warm_start is not None for question in questions}
        if len(warm) > 1:
            raise ValueError("some questions have a warm_start and some do not; ask them in two calls.")
        return self.warm_start_level if True in warm else 1.0

    @property
    def moves(self) -> bool:
        """Whether guides move plans by their gradient, and what comes of that is kept."""
        return self._pulled and not self.resample

    @property
    def _pulled(self) -> bool:
        return any(guide.levels is not None and guide.weight > 0 for guide in self.guides)


def _check_whole(**numbers: Any) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer):
            raise ValueError(f"{name}={number!r}; give a whole number.")
