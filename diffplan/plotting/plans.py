"""Pictures of one plan: its candidates seen from above or over time, and how they came out of noise."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from diffplan.envs.scene import AGENT_COLORS, Color
from diffplan.plotting.style import (
    HAIRLINE,
    INK,
    MUTED,
    STYLE,
    agent_color,
    draw_candidates,
    executed_path,
    has_position,
    style_chart,
    style_map,
)
from diffplan.trajectory import Plan, Trajectory


@matplotlib.rc_context(STYLE)
def plot_plan(
    plan: Plan, executed: Trajectory | None = None, goals: Mapping[str, Sequence[float]] | None = None
) -> Figure:
    """Draws every candidate faintly and the best one strongly, with dots at equal times: who is where when.

    Agents with a position are seen from above, in metres; the others' observations and actions are drawn over time.
    To add walls and the like, draw on ``figure.axes[0]``.

    Args:
        plan: from a planner, ``Plan.load`` or elsewhere.
        executed: what happened from the plan's present on; drawn dashed.
        goals: {agent: (x, y)} (m), drawn as rings.

    Raises:
        ValueError: ``executed`` or ``goals`` are of other agents than the plan.
    """
    spec, names = plan.spec, [name for name, there in zip(plan.spec.names, plan.agent_mask, strict=True) if there]
    if executed is not None and executed.spec.names != spec.names:
        raise ValueError(
            f"executed is of agents {executed.spec.names}, the plan of {spec.names}; pass the plan's own episode."
        )
    foreign = sorted(set(goals or {}) - set(names))
    if foreign:
        raise ValueError(f"goals of agents {foreign}, but the plan has {names}.")
    mapped = [name for name in names if has_position(spec, name)]
    timed = [name for name in names if name not in mapped]
    figure = Figure(
        (6.4 * bool(mapped) + 7.2 * bool(timed), max(4.8 * bool(mapped), 1.9 * len(timed))), layout="constrained"
    )
    map_part, time_part = figure.subfigures(1, 2, width_ratios=(6.4, 7.2)) if mapped and timed else (figure, figure)
    if mapped:
        _draw_map(map_part.subplots(), plan, mapped, executed, goals or {})
    if timed:
        _draw_over_time(time_part, plan, timed, executed)
    seconds = (plan.horizon - 1) * spec.dt
    plans, agents = _count(plan.num_samples, "joint plan"), _count(len(names), "agent")
    figure.suptitle(f"{plans} of {agents}, {seconds:.3g} s ahead")
    return figure


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _draw_map(
    axes: Axes, plan: Plan, names: list[str], executed: Trajectory | None, goals: Mapping[str, Sequence[float]]
) -> None:
    best, every = plan.best(), _dot_spacing(plan)
    for name in names:
        color = agent_color(plan.spec, name)
        draw_candidates(axes, plan.positions(name)[..., :2], color)
        path = best.positions(name)[0, :, :2]
        fading = np.linspace(1.0, 0.45, plan.horizon)
        segments = np.stack([path[:-1], path[1:]], axis=1)
        axes.add_collection(
            LineCollection(segments, colors=[(*color, a) for a in fading[:-1]], linewidths=2.2, zorder=4)
        )
        dots = path[::every]
        axes.scatter(*dots[1:].T, s=26, color=[color], edgecolor="white", linewidth=0.8, zorder=5)
        axes.scatter(*dots[0], s=130, color=[color], edgecolor="white", linewidth=1.2, zorder=6)
        if executed is not None:
            axes.plot(*executed_path(executed, name).T, "--", color=INK, linewidth=1.1, zorder=7)
        if name in goals:
            axes.scatter(*goals[name], s=130, facecolor="none", edgecolor=[color], linewidth=2, zorder=3)
    style_map(axes)
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)")
    _legend(axes, plan, names, every, executed is not None, bool(goals))


def _dot_spacing(plan: Plan) -> int:
    """Steps between two dots: a round number of seconds, about eight to a plan."""
    choices = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    return next((steps for steps in choices if steps * 8 >= plan.horizon), choices[-1])


def _legend(axes: Axes, plan: Plan, names: list[str], every: int, executed: bool, goals: bool) -> None:
    """Agents by colour, then what the strokes mean, in grey."""
    dot = {"marker": "o", "linestyle": "", "markeredgecolor": "white"}
    handles = [Line2D([], [], color=agent_color(plan.spec, name), linewidth=3, label=name) for name in names]
    handles += [Line2D([], [], color="none", label=""), Line2D([], [], color=MUTED, markersize=10, label="now", **dot)]
    handles += [Line2D([], [], color=MUTED, linewidth=2.2, label="best plan")]
    handles += [Line2D([], [], color=MUTED, markersize=6, label=f"every {every * plan.spec.dt:.2g} s", **dot)]
    if plan.num_samples > 1:
        handles += [Line2D([], [], color=MUTED, alpha=0.5, linewidth=1, label=_count(plan.num_samples, "candidate"))]
    if executed:
        handles += [Line2D([], [], color=INK, linewidth=1.1, linestyle="--", label="executed")]
    if goals:
        handles += [
            Line2D(
                [], [], color="none", marker="o", markersize=10, markeredgecolor=MUTED, markeredgewidth=2, label="goal"
            )
        ]
    axes.figure.legend(handles=handles, loc="outside right center", labelspacing=0.7)


def _draw_over_time(figure: FigureBase, plan: Plan, names: list[str], executed: Trajectory | None) -> None:
    """One row an agent: its observation and its action over the planned seconds, one colour an entry."""
    grid = figure.subplots(len(names), 2, sharex=True, squeeze=False)
    seconds, best = np.arange(plan.horizon) * plan.spec.dt, plan.best()
    for row, name in zip(grid, names, strict=True):
        index, role = plan.spec.names.index(name), plan.spec.role_of(name)
        for axes, what, size in zip(
            row, ("observations", "actions"), (role.observation_size, role.action_size), strict=True
        ):
            for entry, color in zip(range(size), _entry_colors(size), strict=True):
                candidates = getattr(plan, what)[:, index, :, entry]
                draw_candidates(axes, np.stack([np.broadcast_to(seconds, candidates.shape), candidates], -1), color)
                axes.plot(seconds, getattr(best, what)[0, index, :, entry], color=color, linewidth=1.8)
                if executed is not None:
                    happened = getattr(executed, what)[: plan.horizon, index, entry]
                    axes.plot(seconds[: len(happened)], happened, "--", color=INK, linewidth=0.9)
            style_chart(axes)
            axes.set_xlim(0, seconds[-1])
        row[0].set_ylabel(name)
    for axes, title in zip(grid[0], ("observations", "actions"), strict=True):
        axes.set_title(title)
    figure.supxlabel("time (s)", fontsize=9)


def _entry_colors(number: int) -> list[Color]:
    """The agents' palette where it suffices, else a scale from dark to light."""
    if number <= 8:
        return list(AGENT_COLORS[:number])
    return [color[:3] for color in matplotlib.colormaps["cividis"](np.linspace(0, 0.95, number)).tolist()]


@matplotlib.rc_context(STYLE)
def plot_denoising(plan: Plan, columns: int = 5) -> Figure:
    """Draws the denoised estimate of every candidate at a few denoising steps, from the first to the last.

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
        axes.set_title(f"step {step + 1} of {len(paths)}")
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
        axes.set_title(f"denoising step {step + 1} of {len(paths)}")
        for name, candidates in by_agent.items():
            for line, path in zip(lines[name], candidates, strict=True):
                line.set_data(*path.T)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(frames)


def _denoising_paths(plan: Plan) -> list[dict[str, np.ndarray]]:
    """For every denoising step, {agent: S paths of H points} of the agents that are there and have a position."""
    if plan.chain is None:
        raise ValueError("the plan has no denoising chain; make it with planner(..., return_chain=True).")
    names = [
        name
        for name, there in zip(plan.spec.names, plan.agent_mask, strict=True)
        if there and has_position(plan.spec, name)
    ]
    if not names:
        raise ValueError(f"no agent of {plan.spec} has a position to draw; set Role.position, or use plot_plan.")
    place = {name: (plan.spec.names.index(name), plan.spec.role_of(name).position[:2]) for name in names}
    return [
        {name: step[:, index][..., list(position)] for name, (index, position) in place.items()} for step in plan.chain
    ]


def _denoising_lines(axes: Axes, plan: Plan, paths: list[dict[str, np.ndarray]], step: int) -> dict[str, list[Line2D]]:
    """Draws one step into axes whose limits hold the finished plan; starts are dots."""
    lines = {name: draw_candidates(axes, one, agent_color(plan.spec, name)) for name, one in paths[step].items()}
    best = 0 if plan.values is None else int(np.argmax(plan.values))
    for candidates in lines.values():
        candidates[best].set(alpha=1, linewidth=2, zorder=4)
    for name, one in paths[-1].items():
        axes.scatter(*one[0, 0], s=60, color=[agent_color(plan.spec, name)], edgecolor="white", zorder=5)
    points = np.concatenate([one.reshape(-1, 2) for one in paths[-1].values()])
    low, high = points.min(0), points.max(0)
    center, half = (low + high) / 2, 0.58 * float((high - low).max())
    axes.set(xlim=(center[0] - half, center[0] + half), ylim=(center[1] - half, center[1] + half), aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=HAIRLINE)
    return lines
