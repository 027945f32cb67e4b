"""The look that all pictures share: colours, lines, type sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffplan.envs.scene import AGENT_COLORS, Color
from diffplan.files import atomic_path
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

INK, MUTED, HAIRLINE = "#262626", "#6b6b6b", "#e3e3e3"
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "figure.titlesize": 11,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b5b5b5",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
"""What differs from matplotlib's defaults; set only while a figure is made."""


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a picture, whole or not at all; the suffix says in which format."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def agent_color(spec: JointSpec, agent: str) -> Color:
    """The colour of an agent, the same in every picture."""
    return AGENT_COLORS[spec.names.index(agent) % len(AGENT_COLORS)]


def placed(spec: JointSpec, agents: Sequence[str]) -> list[str]:
    """Those of the agents that can be drawn from above: whose observations hold at least x and y."""
    return [name for name in agents if len(spec.role_of(name).position) >= 2]


def counted(number: int, noun: str) -> str:
    """As in: 1 agent, 2 agents."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def executed_path(
    trajectory: Trajectory, agent: str, steps: int | None = None, entries: slice = slice(2)
) -> Float[np.ndarray, "steps entries"]:
    """Where an agent was (x and y in m) at every step, NaN while it was away; at the first ``steps`` ones, if given."""
    index = trajectory.spec.names.index(agent)
    position = list(trajectory.spec.role_of(agent).position[entries])
    there = trajectory.agent_mask[:steps, index]
    return np.where(there[:, None], trajectory.observations[:steps, index][:, position], np.nan)


def draw_candidates(axes: Axes, paths: Float[np.ndarray, "S H 2"], color: Color, weight: float = 5) -> list[Line2D]:
    """Draws S faint lines; the more there are, the fainter: together they weigh as much as ``weight`` full ones."""
    alpha = float(np.clip(weight / len(paths), 0.12, 0.5))
    return axes.plot(
        *paths.transpose(2, 1, 0), color=color, alpha=alpha, linewidth=1.0, solid_capstyle="round", zorder=2
    )


def draw_dots(axes: Axes, points: Float[np.ndarray, "n 2"], color: Color, size: float) -> None:
    """Draws dots of an area of ``size`` points^2 with a white edge, large ones over small ones."""
    zorder, linewidth = 5 + size / 1_000, 0.1 * size**0.5
    axes.scatter(
        points[:, 0], points[:, 1], s=size, color=[color], edgecolor="white", linewidth=linewidth, zorder=zorder
    )


def style_map(axes: Axes) -> None:
    """Equal scales on both axes over a hairline grid, without a frame."""
    style_chart(axes)
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)


def style_chart(axes: Axes) -> None:
    """Hairline grid behind the data, quiet ticks."""
    axes.grid(color=HAIRLINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=8, labelcolor=MUTED)


def square_around(points: Float[np.ndarray, "n 2"]) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """The corners of a square that holds these points and a margin (m)."""
    low, high = points.min(0), points.max(0)
    center, half = (low + high) / 2, 0.58 * float((high - low).max()) or 0.5
    return center - half, center + half


def draw_interval(axes: Axes, row: int, value: float, low: float, high: float) -> None:
    """Draws a dot with its interval in a horizontal row, and the value above it."""
    color = AGENT_COLORS[0]
    axes.plot([low, high], [row, row], color=color, linewidth=2.4, solid_capstyle="round", alpha=0.4)
    axes.plot(value, row, "o", color=color, markersize=6)
    axes.annotate(f"{value:.3g}", (value, row), (0, 6), textcoords="offset points", ha="center", fontsize=8)
