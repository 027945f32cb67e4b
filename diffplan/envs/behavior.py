"""Behaviour policies: who drives the robots while data are collected, how well (skill) and in which way (style)."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from diffplan.spec import Actions, Observations

SKILLS = ("expert", "medium", "random", "replay")


class BehaviorPolicy(Protocol):
    """Drives every agent of one environment; ``labels`` describes the episode (skill, style, ...) for the store."""

    labels: dict[str, str | int | float | bool]

    def reset(self, env: Any, seed: int) -> None:
        """Starts an episode; called after ``env.reset``. All randomness of the episode comes from ``seed``."""

    def __call__(self, observations: Observations) -> Actions:
        """Actions of all present agents."""


class SkilledPolicy:
    """Degrades an expert to a known skill, the same way in every task.

    ``medium`` adds smooth noise to the expert's actions (first-order, correlated over about ten steps); ``random``
    draws smooth actions round the middle of their range; ``replay`` draws one of the three per episode.

    Args:
        expert: makes the expert for one episode's style: ``expert(env, style, rng) -> (observations -> actions)``.
        skill: one of ``SKILLS``.
        style: one of ``styles`` or ``"mixed"``.
        styles: the styles that the expert knows.
        noise: size of the medium noise as a share of half the action range, or a function from environment to it.
        noise_at_rest: share of that noise while the expert commands nothing; below 1 for a task that ends at rest.
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
        noise: float | Callable[[Any], float] = 0.5,
        noise_at_rest: float = 1.0,
        styles_of: Callable[[Any], tuple[str, ...]] | None = None,
    ):
        if skill not in SKILLS:
            raise ValueError(f"skill={skill!r}; choose one of {SKILLS}.")
        if style not in (*styles, "mixed"):
            raise ValueError(f"style={style!r}; choose one of {(*styles, 'mixed')}.")
        if skill == "random" and style != "mixed":
            raise ValueError(f"style={style!r}, but skill='random' drives in none; leave the style out.")
        self.expert, self.skill, self.style, self.noise = expert, skill, style, noise
        self.noise_at_rest, self.styles_of = noise_at_rest, styles_of or (lambda env: styles)
        self.labels: dict[str, str | int | float | bool] = {}

    def reset(self, env: Any, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        skill = draw_name(SKILLS[:3], self._rng) if self.skill == "replay" else self.skill
        styles = self.styles_of(env)
        style = draw_name(styles, self._rng) if self.style == "mixed" else self.style
        if style not in styles:
            raise ValueError(f"style={style!r} does not fit this environment; choose one of {(*styles, 'mixed')}.")
        self.labels = {"skill": skill, "style": "none"}
        if skill != "random":
            self._act = self.expert(env, style, self._rng)
            self._noise = self.noise(env) if callable(self.noise) else self.noise
            self.labels |= {"style": style, **getattr(self._act, "labels", {})}
        spaces = {name: env.action_space(name) for name in env.possible_agents}
        self._center = {name: (space.high + space.low) / 2 for name, space in spaces.items()}
        self._half = {name: (space.high - space.low) / 2 for name, space in spaces.items()}
        self._drift = {name: np.zeros_like(half) for name, half in self._half.items()}

    def __call__(self, observations: Observations) -> Actions:
        if self.labels["skill"] == "random":
            return {name: self._noisy(name, self._center[name], 1.0) for name in observations}
        actions = self._act(observations)
        if self.labels["skill"] == "expert":
            return actions
        return {name: self._noisy(name, action, self._medium_scale(name, action)) for name, action in actions.items()}

    def _medium_scale(self, name: str, action: np.ndarray) -> float:
        effort = float(np.abs((action - self._center[name]) / self._half[name]).max())
        return self._noise * (self.noise_at_rest + (1 - self.noise_at_rest) * effort)

    def _noisy(self, name: str, action: np.ndarray, scale: float) -> np.ndarray:
        center, half = self._center[name], self._half[name]
        shock = self._rng.normal(size=half.shape).astype(np.float32)
        self._drift[name] = drifted(self._drift[name], shock)
        noisy = action + scale * half * self._drift[name]
        return np.asarray(np.clip(noisy, center - half, center + half), np.float32)


def drifted(drift: np.ndarray, shock: np.ndarray) -> np.ndarray:
    """The next value of a smooth disturbance of variance 1, correlated over about ten steps (first-order).

    Args:
        drift: its value now.
        shock: standard normal, of the same shape.
    """
    return 0.9 * drift + np.sqrt(1 - 0.9**2) * shock


def draw_name(names: Sequence[str], rng: np.random.Generator) -> str:
    """One of the names, drawn as ``rng.choice`` would; that loses a Ctrl-C that comes while it converts strings."""
    return names[int(rng.integers(len(names)))]


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
