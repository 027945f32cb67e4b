"""``crossing-v0``: 2 to 16 robots cross a walled square to opposite places, all at once, without touching.

The robots are pucks with mass, bounded velocity and bounded force. Several joint ways exist and all robots must choose
the same one: round the centre clockwise or counter-clockwise, or who passes the doorway first. Any contact ends the
episode.

With ``turnover`` the team is open: robots enter and leave during the episode, and everything that ends, succeeds or
fails is a robot's own.

A robot's reward at a step is its progress towards its goal (m), plus 5 when it arrives (the team, where that is
closed), minus 5 when it touches something.
"""

from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Bool, Float

from diffplan.envs.behavior import SkilledPolicy
from diffplan.envs.crossing_expert import MEDIUM_NOISE, STYLES, CrossingExpert
from diffplan.envs.crossing_layouts import ARENA, DOORWAY_BOXES, LAYOUTS, OBSTACLES, RADIUS, place
from diffplan.envs.crossing_model import DT, HEIGHT, MASS, MAX_FORCE, SUBSTEPS, V_MAX, VELOCITY_GAIN, build_model
from diffplan.envs.crossing_traffic import TrafficExpert
from diffplan.envs.crossing_turnover import Turnover, free_place
from diffplan.envs.scene import AGENT_COLORS, SceneEnv, draw_disc
from diffplan.envs.sensed import Sensed
from diffplan.spec import Actions, JointSpec, Role, Seen, Step

GOAL_TOLERANCE, GOAL_SPEED, HOLD_STEPS = 0.1, 0.1, 10
SUCCESS_BONUS, CONTACT_PENALTY = 5.0, 5.0
PARKED = 10.0
"""Where robots wait that are not there (m), beyond the walls and out of sight."""

Robots = Bool[np.ndarray, "N"]
"""A truth value for each robot, there or not."""


class CrossingEnv(SceneEnv):
    """Robots that swap places across a square of 2.4 m; robots have a radius of 0.08 m.

    An action is the desired velocity (m/s, two entries, norm at most 1), tracked by actuators of at most 5 N an axis
    on 1 kg. An observation is position (2, m), velocity (2, m/s), own goal (2, m) and, in layout ``obstacles``, x, y
    and radius (m) of each of the 3 obstacles.

    ``infos[agent]`` has ``success`` (all robots were within 0.1 m of their goals and slower than 0.1 m/s for 10
    steps), ``contacts`` (pairs of things that touched so far) and ``sensed``: {partner: its observation, with its goal
    NaN} of the partners within ``sensing_radius``. In an open team ``success`` is the robot's own, and it leaves with
    it. One that touches something leaves as a failure. One that is called away is truncated; it had nothing left to do
    and succeeds, and ``called_away`` says so. One that enters is in ``agents`` from its first observation on.

    Args:
        num_robots: 2 to 16; in an open team all that will ever be there, 2 to half of them at the start.
        layout: ``"open"``, ``"doorway"`` (a wall across the middle with a gap for one robot) or ``"obstacles"``.
        sensing_radius: how far a robot sees its partners (m); everywhere when None.
        max_steps: time limit, of an open team's robot from its entry on; when None 100, and 60 + 25 per robot in the
            doorway.
        turnover: seconds between two changes of an open team (see ``crossing_turnover``); None: nobody enters or
            leaves. Not in the doorway.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: an option outside these.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "crossing_v0", "render_modes": ["rgb_array"], "render_fps": 10}
    camera_distance: ClassVar[float] = 3.6

    def __init__(
        self,
        num_robots: int = 4,
        layout: str = "open",
        sensing_radius: float | None = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
        turnover: float | None = None,
    ):
        _check_options(num_robots, layout, sensing_radius, max_steps, turnover)
        self.num_robots, self.layout = num_robots, layout
        self.sensing_radius = sensing_radius
        self.turnover = None if turnover is None else Turnover(round(turnover / DT), num_robots)
        self.max_steps = max_steps or (60 + 25 * num_robots if layout == "doorway" else 100)
        obstacles = OBSTACLES if layout == "obstacles" else 0
        size = 6 + 3 * obstacles
        role = Role(
            size,
            action_low=(-V_MAX,) * 2,
            action_high=(V_MAX,) * 2,
            position=(0, 1),
            velocity=(2, 3),
            goal=(4, 5),
            obstacles=tuple(range(6, size)),
            static=tuple(range(4, size)),
            radius=RADIUS,
        )
        names = [f"robot_{i}" for i in range(num_robots)]
        options = {"num_robots": num_robots, "layout": layout, "sensing_radius": sensing_radius, "max_steps": max_steps}
        options |= {} if turnover is None else {"turnover": turnover}
        self.joint_spec = JointSpec(dict.fromkeys(names, "robot"), {"robot": role}, DT, "crossing-v0", options)
        self.possible_agents = names
        limit = np.full(size, ARENA, np.float32)
        limit[2:4] = 4 * V_MAX
        self._observation_spaces = {name: Box(-limit, limit) for name in names}
        self._action_spaces = {name: Box(-V_MAX, V_MAX, (2,)) for name in names}
        self.robot_limits = {
            "radius": RADIUS,
            "max_speed": V_MAX,
            "max_acceleration": MAX_FORCE / MASS,
            "time_constant": MASS / VELOCITY_GAIN,
            "dt": DT,
            "half_width": ARENA,
            "boxes": DOORWAY_BOXES if layout == "doorway" else (),
        }
        super().__init__(build_model(num_robots, obstacles, doorway=layout == "doorway"), render_mode)
        self._robot_geoms = [self.model.geom(name).id for name in names]
        self._robot_of_geom = {geom: index for index, geom in enumerate(self._robot_geoms)}
        self._obstacle_geoms = [self.model.geom(f"obstacle_{k}").id for k in range(obstacles)]
        self.starts, self.goals = np.zeros((2, num_robots, 2))
        self._there = np.zeros(num_robots, bool)
        self.obstacles = np.zeros((obstacles, 3))

    @property
    def positions(self) -> Float[np.ndarray, "N 2"]:
        """Where the robots are now (m); those that are not there are parked far outside."""
        return np.array(self.data.qpos.reshape(-1, 2))

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Seen:
        """Starts an episode; ``seed`` settles it bit for bit. ``options`` is not used."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._place()
        mujoco.mj_resetData(self.model, self.data)
        for mocap, (geom, (x, y, radius)) in enumerate(zip(self._obstacle_geoms, self.obstacles, strict=True)):
            self.data.mocap_pos[mocap] = (x, y, HEIGHT)
            self.model.geom_size[geom, 0] = radius
        for robot in range(self.num_robots):
            self._put(robot, there=robot < self._at_start)
        mujoco.mj_forward(self.model, self.data)
        self._step, self._contacts = 0, 0
        self._age, self._held = np.zeros((2, self.num_robots), int)
        self._distances = np.linalg.norm(self.goals - self.starts, axis=1)
        self.agents = self._names(self._there)
        return self._observe(self._there)

    def _place(self) -> None:
        """Draws the scene and the robots that are there at the start."""
        self._at_start = self.num_robots if self.turnover is None else self.turnover.draw_start(self._rng)
        self._entered, self._there = self._at_start, np.zeros(self.num_robots, bool)
        self.starts, self.goals = np.zeros((2, self.num_robots, 2))
        starts, goals, self.obstacles = place(self.layout, self._at_start, self._rng)
        self.starts[: self._at_start], self.goals[: self._at_start] = starts, goals

    def _put(self, robot: int, there: bool) -> None:
        """Puts a robot on its start, or out of the world."""
        place = self.starts[robot] if there else (PARKED, PARKED + robot)
        self.data.qpos[2 * robot : 2 * robot + 2], self.data.qvel[2 * robot : 2 * robot + 2] = place, 0.0
        geom = self._robot_geoms[robot]
        self.model.geom_contype[geom] = self.model.geom_conaffinity[geom] = int(there)
        self._there[robot] = there

    def step(self, actions: Actions) -> Step:
        """Advances 0.1 s.

        Raises:
            ValueError: an agent's action is missing, not two numbers, or not finite.
        """
        acted = self._there.copy()
        self.data.ctrl[:] = self._commands(actions).ravel()
        touched = self._advance()
        self._step += 1
        self._age += acted
        distances = np.linalg.norm(self.goals - self.positions, axis=1)
        speeds = np.linalg.norm(self.data.qvel.reshape(-1, 2), axis=1)
        self._held = np.where((distances < GOAL_TOLERANCE) & (speeds < GOAL_SPEED), self._held + 1, 0)
        success, terminated, called = self._outcome(touched)
        truncated = ~terminated & (called | (self._age >= self.max_steps))
        rewards = self._distances - distances + SUCCESS_BONUS * (success & terminated) - CONTACT_PENALTY * touched
        observations, infos = self._observe(acted, success, called)
        self._distances, self._there = distances, acted & ~(terminated | truncated)
        if self.turnover is not None:
            self._change_team(self.turnover, gone=acted & ~self._there)
            now, told = self._observe(self._there)
            observations |= now
            infos |= {name: infos.get(name, one) | {"sensed": one["sensed"]} for name, one in told.items()}
        self.agents = self._names(self._there)
        shown = acted | self._there
        paid, ended, cut = (  # who has just entered did nothing yet
            dict(zip(self._names(shown), one[shown].tolist(), strict=True))
            for one in (np.where(acted, rewards, 0.0), terminated & acted, truncated & acted)
        )
        return observations, paid, ended, cut, infos

    def _outcome(self, touched: Robots) -> tuple[Robots, Robots, Robots]:
        """Who has succeeded, for whom that or a contact is the end, and who is called away."""
        held = self._held >= HOLD_STEPS
        if self.turnover is None:
            success = np.full_like(held, self._contacts == 0 and held.all())
            return success, success | (self._contacts > 0), np.zeros_like(held)
        arrived = held & ~touched
        called = self.turnover.draw_called(self._step, self._there, self._rng) & ~(arrived | touched)
        return arrived | called, arrived | touched, called

    def _change_team(self, turnover: Turnover, gone: Robots) -> None:
        """Takes robots out of the world, and lets the next one enter where that is due and there is a free place."""
        for robot in np.flatnonzero(gone).tolist():
            self._put(robot, there=False)
        if not turnover.is_due(self._step, self._entered, self._at_start, self._there):
            return
        found = free_place(self.positions[self._there], self.goals[self._there], self._rng)
        if found is None:
            return
        robot = self._entered
        self.starts[robot], self.goals[robot] = found
        self._put(robot, there=True)
        self._distances[robot] = np.linalg.norm(self.goals[robot] - self.starts[robot])
        self._entered += 1

    def _names(self, robots: Robots) -> list[str]:
        return [self.possible_agents[robot] for robot in np.flatnonzero(robots)]

    def _commands(self, actions: Actions) -> Float[np.ndarray, "N 2"]:
        """What the actuators of all robots are told; nothing, of those that are not there."""
        wanted = self._velocities(actions).astype(float)
        speeds = np.linalg.norm(wanted, axis=1, keepdims=True)
        commands = np.zeros((self.num_robots, 2))
        commands[self._there] = wanted / np.maximum(speeds / V_MAX, 1.0)
        return commands

    def _advance(self) -> Robots:
        """Runs the physics and returns which robots touched something."""
        pairs: set[tuple[int, int]] = set()
        for _ in range(SUBSTEPS):
            mujoco.mj_step(self.model, self.data)
            if self.data.ncon:
                pairs.update(map(tuple, self.data.contact.geom.tolist()))
        self._contacts += len(pairs)
        hit = np.zeros(self.num_robots, bool)
        hit[[self._robot_of_geom[geom] for pair in pairs for geom in pair if geom in self._robot_of_geom]] = True
        return hit

    def _observe(self, who: Robots, success: Robots | None = None, called: Robots | None = None) -> Seen:
        """What these robots see of themselves and of those that are there, and what is said about them."""
        positions = self.positions
        static = np.concatenate([self.goals, np.tile(self.obstacles.ravel(), (self.num_robots, 1))], 1)
        stacked = np.concatenate([positions, self.data.qvel.reshape(-1, 2), static], 1).astype(np.float32)
        public = stacked.copy()
        public[:, 4:6] = np.nan
        reach = np.inf if self.sensing_radius is None else self.sensing_radius
        near = (np.linalg.norm(positions[:, None] - positions, axis=2) <= reach) & self._there
        np.fill_diagonal(near, False)
        nobody = np.zeros_like(who)
        success, called = (nobody if those is None else those for those in (success, called))
        observations, infos = {}, {}
        for robot in np.flatnonzero(who):
            name, seen = self.possible_agents[robot], near[robot]
            sensed = Sensed([self.possible_agents[j] for j in np.flatnonzero(seen)], public[seen])
            infos[name] = {
                "success": bool(success[robot]),
                "contacts": self._contacts,
                "called_away": bool(called[robot]),
                "sensed": sensed,
            }
            observations[name] = stacked[robot]
        return observations, infos

    def state(self) -> Float[np.ndarray, "state"]:
        """The whole world as one vector: every robot's position, velocity and goal, then the obstacles."""
        robots = np.concatenate([self.positions, self.data.qvel.reshape(-1, 2), self.goals], 1)
        return np.concatenate([robots.ravel(), self.obstacles.ravel()]).astype(np.float32)

    def _draw(self, scene: mujoco.MjvScene) -> None:
        inside = self.positions[:, 0] < PARKED
        for goal, color in zip(self.goals[inside], np.array(AGENT_COLORS)[: self.num_robots][inside], strict=True):
            draw_disc(scene, (*goal, 0.002), RADIUS, color)
            draw_disc(scene, (*goal, 0.004), 0.72 * RADIUS, (1.0, 1.0, 1.0))
        super()._draw(scene)


parallel_env = CrossingEnv


def behavior_policy(skill: str = "expert", style: str = "mixed") -> SkilledPolicy:
    """The scripted policy that collects data, see ``crossing_expert``.

    Args:
        skill: ``"expert"``, ``"medium"``, ``"random"`` or ``"replay"``.
        style: ``"clockwise"`` or ``"counterclockwise"`` round the centre (open, obstacles), ``"left_first"`` or
            ``"right_first"`` through the doorway, or ``"mixed"``.
    """
    return SkilledPolicy(
        lambda env, style, rng: (CrossingExpert if env.unwrapped.turnover is None else TrafficExpert)(env, style, rng),
        skill,
        style,
        tuple(dict.fromkeys(sum(STYLES.values(), ()))),
        noise=lambda env: MEDIUM_NOISE[env.unwrapped.layout],
        noise_at_rest=0.2,
        styles_of=lambda env: STYLES[env.unwrapped.layout],
    )


def _check_options(
    num_robots: int,
    layout: str,
    sensing_radius: float | None,
    max_steps: int | None,
    turnover: float | None,
) -> None:
    if isinstance(num_robots, bool) or not isinstance(num_robots, int) or not 2 <= num_robots <= 16:
        raise ValueError(f"num_robots={num_robots!r}; choose a whole number from 2 to 16.")
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}; choose one of {LAYOUTS}.")
    if sensing_radius is not None and not sensing_radius > 0:
        raise ValueError(f"sensing_radius={sensing_radius}; give a positive distance (m), or None to sense everywhere.")
    if max_steps is not None and (not isinstance(max_steps, int) or max_steps < 1):
        raise ValueError(f"max_steps={max_steps!r}; give a positive whole number, or None for the layout's own limit.")
    if turnover is not None and (layout == "doorway" or not turnover >= DT or num_robots < 4):
        raise ValueError(
            f"turnover={turnover} with {num_robots} robots, layout={layout!r}; give a time of at least {DT} s and 4 "
            "robots or more, in layout 'open' or 'obstacles', or None for a team that stays."
        )
