"""A safety filter: the actions nearest to the planned ones that keep robots apart, whatever the network says.

Robots are discs driven by velocity servos. Of all changes ``u`` of the velocities that a step's commands can bring
about, the filter takes the nearest to what the actions ``a`` do, by a quadratic program (``F``, ``S``: ``barrier``):

    ``min sum_i |u_i - F(a_i - v_i)|^2``  so that  ``n_ij . (u_i - u_j) >= s_ij - S(m_ij, s_ij)``,  ``low <= u <= high``
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffplan.planners.barrier import ROUNDING, VelocityServo, constraints, fastest, nearest
from diffplan.spec import Actions, JointSpec

NO_OBSTACLES, NO_PARTNERS = np.zeros((0, 3)), np.zeros((0, 4))


@dataclass
class SafetyStats:
    """How often and how much the filter changed what was asked for.

    Args:
        calls: teams filtered.
        robots: robots in them.
        limited: actions outside the limits, scaled to them.
        changed: calls that changed an action, other than by its limits.
        total: such changes of all actions, summed (m/s).
        largest: the greatest of them (m/s).
        infeasible: calls without a solution: robots in each other's way braked, giving way where that alone would fail.
        not_finite: robots that braked because their action, position or velocity was not finite.
    """

    calls: int = 0
    robots: int = 0
    limited: int = 0
    changed: int = 0
    total: float = 0.0
    largest: float = 0.0
    infeasible: int = 0
    not_finite: int = 0

    def clear(self) -> None:
        """Counts anew."""
        vars(self).update(vars(type(self)()))

    @property
    def changed_share(self) -> float:
        return self.changed / max(1, self.calls)

    @property
    def mean_change(self) -> float:
        """Mean change of one robot's action in one call (m/s)."""
        return self.total / max(1, self.robots)


@dataclass(frozen=True)
class SafetyFilter:
    """Keeps robots, obstacles and walls apart by the least change of the actions, desired velocities.

    Args:
        radius: of a robot (m).
        max_speed: greatest norm of an action (m/s).
        max_acceleration: of a robot along one axis (m/s^2).
        time_constant: of a robot's approach to the desired velocity while its acceleration is below that (s).
        dt: time for which an action is held (s).
        half_width: walls stand at plus and minus this in x and y (m); None where there are none.
        boxes: what else stands still: least x, least y, greatest x and greatest y of each (m).
        margin: gap that is kept free (m), for what the model does not know.
        reserve: share of ``max_acceleration`` to count on; above a half, two robots need each other to brake.

    Raises:
        ValueError: a setting out of its range, or no room between the walls.

    Example:
        >>> safety = SafetyFilter(radius=0.1, max_speed=1.0, max_acceleration=5.0, time_constant=0.05, dt=0.1)
        >>> apart, rest = np.array([[0.0, 0.0], [0.3, 0.0]]), np.zeros((2, 2))
        >>> safety.filter(apart, rest, np.array([[0.1, 0.0], [-0.1, 0.0]])).tolist()
        [[0.1, 0.0], [-0.1, 0.0]]
        >>> bool(np.abs(safety.filter(apart, rest, np.array([[1.0, 0.0], [-1.0, 0.0]]))).max() < 0.5)
        True
    """

    radius: float
    max_speed: float
    max_acceleration: float
    time_constant: float
    dt: float
    half_width: float | None = None
    boxes: Sequence[Sequence[float]] = ()
    margin: float = 0.01
    reserve: float = 0.4
    stats: SafetyStats = field(default_factory=SafetyStats, init=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("radius", "max_speed", "max_acceleration", "time_constant", "dt"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name}={getattr(self, name)}, expected a positive number; give the robot's own.")
        if not 0 <= self.margin < np.inf:
            raise ValueError(f"margin={self.margin}, expected 0 or more; give a distance (m) to keep free.")
        if not 0 < self.reserve <= 1:
            raise ValueError(f"reserve={self.reserve}, expected a share in (0, 1]; 0.4 suits most teams.")
        if self.half_width is not None and not self.half_width > self.radius + self.margin:
            least = self.radius + self.margin
            raise ValueError(f"half_width={self.half_width}, expected more than radius + margin = {least:g}; or None.")
        for box in self.boxes:
            if len(box) != 4 or not np.isfinite(box).all() or box[0] > box[2] or box[1] > box[3]:
                raise ValueError(f"a box is {tuple(box)}, expected (least x, least y, greatest x, greatest y) in m.")

    def filter_actions(
        self, spec: JointSpec, observations: Mapping[str, Any], actions: Actions, partners: Sequence[str] = ()
    ) -> Actions:
        """``filter`` of {agent: action}; positions, velocities and obstacles are read from the observations.

        Agents that are observed and have no action here, or are ``partners``, whose actions stay as they are, are taken
        to filter for themselves: so one robot of a team without a head keeps apart from those that it sees.

        Raises:
            ValueError: a role that does not say where its planar position and velocity are, or has other actions.
        """
        mine = {name: action for name, action in actions.items() if name not in partners}
        if not mine:
            return dict(actions)
        own = np.stack([_state(spec, name, observations[name]) for name in mine])
        others = [_state(spec, name, seen) for name, seen in observations.items() if name not in mine]
        obstacles = [
            np.asarray(observations[name], float)[list(spec.role_of(name).obstacles)].reshape(-1, 3) for name in mine
        ]
        known = [rows[np.isfinite(rows).all(1)] for rows in obstacles]
        safe = self.filter(
            own[:, :2],
            own[:, 2:],
            np.stack(list(mine.values())),
            np.unique(np.concatenate(known), axis=0),
            np.reshape(others, (-1, 4)),
        )
        return {**actions, **dict(zip(mine, safe, strict=True))}

    def filter(
        self,
        positions: Float[np.ndarray, "N 2"],
        velocities: Float[np.ndarray, "N 2"],
        actions: Float[np.ndarray, "N 2"],
        obstacles: Float[np.ndarray, "M 3"] = NO_OBSTACLES,
        partners: Float[np.ndarray, "L 4"] = NO_PARTNERS,
    ) -> Float[np.ndarray, "N 2"]:
        """The nearest safe actions; those that are safe already come back bit for bit.

        Args:
            positions: of the robots (m).
            velocities: of the robots (m/s). A robot whose position or velocity is not finite is told to stand still,
                and nobody can avoid it.
            actions: desired velocities (m/s); robots whose actions are not finite brake.
            obstacles: x, y and radius (m), standing still.
            partners: position (m) and velocity (m/s) of robots of the same kind that filter for themselves; those that
                are not finite are not there.
        """
        actions = np.asarray(actions, np.result_type(actions, np.float32))
        known = np.isfinite(positions).all(1) & np.isfinite(velocities).all(1)
        given = np.isfinite(actions).all(1)
        asked = np.where(given[:, None], self._within_limits(actions), 0)
        safe = np.where(known[:, None], asked, 0)
        at, moving = np.asarray(positions, float)[known], np.asarray(velocities, float)[known]
        seen = partners[np.isfinite(partners).all(1)]
        safe[known], infeasible = self._solve(at, moving, asked[known], given[known], obstacles, seen)
        self._count(actions, asked, safe, known & given, infeasible)
        return safe

    def _within_limits(self, actions: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """Scales actions to the speed limit; those within it stay as they are."""
        bounded = np.clip(actions, -1e6 * self.max_speed, 1e6 * self.max_speed)
        speeds = np.hypot(bounded[:, :1], bounded[:, 1:])
        scaled = bounded * (self.max_speed / np.maximum(speeds, self.max_speed))
        return np.where(speeds > self.max_speed * (1 + ROUNDING), scaled, actions)

    def _solve(
        self,
        positions: Float[np.ndarray, "N 2"],
        velocities: Float[np.ndarray, "N 2"],
        asked: Float[np.ndarray, "N 2"],
        given: Bool[np.ndarray, "N"],
        obstacles: Float[np.ndarray, "M 3"],
        partners: Float[np.ndarray, "L 4"],
    ) -> tuple[Float[np.ndarray, "N 2"], bool]:
        """Safe actions, and whether there were none and robots brake instead."""
        still = np.concatenate([np.insert(obstacles, [2, 2], 0, axis=1), self._boxes])
        still[:, 4] += self.margin / 2
        reach = np.full_like(positions, self.max_speed)
        while True:  # once more where the speed limit cuts a corner of the bounds, at most once a robot
            low, high = self._bounds(positions, velocities, reach)
            braking = np.clip(-velocities, low, high)
            wanted = np.where(given[:, None], np.clip(self._servo.change(asked - velocities), low, high), braking)
            free = self.radius + self.margin / 2
            rows, least = constraints(positions, velocities, partners, still, low, high, free, self._brake, self.dt)
            found = nearest(wanted, rows, least, low, high)
            if found is None:
                involved = np.any(rows != 0, axis=(0, 2), keepdims=True)[0]
                braking = np.where(involved, braking, wanted)
                found = nearest(braking, rows, least, low, high, soft=True)
                halting = braking if found is None else found
                return self._within_limits(self._actions(halting, velocities, asked, given, reach)), True
            actions = self._actions(found, velocities, asked, given, reach)
            limited = np.abs(self._within_limits(actions))
            cut = (np.abs(actions) > limited).any(axis=1)
            if not cut.any():
                return actions, False
            reach = np.where(cut[:, None], limited, reach)

    def _bounds(
        self,
        positions: Float[np.ndarray, "N 2"],
        velocities: Float[np.ndarray, "N 2"],
        reach: Float[np.ndarray, "N 2"],
    ) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 2"]]:
        """Least and greatest changes of velocity by actions within ``reach`` that can still end before the walls."""
        low, high = self._servo.change(-reach - velocities), self._servo.change(reach - velocities)
        if self.half_width is None:
            return low, high
        room = self.half_width - self.radius - self.margin
        lowest = -fastest(room + positions, -velocities, self._brake, self.dt) - velocities
        highest = fastest(room - positions, velocities, self._brake, self.dt) - velocities
        return np.clip(lowest, low, high), np.clip(highest, low, high)

    def _actions(
        self,
        changes: Float[np.ndarray, "N 2"],
        velocities: Float[np.ndarray, "N 2"],
        asked: Float[np.ndarray, "N 2"],
        given: Bool[np.ndarray, "N"],
        reach: Float[np.ndarray, "N 2"],
    ) -> Float[np.ndarray, "N 2"]:
        """The actions that change the velocities so: the ones asked for where these do."""
        same = given & np.all(np.abs(changes - self._servo.change(asked - velocities)) <= ROUNDING, axis=1)
        return np.where(same[:, None], asked, np.clip(velocities + self._servo.excess(changes), -reach, reach))

    @cached_property
    def _boxes(self) -> Float[np.ndarray, "K 5"]:
        """As ``constraints`` takes them."""
        low, high = np.hsplit(np.reshape(self.boxes, (-1, 4)).astype(float), 2)
        return np.column_stack([(low + high) / 2, (high - low) / 2, np.zeros(len(low))])

    @cached_property
    def _servo(self) -> VelocityServo:
        return VelocityServo(self.max_acceleration, self.time_constant, self.dt)

    @property
    def _brake(self) -> float:
        return self.reserve * self.max_acceleration

    def _count(
        self,
        actions: Float[np.ndarray, "N 2"],
        asked: Float[np.ndarray, "N 2"],
        safe: Float[np.ndarray, "N 2"],
        counted: Bool[np.ndarray, "N"],
        infeasible: bool,
    ) -> None:
        change = np.linalg.norm(safe[counted] - asked[counted], axis=1)
        self.stats.calls += 1
        self.stats.robots += len(actions)
        self.stats.limited += int(np.any(asked != actions, axis=1)[counted].sum())
        self.stats.changed += bool((change > ROUNDING).any())
        self.stats.total += float(change.sum())
        self.stats.largest = max(self.stats.largest, float(change.max(initial=0)))
        self.stats.infeasible += infeasible
        self.stats.not_finite += int((~counted).sum())


def _state(spec: JointSpec, name: str, observation: Any) -> Float[np.ndarray, "4"]:
    """Position and velocity of an agent. Raises ``ValueError`` where its role does not say where these are."""
    role = spec.role_of(name)
    if (len(role.position), len(role.velocity), role.action_size) != (2, 2, 2):
        raise ValueError(
            f"role {spec.agents[name]!r} has position={role.position}, velocity={role.velocity} and "
            f"{role.action_size} actions, expected two of each; set them in Role, or use no safety filter."
        )
    return np.asarray(observation, float)[[*role.position, *role.velocity]]
