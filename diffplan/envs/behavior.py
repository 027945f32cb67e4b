"""Behaviour policies: who drives the robots while data are collected, how well (skill) and in which way (style)."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from diffplan.spec import Actions, Observations

SKILLS = ("expert", "medium", "random", "replay")


class BehaviorPolicy(Protocol):
    """Drives every agent of one environment. ``labels`` describes the current episode (skill, style, ...), for the store."""

    labels: dict[str, str | int | float | bool]

    def reset(self, env: Any, seed: int) -> None:
        """Starts an episode; called after ``env.reset``. All randomness of the episode comes from ``seed``."""

    def __call__(self, observations: Observations) -> Actions:
        """Actions of all present agents."""


class SkilledPolicy:
    """Degrades an expert to a known skill, the same way in every task.

    ``medium`` adds smooth noise to the expert's actions (first-order, ``noise`` times the action range, correlated over about
    ten steps); ``random`` draws smooth actions uniformly; ``replay`` draws
    one of the three per episode.

    Args:
        expert: makes the expert for one episode's style: ``expert(env, style, rng) -> (observations -> actions)``.
        skill: one of ``SKILLS``.
        style: one of ``styles`` or ``"mixed"``.
        styles: the styles that the expert knows.
        noise: size of the medium noise as a share of half the action range.
        styles_of: which of the styles one environment knows, where that depends on its options; all of them by default.

    The object that ``expert`` makes may have ``labels`` of its own (a speed, say), which join the episode's.

    Raises:
        ValueError: an unknown skill or style; on ``reset``, a style that this environment does not know.
    """

    def __init__(
        self,
        expert: Callable[[Any, str, np.random.Generator], Callable[[Observations], Actions]],
        skill: str,
        style: str,
        styles: tuple[str, ...],
        noise: float = 0.5,
        styles_of: Callable[[Any], tuple[str, ...]] | None = None,
    ):
        if skill not in SKILLS:
            raise ValueError(f"skill={skill!r}; choose one of {SKILLS}.")
        if style not in (*styles, "mixed"):
            raise ValueError(f"style={style!r}; choose one of {(*styles, 'mixed')}.")
        self.expert, self.skill, self.style, self.styles, self.noise = expert, skill, style, styles, noise
        self.styles_of = styles_of or (lambda env: styles)
        self.labels: dict[str, str | int | float | bool] = {}

    def reset(self, env: Any, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        skill = str(self._rng.choice(SKILLS[:3])) if self.skill == "replay" else self.skill
        styles = self.styles_of(env)
        style = str(self._rng.choice(styles)) if self.style == "mixed" else self.style
        if style not in styles:
            raise ValueError(f"style={style!r} does not fit this environment; choose one of {(*styles, 'mixed')}.")
        self._act = self.expert(env, style, self._rng)
        self.labels = {"skill": skill, "style": style, **getattr(self._act, "labels", {})}
        self._bounds = {name: (env.action_space(name).low, env.action_space(name).high) for name in env.possible_agents}
        self._drift = {name: np.zeros_like(low) for name, (low, _) in self._bounds.items()}

    def __call__(self, observations: Observations) -> Actions:
        skill = self.labels["skill"]
        actions = (
            self._act(observations)
            if skill != "random"
            else {name: np.zeros_like(self._bounds[name][0]) for name in observations}
        )
        return (
            actions if skill == "expert" else {name: self._degraded(name, action) for name, action in actions.items()}
        )

    def _degraded(self, name: str, action: np.ndarray) -> np.ndarray:
        low, high = self._bounds[name]
        half, scale = (high - low) / 2, 1.0 if self.labels["skill"] == "random" else self.noise
        shock = self._rng.normal(size=low.shape).astype(np.float32)
        self._drift[name] = 0.9 * self._drift[name] + np.sqrt(1 - 0.9**2) * shock
        center = (high + low) / 2 if self.labels["skill"] == "random" else action
        return np.clip(center + scale * half * self._drift[name], low, high).astype(np.float32)


def random_policy(env_id: str, skill: str, style: str, scripted: str) -> SkilledPolicy:
    """Smooth random actions, all that a task without a script has; ``scripted`` names the tasks that have one.

    Raises:
        ValueError: any other skill than ``"random"``.
    """
    if skill != "random":
        raise ValueError(
            f"{env_id} has no script for skill={skill!r}; use skill='random' or your own policy (scripted: {scripted})."
        )
    return SkilledPolicy(lambda env, style, rng: lambda observations: {}, skill, style, ("none",))
