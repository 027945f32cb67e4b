"""Partners in ``crossing-v0`` that nobody commands: named families of styles with continuous parameters.

A partner walks its own half ellipse at its own tempo. What it will do next cannot be read off where it is and how fast:
whether it brakes for others shows when they meet, a stop-and-go rhythm only over time, a late start not at all. It can
be read off its past: careful robots start gently, rhythms repeat, trends go on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float

from diffplan.envs.behavior import draw_name, drifted
from diffplan.envs.crossing_expert import FEEDBACK
from diffplan.envs.crossing_references import half_ellipses
from diffplan.spec import Actions, Observations

BRAKE = 3.0
"""How fast every partner slows down (m/s^2)."""
SLOWEST, FASTEST = 0.2, 0.95
"""Where trends of the speed end (m/s)."""
DISTURBANCE = 0.05
"""Of a partner's commands, as a share of its speed."""
SWITCH_TIME = (1.6, 2.8)
"""When a partner changes its style, if it does (s)."""


@dataclass(frozen=True)
class Style:
    """How one partner moves.

    Args:
        family: name of the range that the numbers are from.
        arc: how far from the centre its half ellipse passes (m); positive counter-clockwise, negative clockwise.
        speed: when it has got going (m/s).
        ramp: how fast it gets going (m/s^2).
        trend: change of the speed from then on (m/s^2).
        delay: before it starts (s).
        period: of its stop-and-go (s); 0: it does not stop.
        duty: share of the period in which it goes.
        yields: distance within which it brakes for robots before it (m); 0 insists.
    """

    family: str
    arc: float
    speed: float
    ramp: float = 3.0
    trend: float = 0.0
    delay: float = 0.0
    period: float = 0.0
    duty: float = 1.0
    yields: float = 0.0

    @property
    def vector(self) -> Float[np.ndarray, "Z"]:
        """The numbers, each brought to a size of about 1: what a network can be told of a style."""
        numbers = dataclasses.astuple(self)[1:]
        return np.array([*numbers, np.sign(self.arc)], np.float32) / _SIZES

    def labels(self, prefix: str = "") -> dict[str, str | float]:
        """The style as labels of an episode."""
        return {prefix + name: value for name, value in vars(self).items()}

    @classmethod
    def of_labels(cls, labels: Mapping[str, Any], prefix: str = "") -> Self:
        """The style that ``labels`` wrote."""
        return cls(**{field.name: labels[prefix + field.name] for field in dataclasses.fields(cls)})

    def tempo(self, time: float) -> float:
        """The speed that it wants (m/s), ``time`` seconds into the episode, with nobody in its way."""
        going = time - self.delay
        if going < 0 or (self.period and going % self.period >= self.duty * self.period):
            return 0.0
        return float(np.clip(self.speed + self.trend * going, SLOWEST, FASTEST)) if self.trend else self.speed


_SIZES = np.array([0.5, 0.6, 2.0, 0.2, 2.0, 1.0, 1.0, 0.5, 1.0], np.float32)
STYLE_SIZE = len(_SIZES)
"""Width of ``Style.vector``."""

Ranges = Mapping[str, tuple[float, float]]
_TIGHT = {"arc": (0.2, 0.4)}
TRAINING_FAMILIES: dict[str, Ranges] = {
    "bold": {**_TIGHT, "speed": (0.45, 0.6), "ramp": (2.5, 3.5)},
    "polite": {**_TIGHT, "speed": (0.45, 0.6), "ramp": (0.5, 0.8), "yields": (0.5, 0.6)},
    "hesitant": {**_TIGHT, "speed": (0.6, 0.8), "period": (0.8, 1.4), "duty": (0.5, 0.6)},
    "late": {**_TIGHT, "speed": (0.55, 0.75), "delay": (1.3, 2.2)},
    "hastening": {**_TIGHT, "speed": (0.15, 0.25), "trend": (0.14, 0.22)},
    "tiring": {**_TIGHT, "speed": (0.7, 0.8), "trend": (-0.2, -0.14)},
}
"""Six families that data are recorded with: ranges of ``Style``'s numbers (``arc`` of either sign)."""
HELDOUT_FAMILIES: dict[str, Ranges] = {
    "reluctant": {**_TIGHT, "speed": (0.45, 0.6), "delay": (0.6, 1.2), "ramp": (0.5, 0.8), "yields": (0.5, 0.6)},
    "wide": {"arc": (0.6, 0.8), "speed": (0.5, 0.65), "ramp": (2.5, 3.5)},
    "fitful": {**_TIGHT, "speed": (0.8, 0.9), "trend": (-0.06, -0.03), "period": (1.5, 1.8), "duty": (0.55, 0.65)},
}
"""Families that no data show: other combinations and other numbers."""
FAMILIES = TRAINING_FAMILIES | HELDOUT_FAMILIES


def draw_style(family: str, rng: np.random.Generator) -> Style:
    """A style of a family, its numbers uniform in their ranges, either way round the centre.

    Raises:
        ValueError: an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r}; choose one of {tuple(FAMILIES)}.")
    numbers = {name: float(rng.uniform(*ends)) for name, ends in FAMILIES[family].items()}
    numbers["arc"] *= float(rng.choice((-1.0, 1.0)))
    return Style(family, **numbers)


def draw_switch(first: Style, rng: np.random.Generator) -> tuple[float, Style]:
    """When a partner changes (s), and into what: the tempo of another training family, on the arc that it is on."""
    others = [name for name, ranges in TRAINING_FAMILIES.items() if name != first.family and "delay" not in ranges]
    other = draw_style(draw_name(others, rng), rng)
    return float(rng.uniform(*SWITCH_TIME)), dataclasses.replace(other, arc=first.arc)


class Walker:
    """A partner's motion in C worlds at once that differ in what the others do: one for real, many to foresee it.

    Args:
        start: where it is (m).
        goal: where it goes (m).
        style: how.
        dt: seconds a step.
        worlds: C.
        switch: (seconds from the start on, style from then on), if it changes its mind.
    """

    def __init__(
        self,
        start: Float[np.ndarray, "2"],
        goal: Float[np.ndarray, "2"],
        style: Style,
        dt: float,
        worlds: int = 1,
        switch: tuple[float, Style] | None = None,
    ):
        self._style, self._dt, self._switch = style, dt, switch
        self._path = half_ellipses(
            start[None], goal[None], "clockwise" if style.arc < 0 else "counterclockwise", abs(style.arc)
        )[:, 0]
        self._along = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(self._path, axis=0), axis=1)))
        self.travelled, self.speed, self._step = np.zeros(worlds), np.zeros(worlds), 0

    @property
    def style(self) -> Style:
        """How it moves now."""
        if self._switch is not None and self._step * self._dt >= self._switch[0]:
            return self._switch[1]
        return self._style

    @property
    def points(self) -> Float[np.ndarray, "C 2"]:
        """Where it should be now (m)."""
        return self._at(self.travelled)

    @property
    def directions(self) -> Float[np.ndarray, "C 2"]:
        """Unit vectors along its path."""
        step = self._at(self.travelled + 0.01) - self._at(self.travelled - 0.01)
        return step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)

    def advance(self, others: Float[np.ndarray, "C K 2"]) -> None:
        """One step on, seeing where the others are (m)."""
        style, time = self.style, self._step * self._dt
        wanted = np.where(self._blocked(others, style.yields), 0.0, style.tempo(time))
        wanted = np.minimum(wanted, np.sqrt(2 * BRAKE * np.maximum(self._along[-1] - self.travelled, 0)))
        self.speed = self.speed + np.clip(wanted - self.speed, -BRAKE * self._dt, style.ramp * self._dt)
        self.travelled = np.minimum(self.travelled + self.speed * self._dt, self._along[-1])
        self._step += 1

    def _blocked(self, others: np.ndarray, distance: float) -> Bool[np.ndarray, "C"]:
        """Whether somebody is near and before it."""
        offsets = others - self.points[:, None]
        gaps = np.linalg.norm(offsets, axis=2)
        before = (offsets * self.directions[:, None]).sum(2) > 0.5 * gaps
        return np.asarray(((gaps < distance) & before).any(1))

    def _at(self, travelled: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(travelled, self._along, axis) for axis in self._path.T], 1)


class Partner:
    """One robot that follows its style: observations in, its action out.

    Args:
        name: of the robot.
        observations: of all robots, at the start.
        style: how it moves.
        dt: seconds a step.
        rng: source of its disturbance.
        switch: see ``Walker``.
    """

    def __init__(
        self,
        name: str,
        observations: Observations,
        style: Style,
        dt: float,
        rng: np.random.Generator,
        switch: tuple[float, Style] | None = None,
    ):
        self.name, self._rng, self._drift = name, rng, np.zeros(2)
        seen = observations[name].astype(float)
        self.walker = Walker(seen[:2], seen[4:6], style, dt, switch=switch)

    def __call__(self, observations: Observations) -> Float[np.ndarray, "2"]:
        others = np.array([seen[:2] for name, seen in observations.items() if name != self.name], float)
        (now,) = self.walker.points
        self.walker.advance(others.reshape(1, -1, 2))
        self._drift = drifted(self._drift, self._rng.normal(size=2))
        velocity = self.walker.speed[0] * self.walker.directions[0]
        command = velocity + FEEDBACK * (now - observations[self.name][:2])
        command = command + DISTURBANCE * self.walker.speed[0] * self._drift
        return np.asarray(np.clip(command, -1, 1), np.float32)


class ScriptedPartners:
    """A population: in every episode each of ``names`` is of a style drawn from ``families``. Acts for a batch of
    environments, for ``WithPartners``.

    Args:
        names: the robots that are partners.
        families: what they may be.
        dt: seconds a step of the environment.
        switch: every partner changes its style in mid-episode.
    """

    def __init__(self, names: Sequence[str], families: Sequence[str], dt: float, switch: bool = False):
        self.names, self.families, self.dt, self.switch = tuple(names), tuple(families), dt, switch
        self._episodes: list[_Population] = []

    def reset(self, seeds: Sequence[int]) -> None:
        """Draws the styles of one episode a seed."""
        self._episodes = [_Population(self, seed) for seed in seeds]

    def __call__(self, observations: Sequence[Observations | None]) -> list[Actions | None]:
        """The partners' actions; None in, None out."""
        return [seen and one.act(seen) for one, seen in zip(self._episodes, observations, strict=True)]

    @property
    def styles(self) -> list[dict[str, Style]]:
        """{partner: its style} now, an episode."""
        return [one.now for one in self._episodes]


class _Population:
    """The partners of one episode."""

    def __init__(self, population: ScriptedPartners, seed: int):
        self._rng = np.random.default_rng([seed, 7])
        self._dt = population.dt
        self._styles = {
            name: draw_style(draw_name(population.families, self._rng), self._rng) for name in population.names
        }
        self._switches = {
            name: draw_switch(style, self._rng) if population.switch else None for name, style in self._styles.items()
        }
        self._partners: dict[str, Partner] = {}

    @property
    def now(self) -> dict[str, Style]:
        return self._styles | {name: partner.walker.style for name, partner in self._partners.items()}

    def act(self, observations: Observations) -> Actions:
        for name, style in self._styles.items():
            if name not in self._partners and name in observations:
                switch = self._switches[name]
                self._partners[name] = Partner(name, observations, style, self._dt, self._rng, switch)
        return {name: partner(observations) for name, partner in self._partners.items() if name in observations}
