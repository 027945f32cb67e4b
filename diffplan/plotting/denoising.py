"""Pictures of how the candidates of a plan came out of noise."""

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffplan.plotting.scenes import draw_surroundings
from diffplan.plotting.style import (
    HAIRLINE,
    STYLE,
    agent_color,
    draw_candidates,
    draw_dots,
    placed,
    square_around,
)
from diffplan.trajectory import Plan


@matplotlib.rc_context(STYLE)
def plot_denoising(plan: Plan, columns: int = 5) -> Figure:
    """Draws every candidate, what noise is left in it included, after a few denoising steps, the first to the last.

    Args:
        plan: from ``planner(..., return_chain=True)``, with positions.
        columns: how many steps to show, at most.

    Raises:
        ValueError: the plan has no chain, or no agent with a position.
    """
    paths = _denoising_paths(plan)
    steps = np.unique(np.linspace(0, len(paths) - 1, columns).round().astype(int))
    figure = Figure((2.3 * len(steps), 2.6), layout="constrained")
    for axes, step in zip(figure.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        _denoising_lines(axes, plan, paths, step)
        axes.set_title(f"step {step} of {len(paths) - 1}" if step else "noise")
    return figure


@matplotlib.rc_context(STYLE)
def animate_denoising(plan: Plan) -> UInt8[np.ndarray, "K height width 3"]:
    """One frame a denoising step, for ``save_video``. Raises ``ValueError`` as ``plot_denoising``."""
    paths = _denoising_paths(plan)
    figure = Figure((4.2, 4.4), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    lines = _denoising_lines(axes, plan, paths, step=0)
    frames = []
    for step, by_agent in enumerate(paths):
        axes.set_title(f"denoising step {step} of {len(paths) - 1}")
        for name, candidates in by_agent.items():
            for line, path in zip(lines[name], candidates, strict=True):
                line.set_data(*path.T)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        frames.append(pixels[..., :3].copy())
    return np.stack(frames)


def _denoising_paths(plan: Plan) -> list[dict[str, np.ndarray]]:
    """For every denoising step, {agent: S paths of H points} of the agents that are there and have a position."""
    if plan.chain is None:
        raise ValueError("the plan has no denoising chain; make it with planner(..., return_chain=True).")
    names = placed(plan.spec, plan.present)
    if not names:
        raise ValueError(f"no agent of {plan.spec} has a position to draw; set Role.position, or use plot_plan.")
    place = {name: (plan.spec.names.index(name), plan.spec.role_of(name).position[:2]) for name in names}
    return [
        {name: step[:, index][..., list(position)] for name, (index, position) in place.items()} for step in plan.chain
    ]


def _denoising_lines(axes: Axes, plan: Plan, paths: list[dict[str, np.ndarray]], step: int) -> dict[str, list[Line2D]]:
    """Draws one step into axes whose limits hold the finished plan; starts are dots."""
    lines = {name: draw_candidates(axes, one, agent_color(plan.spec, name)) for name, one in paths[step].items()}
    for candidates in lines.values():
        candidates[plan.best_index].set(alpha=1, linewidth=1.6, zorder=4)
    for name, one in paths[-1].items():
        draw_dots(axes, one[0, :1], agent_color(plan.spec, name), size=60)
    points = np.concatenate([one.reshape(-1, 2) for one in paths[-1].values()])
    draw_surroundings(axes, plan, list(paths[-1]))
    low, high = square_around(points)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=HAIRLINE)
    return lines
