"""Pictures of MuJoCo scenes: the robots' colours, the lights, and plans drawn into the scene."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np
from gymnasium.spaces import Box
from jaxtyping import Float, UInt8
from pettingzoo import ParallelEnv

from diffplan.spec import Actions

Color = tuple[float, float, float]

_OKABE_ITO: tuple[Color, ...] = (
    (0.00, 0.45, 0.70),
    (0.90, 0.62, 0.00),
    (0.00, 0.62, 0.45),
    (0.80, 0.47, 0.65),
    (0.34, 0.71, 0.91),
    (0.84, 0.37, 0.00),
    (0.94, 0.89, 0.26),
    (0.35, 0.35, 0.35),
)
AGENT_COLORS: tuple[Color, ...] = _OKABE_ITO + tuple((0.55 * r, 0.55 * g, 0.55 * b) for r, g, b in _OKABE_ITO)
"""Colour-blind-safe colours of up to 16 agents (Okabe & Ito 2008, then the same darkened), red-green-blue in 0..1."""

FRAME = 480  # width and height of a picture (pixels)

Paths = Mapping[str, Float[np.ndarray, "S H 2"]]


def stage(timestep: float, half_width: float) -> mujoco.MjSpec:
    """What every top-down scene begins with: soft light, a white sky, a pale chequered floor of ``half_width`` (m)."""
    spec = mujoco.MjSpec()
    spec.option.timestep = timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.visual.global_.offwidth = spec.visual.global_.offheight = 1080
    spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
    spec.visual.headlight.diffuse = [0.2, 0.2, 0.2]
    spec.visual.headlight.specular = [0.0, 0.0, 0.0]
    spec.visual.quality.shadowsize = 2048
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.0, 0.0, 4.0],
        dir=[0.25, 0.35, -1.0],
        diffuse=[0.45, 0.45, 0.45],
        specular=[0.05, 0.05, 0.05],
    )
    white = [1.0, 1.0, 1.0]
    skybox, flat = mujoco.mjtTexture.mjTEXTURE_SKYBOX, mujoco.mjtBuiltin.mjBUILTIN_FLAT
    spec.add_texture(name="sky", type=skybox, builtin=flat, rgb1=white, rgb2=white, width=64, height=384)
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.97, 0.97, 0.96],
        rgb2=[0.93, 0.94, 0.94],
        width=256,
        height=256,
    )
    floor = spec.add_material(name="floor", texrepeat=[2.5, 2.5], texuniform=True)
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE, size=[half_width, half_width, 0.1], material="floor", contype=0, conaffinity=0
    )
    return spec


def add_puck(spec: mujoco.MjSpec, name: str, height: float, gain: float, force: float) -> mujoco.MjsBody:
    """Adds a body that slides at a height (m), with a velocity actuator of at most that force (N) for x and for y."""
    body = spec.worldbody.add_body(name=name, pos=[0.0, 0.0, height])
    for axis in range(2):
        direction = [float(axis == 0), float(axis == 1), 0.0]
        joint = body.add_joint(name=f"{name}_{'xy'[axis]}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=direction)
        actuator = spec.add_actuator(name=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT, target=joint.name)
        actuator.set_to_velocity(gain)
        actuator.forcelimited, actuator.forcerange = True, [-force, force]
    return body


class SceneRenderer:
    """Renders frames of a model from slightly tilted above, with extra shapes drawn in.

    Args:
        model: what to render.
        distance: of the camera from the origin (m).

    Raises:
        RuntimeError: no OpenGL is available; the message says what to set.
    """

    def __init__(self, model: mujoco.MjModel, distance: float):
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:] = (0.0, -0.03, 0.0)
        self._camera.distance, self._camera.azimuth, self._camera.elevation = distance, 90.0, -72.0
        try:
            self._renderer = mujoco.Renderer(model, FRAME, FRAME, max_geom=20_000)
        except (mujoco.FatalError, RuntimeError, AttributeError, ImportError) as error:
            raise RuntimeError(
                f"no OpenGL to render with ({error}); set the variable MUJOCO_GL=egl (or osmesa) and start again."
            ) from error

    def frame(
        self, data: mujoco.MjData, draw: Callable[[mujoco.MjvScene], None]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """One picture of ``data``; ``draw`` may add shapes to the scene with ``draw_disc`` and ``draw_paths``."""
        self._renderer.update_scene(data, self._camera)
        draw(self._renderer.scene)
        return np.asarray(self._renderer.render())

    def close(self) -> None:
        self._renderer.close()


class SceneEnv(ParallelEnv[str, np.ndarray, np.ndarray]):
    """What environments of one MuJoCo scene share: model, state, spaces, and pictures with plans drawn into them.

    Args:
        model: the scene; ``data`` is its state.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: another mode.
    """

    camera_distance: ClassVar[float]  # m
    _observation_spaces: dict[str, Box]
    _action_spaces: dict[str, Box]

    def __init__(self, model: mujoco.MjModel, render_mode: str | None):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r}; choose 'rgb_array' or None.")
        self.model, self.data, self.render_mode = model, mujoco.MjData(model), render_mode
        self._renderer: SceneRenderer | None = None
        self._paths: Paths = {}
        self._alpha = 1.0
        self.agents: list[str] = []
        self._rng = np.random.default_rng()

    def observation_space(self, agent: str) -> Box:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> Box:
        return self._action_spaces[agent]

    def _velocities(self, actions: Actions) -> Float[np.ndarray, "n 2"]:
        """The actions of the agents that are there, which are desired velocities (m/s).

        Raises:
            ValueError: the episode is over, or an agent's action is missing, not two numbers, or not finite.
        """
        if not self.agents:
            raise ValueError("the episode is over; call reset.")
        if missing := [name for name in self.agents if name not in actions]:
            raise ValueError(f"no actions for {missing}; give one to each of {self.agents}.")
        for name in self.agents:
            if np.shape(actions[name]) != (2,) or not np.isfinite(actions[name]).all():
                raise ValueError(f"action of {name!r} is {actions[name]}, expected two finite numbers: a velocity.")
        return np.array([actions[name] for name in self.agents])

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
        """A picture of the scene. Raises ``RuntimeError`` without OpenGL and ``ValueError`` without ``render_mode``."""
        if self.render_mode is None:
            raise ValueError("render_mode=None; make the environment with render_mode='rgb_array' to render.")
        if self._renderer is None:
            self._renderer = SceneRenderer(self.model, distance=self.camera_distance)
        mujoco.mj_kinematics(self.model, self.data)  # where bodies are now; a step leaves where they were before it
        return self._renderer.frame(self.data, self._draw)

    def _draw(self, scene: mujoco.MjvScene) -> None:
        """Adds to the scene what is no part of the model: the paths."""
        for name, paths in self._paths.items():
            draw_paths(scene, np.asarray(paths), AGENT_COLORS[self.possible_agents.index(name)], self._alpha, 0.02)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def draw_disc(scene: mujoco.MjvScene, center: Sequence[float], radius: float, color: Color) -> None:
    """Adds a flat disc at ``center`` (x, y, z in m)."""
    geom = _next_geom(scene)
    if geom is not None:
        size, rotation = np.array([radius, 0.002, 0.0]), np.eye(3).ravel()
        rgba = np.array([*color, 1.0], np.float32)
        mujoco.mjv_initGeom(geom, mujoco.mjtGeom.mjGEOM_CYLINDER, size, np.array(center, float), rotation, rgba)


def draw_paths(
    scene: mujoco.MjvScene, paths: Float[np.ndarray, "S H 2"], color: Color, alpha: float, height: float
) -> None:
    """Adds S polylines of H points (m) at ``height`` (m), 3 pixels wide: lines cast no shadow and cost little.

    Points that are not finite leave a gap; lines beyond what the scene holds are left out.
    """
    kind, rgba = mujoco.mjtGeom.mjGEOM_LINE, np.array([*color, alpha], np.float32)
    points = np.concatenate([paths, np.full((*paths.shape[:-1], 1), height)], -1).astype(float)
    segments = np.stack([points[:, :-1], points[:, 1:]], 2).reshape(-1, 2, 3)
    for start, end in segments[np.isfinite(segments).all((1, 2))]:
        geom = _next_geom(scene)
        if geom is None:
            return
        mujoco.mjv_initGeom(geom, kind, np.zeros(3), np.zeros(3), np.eye(3).ravel(), rgba)
        mujoco.mjv_connector(geom, kind, 3.0, start, end)


def _next_geom(scene: mujoco.MjvScene) -> mujoco.MjvGeom | None:
    if scene.ngeom >= scene.maxgeom:
        return None
    scene.ngeom += 1
    return scene.geoms[scene.ngeom - 1]
