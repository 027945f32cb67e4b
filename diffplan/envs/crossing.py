"""``crossing-v0``: 2 to 16 robots cross a walled square to opposite places, all at once, without touching.

The robots are pucks with mass, bounded velocity and bounded force. Several joint ways exist and all robots must choose
the same one: round the centre clockwise or counter-clockwise, or who passes the doorway first. Any contact ends the
episode.

A robot's reward at a step is its progress towards its goal (m), plus 5 when the team succeeds, minus 5 when it touches
something.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float, UInt8
from pettingzoo import ParallelEnv

from diffplan.envs.behavior import SkilledPolicy
from diffplan.envs.crossing_expert import MEDIUM_NOISE, STYLES, CrossingExpert
from diffplan.envs.crossing_layouts import ARENA, LAYOUTS, OBSTACLES, RADIUS, place
from diffplan.envs.crossing_model import DT, HEIGHT, MASS, MAX_FORCE, SUBSTEPS, V_MAX, VELOCITY_GAIN, build_model
from diffplan.envs.scene import AGENT_COLORS, Paths, SceneRenderer, draw_disc, draw_paths
from diffplan.spec import Actions, JointSpec, Observations, Role

GOAL_TOLERANCE, GOAL_SPEED, HOLD_STEPS = 0.1, 0.1, 10
SUCCESS_BONUS, CONTACT_PENALTY = 5.0, 5.0


class Sensed(Mapping[str, np.ndarray]):
    """{partner: its observation} of the partners that one robot sees; equal when all numbers are, NaN with NaN."""

    def __init__(self, names: list[str], rows: Float[np.ndarray, "partners O"]):
        self._names, self._rows = names, rows

    def __getitem__(self, name: str) -> Float[np.ndarray, "O"]:
        if name not in self._names:
            raise KeyError(name)
        return np.asarray(self._rows[self._names.index(name)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sensed):
            return NotImplemented
        return self._names == other._names and np.array_equal(self._rows, other._rows, equal_nan=True)

    def __repr__(self) -> str:
        return f"Sensed({dict(self)})"


class CrossingEnv(ParallelEnv[str, np.ndarray, np.ndarray]):
    """Robots that swap places across a square of 2.4 m; robots have a radius of 0.08 m.

    An action is the desired velocity (m/s, two entries, norm at most 1), tracked by actuators of at most 5 N an axis
    on 1 kg. An observation is position (2, m), velocity (2, m/s), own goal (2, m) and, in layout ``obstacles``, x, y
    and radius (m) of each of the 3 obstacles.

    ``infos[agent]`` has ``success`` (all robots were within 0.1 m of their goals and slower than 0.1 m/s for 10
    steps), ``contacts`` (pairs of things that touched so far) and ``sensed``: {partner: its observation, with its goal
    NaN} of the partners within ``sensing_radius``.

    Args:
        num_robots: 2 to 16.
        layout: ``"open"``, ``"doorway"`` (a wall across the middle with a gap for one robot) or ``"obstacles"``.
        sensing_radius: how far a robot sees its partners (m); everywhere when None.
        max_steps: time limit; when None 100, and 60 + 25 per robot in the doorway.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: an option outside these.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "crossing_v0", "render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        num_robots: int = 4,
        layout: str = "open",
        sensing_radius: float | None = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ):
        _check_options(num_robots, layout, sensing_radius, max_steps, render_mode)
        self.num_robots, self.layout, self.render_mode = num_robots, layout, render_mode
        self.sensing_radius = sensing_radius
        self.max_steps = max_steps or (60 + 25 * num_robots if layout == "doorway" else 100)
        obstacles = OBSTACLES if layout == "obstacles" else 0
        size = 6 + 3 * obstacles
        static, pillars = tuple(range(4, size)), tuple(range(6, size))
        role = Role(
            size, (-V_MAX,) * 2, (V_MAX,) * 2, (0, 1), static, velocity=(2, 3), obstacles=pillars, radius=RADIUS
        )
        names = [f"robot_{i}" for i in range(num_robots)]
        options = {"num_robots": num_robots, "layout": layout, "sensing_radius": sensing_radius, "max_steps": max_steps}
        self.joint_spec = JointSpec(dict.fromkeys(names, "robot"), {"robot": role}, DT, "crossing-v0", options)
        self.possible_agents = names
        self.agents: list[str] = []
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
        }
        self.model = build_model(num_robots, obstacles, doorway=layout == "doorway")
        self.data = mujoco.MjData(self.model)
        self._robot_of_geom = {self.model.geom(name).id: index for index, name in enumerate(names)}
        self._obstacle_geoms = [self.model.geom(f"obstacle_{k}").id for k in range(obstacles)]
        self.starts, self.goals = np.zeros((2, num_robots, 2))
        self.obstacles = np.zeros((obstacles, 3))
        self._renderer: SceneRenderer | None = None
        self._paths: Paths = {}
        self._alpha = 1.0
        self._rng = np.random.default_rng()

    def observation_space(self, agent: str) -> Box:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> Box:
        return self._action_spaces[agent]

    @property
    def positions(self) -> Float[np.ndarray, "N 2"]:
        """Where the robots are now (m)."""
        return np.array(self.data.qpos.reshape(-1, 2))

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, dict[str, Any]]]:
        """Starts an episode; ``seed`` settles it bit for bit. ``options`` is not used."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.starts, self.goals, self.obstacles = place(self.layout, self.num_robots, self._rng)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self.starts.ravel()
        for mocap, (geom, (x, y, radius)) in enumerate(zip(self._obstacle_geoms, self.obstacles, strict=True)):
            self.data.mocap_pos[mocap] = (x, y, HEIGHT)
            self.model.geom_size[geom, 0] = radius
        mujoco.mj_forward(self.model, self.data)
        self.agents = list(self.possible_agents)
        self._step, self._held, self._contacts = 0, 0, 0
        self._distances = np.linalg.norm(self.goals - self.starts, axis=1)
        self._static = np.concatenate([self.goals, np.tile(self.obstacles.ravel(), (self.num_robots, 1))], 1)
        return self._observe()

    def step(
        self, actions: Actions
    ) -> tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Advances 0.1 s.

        Raises:
            ValueError: an agent's action is missing, not two numbers, or not finite.
        """
        self.data.ctrl[:] = self._commands(actions).ravel()
        hit = self._advance()
        self._step += 1
        distances = np.linalg.norm(self.goals - self.positions, axis=1)
        speeds = np.linalg.norm(self.data.qvel.reshape(-1, 2), axis=1)
        arrived = bool((distances < GOAL_TOLERANCE).all() and (speeds < GOAL_SPEED).all())
        self._held = self._held + 1 if arrived else 0
        terminated = self._contacts > 0 or self._success
        truncated = not terminated and self._step >= self.max_steps
        rewards = self._distances - distances + SUCCESS_BONUS * self._success - CONTACT_PENALTY * hit
        self._distances = distances
        observations, infos = self._observe()
        names, self.agents = self.agents, [] if terminated or truncated else self.agents
        return (
            observations,
            dict(zip(names, rewards.tolist(), strict=True)),
            dict.fromkeys(names, terminated),
            dict.fromkeys(names, truncated),
            infos,
        )

    @property
    def _success(self) -> bool:
        return self._contacts == 0 and self._held >= HOLD_STEPS

    def _commands(self, actions: Actions) -> Float[np.ndarray, "N 2"]:
        missing = [name for name in self.agents if name not in actions]
        if missing or not self.agents:
            raise ValueError(
                f"no actions for {missing}; give one each." if self.agents else "the episode is over; call reset."
            )
        wrong = [name for name in self.agents if np.shape(actions[name]) != (2,)]
        if wrong:
            raise ValueError(
                f"action of {wrong[0]!r} has shape {np.shape(actions[wrong[0]])}, expected (2,): a velocity."
            )
        commands = np.array([actions[name] for name in self.agents], float)
        if not np.isfinite(commands).all():
            bad = int(np.argwhere(~np.isfinite(commands))[0][0])
            raise ValueError(f"action of {self.agents[bad]!r} is {commands[bad]}, not finite.")
        speeds = np.linalg.norm(commands, axis=1, keepdims=True)
        return np.asarray(commands / np.maximum(speeds / V_MAX, 1.0))

    def _advance(self) -> np.ndarray:
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

    def _observe(self) -> tuple[Observations, dict[str, dict[str, Any]]]:
        positions = self.positions
        stacked = np.concatenate([positions, self.data.qvel.reshape(-1, 2), self._static], 1).astype(np.float32)
        public = stacked.copy()
        public[:, 4:6] = np.nan
        reach = np.inf if self.sensing_radius is None else self.sensing_radius
        near = np.linalg.norm(positions[:, None] - positions, axis=2) <= reach
        np.fill_diagonal(near, False)
        infos = {}
        for name, seen in zip(self.possible_agents, near, strict=True):
            sensed = Sensed([self.possible_agents[j] for j in np.flatnonzero(seen)], public[seen])
            infos[name] = {"success": self._success, "contacts": self._contacts, "sensed": sensed}
        return dict(zip(self.possible_agents, stacked, strict=True)), infos

    def state(self) -> Float[np.ndarray, "state"]:
        """The whole world as one vector: every robot's position, velocity and goal, then the obstacles."""
        robots = np.concatenate([self.positions, self.data.qvel.reshape(-1, 2), self.goals], 1)
        return np.concatenate([robots.ravel(), self.obstacles.ravel()]).astype(np.float32)

    def overlay(self, paths: Paths, alpha: float = 0.35) -> None:
        """Draws {agent: S polylines of H points (m)} into the frames from now on; ``overlay({})`` clears them."""
        unknown = [name for name in paths if name not in self.possible_agents]
        if unknown:
            raise ValueError(f"paths of agents {unknown}, but the environment has {self.possible_agents}.")
        for name, path in paths.items():
            if np.ndim(path) != 3 or np.shape(path)[-1] != 2:
                raise ValueError(f"paths of {name!r} have shape {np.shape(path)}, expected (S, H, 2).")
        self._paths, self._alpha = dict(paths), alpha

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of the arena. Raises ``RuntimeError`` without OpenGL and ``ValueError`` without ``render_mode``."""
        if self.render_mode is None:
            raise ValueError("render_mode=None; make the environment with render_mode='rgb_array' to render.")
        if self._renderer is None:
            self._renderer = SceneRenderer(self.model, distance=3.6)
        return self._renderer.frame(self.data, self._draw)

    def _draw(self, scene: mujoco.MjvScene) -> None:
        for goal, color in zip(self.goals, AGENT_COLORS, strict=False):
            draw_disc(scene, (*goal, 0.002), RADIUS, color)
            draw_disc(scene, (*goal, 0.004), 0.72 * RADIUS, (1.0, 1.0, 1.0))
        for name, paths in self._paths.items():
            draw_paths(scene, np.asarray(paths), AGENT_COLORS[self.possible_agents.index(name)], self._alpha, 0.02)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


parallel_env = CrossingEnv


def behavior_policy(skill: str = "expert", style: str = "mixed") -> SkilledPolicy:
    """The scripted policy that collects data, see ``crossing_expert``.

    Args:
        skill: ``"expert"``, ``"medium"``, ``"random"`` or ``"replay"``.
        style: ``"clockwise"`` or ``"counterclockwise"`` round the centre (open, obstacles), ``"left_first"`` or
            ``"right_first"`` through the doorway, or ``"mixed"``.
    """
    return SkilledPolicy(
        CrossingExpert,
        skill,
        style,
        tuple(dict.fromkeys(sum(STYLES.values(), ()))),
        noise=lambda env: MEDIUM_NOISE[env.unwrapped.layout],
        noise_at_rest=0.2,
        styles_of=lambda env: STYLES[env.unwrapped.layout],
    )


def _check_options(
    num_robots: int, layout: str, sensing_radius: float | None, max_steps: int | None, render_mode: str | None
) -> None:
    if isinstance(num_robots, bool) or not isinstance(num_robots, int) or not 2 <= num_robots <= 16:
        raise ValueError(f"num_robots={num_robots!r}; choose a whole number from 2 to 16.")
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}; choose one of {LAYOUTS}.")
    if sensing_radius is not None and not sensing_radius > 0:
        raise ValueError(f"sensing_radius={sensing_radius}; give a positive distance (m), or None to sense everywhere.")
    if max_steps is not None and (not isinstance(max_steps, int) or max_steps < 1):
        raise ValueError(f"max_steps={max_steps!r}; give a positive whole number, or None for the layout's own limit.")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode={render_mode!r}; choose 'rgb_array' or None.")
