"""``transport-v0``: 2 to 4 robots push a box that is too heavy for one of them past a pillar to a goal pose.

The robots are pucks with mass, bounded velocity and bounded force. Dry friction holds the box until the pushes leave
the ellipsoid ``fx^2 + fy^2 + (torque / FRICTION_RADIUS)^2 = FRICTION^2`` (Howe and Cutkosky 1996), and stops it soon
after they end. One robot's force stays inside wherever it pushes, two robots' forces do not. The box may pass the
pillar on either side, and all robots must choose the same one.
"""

from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float

from diffplan.envs.behavior import SkilledPolicy
from diffplan.envs.scene import SceneEnv
from diffplan.envs.transport_expert import MEDIUM_NOISE, STYLES, TransportExpert
from diffplan.envs.transport_model import DT, PILLAR_RADIUS, ROBOT_RADIUS, SUBSTEPS, V_MAX, build_model, place
from diffplan.spec import Actions, JointSpec, Role, Seen, Step

POSITION_TOLERANCE, YAW_TOLERANCE, HOLD_STEPS = 0.05, np.deg2rad(10.0), 5
YAW_WEIGHT, SUCCESS_BONUS = 0.2, 5.0


class TransportEnv(SceneEnv):
    """Robots that push a box over 2.3 to 2.6 m to a goal pose; they have a radius of 0.03 m, the box 0.3 m by 0.4 m.

    An action is the desired velocity (m/s, two entries within 0.6), tracked by actuators of at most 10 N an axis on
    1 kg. An observation is own position (2, m), own velocity (2, m/s), the box's x, y (m), cosine and sine, its goal's
    x, y, cosine and sine, and x, y and radius (m) of the pillar.

    A robot's reward at a step is the team's progress, by how much ``distance (m) + 0.2 * angle (rad)`` of the box to
    its goal shrank, plus 5 at success: the box stayed within 0.05 m and 10 degrees of its goal for 5 steps, or is there
    when time is up. Success ends the episode, and so does the box touching the pillar.

    ``infos[agent]`` has ``success``, ``contacts`` (pairs of robots, or of anything and the pillar, that touched so far)
    and ``sensed``: {partner: its observation}.

    Args:
        num_robots: 2 to 4.
        max_steps: time limit.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: an option outside these.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "transport_v0", "render_modes": ["rgb_array"], "render_fps": 10}
    camera_distance: ClassVar[float] = 4.7

    def __init__(self, num_robots: int = 3, max_steps: int = 150, render_mode: str | None = None):
        _check_options(num_robots, max_steps)
        self.num_robots, self.max_steps = num_robots, max_steps
        self.possible_agents = [f"robot_{i}" for i in range(num_robots)]
        role = Role(
            15,
            action_low=(-V_MAX,) * 2,
            action_high=(V_MAX,) * 2,
            position=(0, 1),
            velocity=(2, 3),
            obstacles=(12, 13, 14),
            static=tuple(range(8, 15)),
            radius=ROBOT_RADIUS,
        )
        agents = dict.fromkeys(self.possible_agents, "robot")
        options = {"num_robots": num_robots, "max_steps": max_steps}
        self.joint_spec = JointSpec(agents, {"robot": role}, DT, "transport-v0", options)
        self._observation_spaces = {name: Box(-np.inf, np.inf, (15,)) for name in self.possible_agents}
        self._action_spaces = {name: Box(-V_MAX, V_MAX, (2,)) for name in self.possible_agents}
        self.state_space = Box(-np.inf, np.inf, (4 * num_robots + 12,))
        super().__init__(build_model(num_robots), render_mode)
        self._robots = {self.model.geom(name).id for name in self.possible_agents}
        self._box, self._pillar = self.model.geom("box").id, self.model.geom("pillar").id

    @property
    def positions(self) -> Float[np.ndarray, "N 2"]:
        """Where the robots are now (m)."""
        return np.array(self.data.qpos[4:].reshape(-1, 2))

    @property
    def box(self) -> Float[np.ndarray, "3"]:
        """The box's pose: x, y (m), yaw (rad)."""
        return np.array(self.data.qpos[:3])

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Seen:
        """Starts an episode; ``seed`` settles it bit for bit. ``options`` is not used."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        box, self.goal, self.pillar, robots = place(self.num_robots, self._rng)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = np.concatenate([box, [0.0], robots.ravel()])
        self.data.mocap_pos[:, :2] = [self.pillar, self.goal[:2]]
        self.data.mocap_quat[1] = [np.cos(self.goal[2] / 2), 0.0, 0.0, np.sin(self.goal[2] / 2)]
        mujoco.mj_forward(self.model, self.data)
        self.agents = list(self.possible_agents)
        self._step, self._held, self._contacts, self._success = 0, 0, 0, False
        self._distance = self._pose_distance()
        return self._observe()

    def step(self, actions: Actions) -> Step:
        """Advances 0.1 s.

        Raises:
            ValueError: an agent's action is missing, not two numbers, or not finite.
        """
        self.data.ctrl[:] = np.clip(self._velocities(actions), -V_MAX, V_MAX).ravel()
        failed = self._advance()
        self._step += 1
        position, yaw = self.pose_error()
        self._held = self._held + 1 if position < POSITION_TOLERANCE and yaw < YAW_TOLERANCE else 0
        last = self._step >= self.max_steps
        self._success = not failed and self._held >= (1 if last else HOLD_STEPS)
        terminated = failed or self._success
        before, self._distance = self._distance, self._pose_distance()
        reward = before - self._distance + SUCCESS_BONUS * self._success
        observations, infos = self._observe()
        names, self.agents = self.agents, [] if terminated or last else self.agents
        return (
            observations,
            dict.fromkeys(names, reward),
            dict.fromkeys(names, terminated),
            dict.fromkeys(names, last and not terminated),
            infos,
        )

    def _advance(self) -> bool:
        """Runs the physics, counts contacts, and returns whether the box touched the pillar."""
        pairs: set[tuple[int, int]] = set()
        for _ in range(SUBSTEPS):
            mujoco.mj_step(self.model, self.data)
            pairs.update(map(tuple, self.data.contact.geom.tolist()))
        bumps = [pair for pair in pairs if self._pillar in pair or self._robots.issuperset(pair)]
        self._contacts += len(bumps)
        return any(self._box in pair for pair in bumps)

    def pose_error(self) -> tuple[float, float]:
        """How far the box is from its goal: distance (m) and angle (rad)."""
        x, y, yaw = self.data.qpos[:3] - self.goal
        return float(np.hypot(x, y)), float(abs(np.mod(yaw + np.pi, 2 * np.pi) - np.pi))

    def _pose_distance(self) -> float:
        position, yaw = self.pose_error()
        return position + YAW_WEIGHT * yaw

    def _observe(self) -> Seen:
        names = self.possible_agents
        stacked = np.empty((self.num_robots, 15), np.float32)
        stacked[:, :2], stacked[:, 2:4] = self.data.qpos[4:].reshape(-1, 2), self.data.qvel[4:].reshape(-1, 2)
        stacked[:, 4:] = [*_pose_entries(self.data.qpos), *_pose_entries(self.goal), *self.pillar, PILLAR_RADIUS]
        common = {"success": self._success, "contacts": self._contacts}
        observations = dict(zip(names, stacked, strict=True))
        infos = {
            name: {**common, "sensed": {partner: observations[partner] for partner in names if partner != name}}
            for name in names
        }
        return observations, infos

    def state(self) -> Float[np.ndarray, "state"]:
        """The whole world as one vector: poses and velocities of box and robots, goal pose, pillar and its radius."""
        robots = np.concatenate([self.positions, self.data.qvel[4:].reshape(-1, 2)], 1)
        values = [self.box, self.data.qvel[:3], robots.ravel(), self.goal, self.pillar, [PILLAR_RADIUS]]
        return np.concatenate(values).astype(np.float32)


parallel_env = TransportEnv


def behavior_policy(skill: str = "expert", style: str = "mixed") -> SkilledPolicy:
    """The scripted policy that collects data, see ``transport_expert``.

    Args:
        skill: ``"expert"``, ``"medium"``, ``"random"`` or ``"replay"``.
        style: the side of the pillar on which the box passes, ``"left"`` or ``"right"`` seen along the way, or
            ``"mixed"``.
    """
    return SkilledPolicy(TransportExpert, skill, style, STYLES, MEDIUM_NOISE)


def _check_options(num_robots: int, max_steps: int) -> None:
    if not isinstance(num_robots, int) or not 2 <= num_robots <= 4:
        raise ValueError(f"num_robots={num_robots!r}; choose a whole number from 2 to 4.")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps={max_steps!r}; give a positive whole number.")


def _pose_entries(pose: np.ndarray) -> list[float]:
    return [pose[0], pose[1], np.cos(pose[2]), np.sin(pose[2])]
