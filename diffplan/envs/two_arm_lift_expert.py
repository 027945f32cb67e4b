"""A scripted expert for ``robosuite:TwoArmLift``: hover over the handles, descend, close, lift, both arms in step.

The jaws close across the bar of the handle, so the hands turn with the pot, each in the nearer of the two ways.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from diffplan.spec import Actions, Observations

STYLES = ("brisk", "careful")
"""``brisk`` moves at full speed, ``careful`` at 60 % of it."""
MEDIUM_NOISE = 0.25  # about half of the episodes succeed

_SPEED = {"brisk": 1.0, "careful": 0.6}
_BASES = (Rotation.from_euler("z", np.pi / 2), Rotation.from_euler("z", -np.pi / 2))  # the arms face each other
_POSITION_GAIN, _ROTATION_GAIN = 2.0 / 0.05, 1.5 / 0.5  # actions per m and per rad
_CLOSING_STEPS = 8
_RISE = 0.012  # m a step


class TwoArmLiftExpert:
    """Drives both arms of one episode; hovering height and grasping point are drawn at its start.

    Args:
        env: not used; the observations tell everything.
        style: one of ``STYLES``.
        rng: draws the variation.
    """

    def __init__(self, env: Any, style: str, rng: np.random.Generator):
        self._speed = _SPEED[style] * rng.uniform(0.9, 1.0)
        self._hover = rng.uniform(0.07, 0.12)  # m above the handles
        self._along = rng.uniform(-0.01, 0.01, 2)  # m along each handle's bar
        self._phase, self._closed_for = "hover", 0
        self._grasp = np.zeros((2, 3))

    def __call__(self, observations: Observations) -> Actions:
        hands = [_Hand(observation) for observation in observations.values()]
        ways = np.stack([self._way(arm, hand) for arm, hand in enumerate(hands)])
        turns = [hand.turn() for hand in hands]
        self._advance(hands, ways, turns)
        grip = 1.0 if self._phase in ("close", "lift") else -1.0
        actions = {}
        for name, base, way, turn in zip(observations, _BASES, ways, turns, strict=True):
            move = base.inv().apply(way) * _POSITION_GAIN
            spin = base.inv().apply(turn.as_rotvec()) * _ROTATION_GAIN
            pose = np.clip(np.concatenate([move, spin]), -self._speed, self._speed)
            actions[name] = np.append(pose, grip).astype(np.float32)
        return actions

    def _way(self, arm: int, hand: "_Hand") -> Float[np.ndarray, "3"]:
        """From the hand to where it should be."""
        if self._phase == "lift":
            return self._grasp[arm] - hand.position
        above = self._hover if self._phase == "hover" else 0.0
        return hand.to_handle + self._along[arm] * hand.along + np.array([0.0, 0.0, above])

    def _advance(self, hands: "list[_Hand]", ways: Float[np.ndarray, "2 3"], turns: list[Rotation]) -> None:
        far, askew = np.linalg.norm(ways, axis=1).max(), max(turn.magnitude() for turn in turns)
        if self._phase == "hover" and far < 0.024 and askew < 0.12:
            self._phase = "descend"
        elif self._phase == "descend" and far < 0.012:
            self._phase = "close"
        elif self._phase == "close":
            self._closed_for += 1
            if self._closed_for == _CLOSING_STEPS:
                self._phase, self._grasp = "lift", np.stack([hand.position for hand in hands])
        if self._phase == "lift":
            self._grasp[:, 2] += _RISE * self._speed


class _Hand:
    """One arm's observation, by name; ``outward`` points from the pot to the arm's handle, ``along`` its bar."""

    def __init__(self, observation: Float[np.ndarray, "19"]):
        self.position, self.quaternion = observation[:3], observation[3:7]
        self.to_handle, pot = observation[9:12], observation[12:15]
        outward = (self.position + self.to_handle - pot) * np.array([1.0, 1.0, 0.0])
        self.outward = outward / np.linalg.norm(outward)
        self.along = np.cross([0.0, 0.0, 1.0], self.outward)

    def turn(self) -> Rotation:
        """The smallest rotation that points the hand down with its jaws (the y axis) across the bar."""
        down, current = np.array([0.0, 0.0, -1.0]), Rotation.from_quat(self.quaternion)
        turns = []
        for jaws in (self.outward, -self.outward):
            wanted = Rotation.from_matrix(np.stack([np.cross(jaws, down), jaws, down], axis=1))
            turns.append(wanted * current.inv())
        return min(turns, key=lambda turn: float(turn.magnitude()))
