"""Data with partners in them: one robot follows a style of its own, the others respond as one does who knows it.

The responding robots (egos) stand still and look for a second, then take half ellipses round the centre. Which way, how
wide, and when each of them sets out is searched for: every choice is foreseen together with the partner, which may
brake for it, and of those that keep clear the one that is over first is taken. So the recorded joint trajectories show
what to do about each style. Styles stand in the labels only.
"""

import itertools
from typing import Any

import numpy as np
from jaxtyping import Float

from diffplan.envs.behavior import draw_name, drifted
from diffplan.envs.crossing_expert import follow
from diffplan.envs.crossing_layouts import RADIUS
from diffplan.envs.crossing_partners import TRAINING_FAMILIES, Partner, Style, Walker, draw_style, draw_switch
from diffplan.envs.crossing_references import half_ellipses, timed
from diffplan.spec import Actions, Observations

LOOK = 10
"""Steps for which egos stand still and look."""
DELAYS = tuple(range(LOOK, LOOK + 36, 7))
"""Steps after which an ego may set out."""
SHORT_AXES = (0.45, 0.75)
"""How far from the centre egos may pass (m)."""
SPEEDS = (0.8, 0.9)
"""Range of the egos' cruising speed (m/s), one per episode."""
CLEARANCE = 0.14
"""What the egos keep from everybody where they can (m)."""
FORESEEN = 95
"""Steps."""
DISTURBANCE = 0.12
"""Of the egos' commands, as a share of their speed."""
MOST_ROBOTS = 5
"""One more has 6 times as many choices: 1 s an episode for 5, 8 s and 0.6 GB for 6."""


class PartneredExpert:
    """Behaviour policy for ``collect_episodes``: any one robot is the partner, all others respond.

    It is for at most ``MOST_ROBOTS`` that all stay, in layout ``open``; for others, ``reset`` raises ``ValueError``.

    Labels tell of every episode who the partner was (``partner``), its ``family``, and the numbers of its style, those
    of its second style too if it switched.

    Args:
        families: what partners may be.
        switch_share: share of episodes in which the partner changes its style.
    """

    def __init__(self, families: tuple[str, ...] = tuple(TRAINING_FAMILIES), switch_share: float = 0.2):
        self.families, self.switch_share = families, switch_share
        self.labels: dict[str, str | int | float | bool] = {}

    def reset(self, env: Any, seed: int) -> None:
        rng, env = np.random.default_rng(seed), env.unwrapped
        _check_team(env)
        self._names, self._dt, self._rng = env.possible_agents, env.joint_spec.dt, rng
        partner = int(rng.integers(len(self._names)))
        style = draw_style(draw_name(self.families, rng), rng)
        switch = draw_switch(style, rng) if rng.random() < self.switch_share else None
        self._style, self._switch, self._partner_name = style, switch, self._names[partner]
        self._partner: Partner | None = None
        self._egos = [index for index in range(len(self._names)) if index != partner]
        choice = respond(env.starts, env.goals, partner, style, switch, float(rng.uniform(*SPEEDS)), self._dt)
        self._reference, self._step = choice, 0
        self._drift = np.zeros((len(self._egos), 2))
        self.labels = {"partner": self._partner_name, **style.labels()}
        if switch is not None:
            self.labels |= {"switch_time": switch[0], **switch[1].labels("switched_")}

    def __call__(self, observations: Observations) -> Actions:
        if self._partner is None:
            name = self._partner_name
            self._partner = Partner(name, observations, self._style, self._dt, self._rng, self._switch)
        self._drift = drifted(self._drift, self._rng.normal(size=self._drift.shape))
        positions = np.array([observations[self._names[ego]][:2] for ego in self._egos])
        commands = follow(self._reference, self._step, positions, self._dt, DISTURBANCE, self._drift)
        self._step += 1
        egos = {self._names[ego]: command for ego, command in zip(self._egos, commands, strict=True)}
        return {**egos, self._partner_name: self._partner(observations)}


def respond(
    starts: Float[np.ndarray, "N 2"],
    goals: Float[np.ndarray, "N 2"],
    partner: int,
    style: Style,
    switch: tuple[float, Style] | None,
    speed: float,
    dt: float,
) -> Float[np.ndarray, "L E 2"]:
    """Where every ego should be at every step (m): the soonest of the choices that keep clear, else the clearest."""
    egos = [index for index in range(len(starts)) if index != partner]
    choices = _choices(starts[egos], goals[egos], speed, dt)
    walker = Walker(starts[partner], goals[partner], style, dt, len(choices), switch)
    nearest, over = np.full(len(choices), np.inf), np.zeros(len(choices))
    first, second = np.triu_indices(len(starts), 1)
    for step in range(FORESEEN):
        others = choices[:, step]
        everybody = np.concatenate([others, walker.points[:, None]], 1)
        nearest = np.minimum(nearest, np.linalg.norm(everybody[:, first] - everybody[:, second], axis=2).min(1))
        under_way = np.linalg.norm(everybody - np.vstack([goals[egos], goals[partner]]), axis=2) > 0.08
        over = np.where(under_way.any(1), step, over)
        walker.advance(others)
    late = (choices[:, 1:] == choices[:, :-1]).all(3).sum((1, 2))  # of equally soon ones, not to wait for nothing
    cost = np.where(nearest > 2 * RADIUS + CLEARANCE, over - 1e-3 * late, 1e3 - nearest)
    return np.asarray(choices[int(np.argmin(cost))])


def _check_team(env: Any) -> None:
    if env.layout != "open" or env.turnover is not None:
        others = f"layout={env.layout!r}" if env.layout != "open" else "an open team (turnover)"
        raise ValueError(f"PartneredExpert does not know {others}; make the environment with layout='open' alone.")
    if env.num_robots > MOST_ROBOTS:
        raise ValueError(
            f"num_robots={env.num_robots} have 4 x 6^{env.num_robots - 1} choices to search; PartneredExpert is for "
            f"{MOST_ROBOTS} at most."
        )


def _choices(starts: np.ndarray, goals: np.ndarray, speed: float, dt: float) -> Float[np.ndarray, "C L E 2"]:
    """All that the egos may do together, over ``FORESEEN`` steps."""
    joint = []
    for way, short in itertools.product(("clockwise", "counterclockwise"), SHORT_AXES):
        path = half_ellipses(starts, goals, way, short)
        alone = [timed(path[:, ego : ego + 1], speed, dt)[:, 0] for ego in range(len(starts))]
        for delays in itertools.product(DELAYS, repeat=len(starts)):
            steps = [np.arange(FORESEEN) - delay for delay in delays]
            joint.append([one[np.clip(at, 0, len(one) - 1)] for one, at in zip(alone, steps, strict=True)])
    return np.asarray(joint).swapaxes(1, 2)
