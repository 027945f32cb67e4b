"""What stands around agents: the round obstacles that they see, and the scenes of environments known here."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle

from diffplan.envs.crossing_layouts import DOORWAY_BOXES
from diffplan.envs.transport_model import BOX_COLOR, BOX_HALF, GOAL_COLOR
from diffplan.plotting.style import HAIRLINE, MUTED
from diffplan.trajectory import Plan

_LANDMARK_RADIUS = 0.05  # m, as mpe2 draws them


def draw_surroundings(axes: Axes, plan: Plan, names: list[str]) -> None:
    """Draws what stands around these agents now; patches are labelled by kind."""
    for x, y, radius in _obstacles(plan, names):
        disc = Circle((x, y), radius, facecolor=HAIRLINE, edgecolor=MUTED, linewidth=0.8, zorder=1, label="obstacle")
        axes.add_patch(disc)
    _draw_scene(axes, plan)


def _obstacles(plan: Plan, names: list[str]) -> list[list[float]]:
    """The round obstacles (x, y, radius in m) that the agents see now, in all candidates alike, each once."""
    seen: list[list[float]] = []
    for name in names:
        entries = list(plan.spec.role_of(name).obstacles)
        now = plan.observations[:, plan.spec.names.index(name), 0, entries].reshape(plan.num_samples, -1, 3)
        known = np.ptp(now, axis=0).max(-1, initial=0) < 1e-3
        seen += [disc for disc in now[0, known].round(4).tolist() if disc not in seen]
    return seen


def _draw_scene(axes: Axes, plan: Plan) -> None:
    """Draws the walls, boxes and landmarks of the plan's environment as they are now."""
    draw, now = _SCENES.get(plan.spec.env_id or ""), plan.observations[:, plan.agent_mask, 0]
    known = np.flatnonzero(np.ptp(now, axis=0).max(-1) < 1e-3)  # what the others see is imagined
    if draw is not None and (len(known) or draw is _crossing):  # its walls stand, whatever is seen
        draw(axes, plan, now[0, known[0] if len(known) else 0])


def _crossing(axes: Axes, plan: Plan, seen: Float[np.ndarray, "O"]) -> None:
    if plan.spec.env_options.get("layout") == "doorway":
        for left, low, right, high in DOORWAY_BOXES:
            wall = Rectangle((left, low), right - left, high - low, facecolor=HAIRLINE, edgecolor=MUTED, linewidth=0.8)
            axes.add_patch(wall).set(label="wall", zorder=1)


def _transport(axes: Axes, plan: Plan, seen: Float[np.ndarray, "O"]) -> None:
    """An agent sees the box's pose and that of its goal, see ``TransportEnv``."""
    poses = (("box's goal", seen[8:12], GOAL_COLOR, "--"), ("box", seen[4:8], BOX_COLOR, "-"))
    for label, (x, y, cos, sin), color, line in poses:
        corner, size = (x - BOX_HALF[0], y - BOX_HALF[1]), (2 * BOX_HALF[0], 2 * BOX_HALF[1])
        angle = float(np.degrees(np.arctan2(sin, cos)))
        box = Rectangle(corner, *size, angle=angle, rotation_point="center", facecolor=color, edgecolor=MUTED)
        axes.add_patch(box).set(label=label, zorder=1, linewidth=0.8, linestyle=line)


def _spread(axes: Axes, plan: Plan, seen: Float[np.ndarray, "O"]) -> None:
    """An agent sees its velocity, its place, and how far each landmark is from it."""
    for x, y in seen[2:4] + seen[4 : 4 + 2 * plan.spec.env_options.get("N", 3)].reshape(-1, 2):
        axes.add_patch(Circle((x, y), _LANDMARK_RADIUS, facecolor=MUTED, label="landmark", zorder=1))


_SCENES: dict[str, Callable[[Axes, Plan, Float[np.ndarray, "O"]], None]] = {
    "crossing-v0": _crossing,
    "transport-v0": _transport,
    "mpe:simple_spread_v3": _spread,
}
