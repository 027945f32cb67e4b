"""The physics of ``crossing-v0``: pucks on slide joints between walls, round pillars or a wall with a doorway."""

import mujoco

from diffplan.envs.crossing_layouts import ARENA, DOORWAY_BOXES, OBSTACLE_RADII, RADIUS, WALL_THICKNESS
from diffplan.envs.scene import AGENT_COLORS, Color, add_puck, stage

DT, SUBSTEPS = 0.1, 5
V_MAX, MASS, MAX_FORCE, VELOCITY_GAIN = 1.0, 1.0, 5.0, 20.0
HEIGHT = 0.06
"""Half the height of everything that stands on the floor (m)."""
_CYLINDER, _BOX, _PLANE = mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE
_SOLID = {"contype": 2, "conaffinity": 1}
"""Touches robots only."""
_SEEN_ONLY = {"contype": 0, "conaffinity": 0}


def build_model(num_robots: int, obstacles: int, doorway: bool) -> mujoco.MjModel:
    """Compiles the scene; pillars get the largest radius, so that their bounds hold for any they are given later."""
    spec = stage(DT / SUBSTEPS, ARENA)
    spec.option.gravity = [0.0, 0.0, 0.0]
    _add_walls(spec, doorway)
    for index in range(obstacles):
        body = spec.worldbody.add_body(name=f"obstacle_{index}", mocap=True)
        size = [OBSTACLE_RADII[1], HEIGHT, 0.0]
        body.add_geom(name=body.name, type=_CYLINDER, size=size, rgba=[0.45, 0.45, 0.48, 1.0], **_SOLID)
    for index in range(num_robots):
        _add_robot(spec, f"robot_{index}", AGENT_COLORS[index])
    return spec.compile()


def _add_walls(spec: mujoco.MjSpec, doorway: bool) -> None:
    """Adds planes that bound the arena, seen as boxes, and the wall with the doorway."""
    gray, thick = [0.55, 0.56, 0.58, 1.0], WALL_THICKNESS / 2
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        pos, inward = [x * ARENA, y * ARENA, 0.0], [-x, -y, 0.0]
        unseen = [0.0, 0.0, 0.0, 0.0]
        spec.worldbody.add_geom(type=_PLANE, pos=pos, zaxis=inward, size=[1.0, 1.0, 1.0], rgba=unseen, **_SOLID)
        size = [thick if x else ARENA + 2 * thick, thick if y else ARENA + 2 * thick, HEIGHT]
        pos = [x * (ARENA + thick), y * (ARENA + thick), HEIGHT]
        spec.worldbody.add_geom(type=_BOX, pos=pos, size=size, rgba=gray, **_SEEN_ONLY)
    for left, low, right, high in DOORWAY_BOXES if doorway else ():
        pos, size = [(left + right) / 2, (low + high) / 2, HEIGHT], [(right - left) / 2, (high - low) / 2, HEIGHT]
        spec.worldbody.add_geom(type=_BOX, pos=pos, size=size, rgba=gray, **_SOLID)


def _add_robot(spec: mujoco.MjSpec, name: str, color: Color) -> None:
    """Adds a puck; all mass is the cylinder's, the cap is for looks."""
    body = add_puck(spec, name, HEIGHT, VELOCITY_GAIN, MAX_FORCE)
    body.add_geom(
        name=name, type=_CYLINDER, size=[RADIUS, HEIGHT, 0.0], mass=MASS, rgba=[*color, 1.0], contype=1, conaffinity=1
    )
    pale = [0.5 + 0.5 * channel for channel in color] + [1.0]
    size, pos = [0.55 * RADIUS, 0.004, 0.0], [0.0, 0.0, HEIGHT]
    body.add_geom(type=_CYLINDER, size=size, pos=pos, mass=0.0, rgba=pale, **_SEEN_ONLY)
