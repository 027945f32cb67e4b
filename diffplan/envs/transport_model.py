"""The physics of ``transport-v0``: a box that slides and turns on the floor, pucks on slide joints, a pillar."""

import mujoco
import numpy as np
from jaxtyping import Float

from diffplan.envs.scene import AGENT_COLORS, Color, add_puck, stage

DT, SUBSTEPS = 0.1, 5
V_MAX, MASS, MAX_FORCE, VELOCITY_GAIN = 0.6, 1.0, 10.0, 100.0
ROBOT_RADIUS, PILLAR_RADIUS, HEIGHT = 0.03, 0.07, 0.06
BOX_HALF = (0.15, 0.2)
"""Half the box's length, along its heading, and half its width (m)."""
BOX_COLOR, GOAL_COLOR = (0.76, 0.60, 0.42), (0.87, 0.80, 0.68)  # red-green-blue in 0..1, here and in plots
FRICTION, FRICTION_RADIUS = 1.4 * MAX_FORCE, 0.26
"""Force that slides the box (N); the torque that turns it, divided by that force (m)."""

Pose = Float[np.ndarray, "3"]
_BOX, _SPHERE, _CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER
_SLIDE, _HINGE = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE
_SMOOTH = [0.1, 0.0, 0.0]
_SEEN_ONLY = {"contype": 0, "conaffinity": 0, "mass": 0.0}
_UNDERNEATH = {"contype": 2, "conaffinity": 2, "group": 4}
"""Foot and floor touch each other only; geoms of group 4 are not drawn."""


def place(
    num_robots: int, rng: np.random.Generator
) -> tuple[Pose, Pose, Float[np.ndarray, "2"], Float[np.ndarray, "num_robots 2"]]:
    """Draws poses of box and goal (m, rad), the pillar halfway between them, and robots behind the box."""
    half = rng.uniform(1.15, 1.3)
    box = np.array([-half, rng.uniform(-0.12, 0.12), rng.uniform(-0.2, 0.2)])
    goal = np.array([half, rng.uniform(-0.12, 0.12), rng.uniform(-0.2, 0.2)])
    pillar = np.array([rng.uniform(-0.1, 0.1), (box[1] + goal[1]) / 2 + rng.uniform(-0.08, 0.08)])
    behind = -BOX_HALF[0] - ROBOT_RADIUS - rng.uniform(0.05, 0.35, num_robots)
    beside = np.linspace(-0.33, 0.33, num_robots) + rng.uniform(-0.05, 0.05, num_robots)
    x, y = rng.permutation(np.stack([behind, beside], 1)).T
    cos, sin = np.cos(box[2]), np.sin(box[2])
    return box, goal, pillar, box[:2] + np.stack([cos * x - sin * y, sin * x + cos * y], 1)


def build_model(num_robots: int) -> mujoco.MjModel:
    """Compiles the scene. Coordinates: box x, y, yaw and height, then x and y of each robot; mocap: pillar, goal."""
    spec = stage(DT / SUBSTEPS, 2.4)
    spec.option.cone, spec.option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 100.0
    spec.stat.extent = 8.0  # m; the compiler would measure it with all bodies at the origin
    pillar = spec.worldbody.add_body(name="pillar", mocap=True)
    size, gray = [PILLAR_RADIUS, 0.15, 0.0], [0.45, 0.45, 0.48, 1.0]
    pillar.add_geom(name="pillar", type=mujoco.mjtGeom.mjGEOM_CAPSULE, size=size, rgba=gray)
    _add_goal(spec)
    _add_box(spec)
    for index in range(num_robots):
        _add_robot(spec, f"robot_{index}", AGENT_COLORS[index])
    return spec.compile()


def _add_goal(spec: mujoco.MjSpec) -> None:
    """Adds a picture of the box where it shall go, with a stripe along its front."""
    body = spec.worldbody.add_body(name="goal", mocap=True)
    body.add_geom(type=_BOX, size=[*BOX_HALF, 0.002], rgba=[*GOAL_COLOR, 1.0], **_SEEN_ONLY)
    _add_stripe(body, 0.002)


def _add_stripe(body: mujoco.MjsBody, height: float) -> None:
    pos, size = [BOX_HALF[0] - 0.03, 0.0, height], [0.012, BOX_HALF[1] - 0.02, 0.002]
    body.add_geom(type=_BOX, pos=pos, size=size, rgba=[0.45, 0.32, 0.18, 1.0], **_SEEN_ONLY)


def _add_box(spec: mujoco.MjSpec) -> None:
    """Adds the box on a single foot, whose elliptic contact cone joins sliding and turning friction (condim 4).

    MuJoCo lifts a sliding contact by ``2 * slide * speed * softness``; this foot sinks in deeper and never hops.
    """
    gravity, slide, softness = -spec.option.gravity[2], 0.3, 0.08
    body = spec.worldbody.add_body(name="box", pos=[0.0, 0.0, HEIGHT])
    for name, kind, axis in (("x", _SLIDE, 0), ("y", _SLIDE, 1), ("yaw", _HINGE, 2), ("z", _SLIDE, 2)):
        body.add_joint(name=f"box_{name}", type=kind, axis=np.eye(3)[axis].tolist())
    mass = FRICTION / slide / gravity
    body.add_geom(name="box", type=_BOX, size=[*BOX_HALF, HEIGHT], mass=mass, friction=_SMOOTH, rgba=[*BOX_COLOR, 1.0])
    _add_stripe(body, HEIGHT)
    foot_radius, sink = 0.02, 0.5 * gravity * softness**2
    foot = body.add_geom(name="foot", type=_SPHERE, size=[foot_radius, 0.0, 0.0], mass=0.0, **_UNDERNEATH)
    foot.pos = [0.0, 0.0, foot_radius - sink - HEIGHT]
    foot.condim, foot.priority, foot.friction = 4, 1, [slide, slide * FRICTION_RADIUS, 0.0]
    foot.solref, foot.solimp = [softness, 1.0], [0.5, 0.5, 0.001, 0.5, 2.0]
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1.0, 1.0, 1.0], **_UNDERNEATH)


def _add_robot(spec: mujoco.MjSpec, name: str, color: Color) -> None:
    """Adds a puck. It touches others as a sphere, at half its height."""
    body = add_puck(spec, name, HEIGHT, VELOCITY_GAIN, MAX_FORCE)
    rgba = [*color, 1.0]
    body.add_geom(name=name, type=_SPHERE, size=[ROBOT_RADIUS, 0.0, 0.0], mass=MASS, friction=_SMOOTH, rgba=rgba)
    body.add_geom(type=_CYLINDER, size=[ROBOT_RADIUS, HEIGHT, 0.0], rgba=rgba, **_SEEN_ONLY)
