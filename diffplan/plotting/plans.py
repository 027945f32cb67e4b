"""Pictures of one plan: its candidates seen from above or over time, and how they came out of noise."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from textwrap import fill

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from diffplan.envs.scene import AGENT_COLORS, Color
from diffplan.plotting.scenes import draw_surroundings
from diffplan.plotting.style import (
    INK,
    MUTED,
    STYLE,
    agent_color,
    counted,
    draw_candidates,
    draw_dots,
    executed_path,
    placed,
    square_around,
    style_chart,
    style_map,
)
from diffplan.trajectory import Plan, Trajectory


@matplotlib.rc_context(STYLE)
def plot_plan(
    plan: Plan, executed: Trajectory | None = None, goals: Mapping[str, Sequence[float]] | None = None
) -> Figure:
    """Draws every candidate faintly and the best one strongly, with dots at equal times: who is where when.

    Of candidates that nobody has ranked the first is drawn strongly.

    Agents with a position are seen from above, in metres, over a chart of their heights where they have one (z); of
    others, observations and actions are drawn over time.
    Round obstacles that agents see (``Role.obstacles``) are drawn, and what stands in the scenes of ``crossing-v0``,
    ``transport-v0`` and ``mpe:simple_spread_v3``; to add more, draw on ``figure.axes[0]``.

    Args:
        plan: from a planner, ``Plan.load`` or elsewhere.
        executed: what happened from the plan's present on (``trajectory.after(step)``), drawn dashed.
        goals: {agent: (x, y)} (m), drawn as rings; by default where ``Role.goal`` says that agents see their goals.

    Raises:
        ValueError: nobody is there, ``executed`` or ``goals`` are of other agents than the plan, or a goal is no x
            and y.
    """
    names = plan.present
    if not names:
        raise ValueError("the plan has no agents that are there; plan at a step at which somebody is.")
    goals = _goals(plan) if goals is None else goals
    _check_agents(plan, executed, goals)
    mapped = placed(plan.spec, names)
    timed = [name for name in names if name not in mapped]
    width, height = 6.4 * bool(mapped), 0.6 + 1.8 * len(timed)
    if mapped:
        height = max(height, 4.8, _legend_height(mapped))
    figure = Figure((width + 7.2 * bool(timed), height), layout="constrained")
    left = right = figure
    if mapped and timed:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(6.4, 7.2))[0]
    if mapped:
        _draw_map(left, plan, mapped, executed, goals)
    if timed:
        _draw_over_time(right, plan, timed, executed, shared=bool(mapped))
        if not mapped:
            figure.legend(handles=_line_handles(plan, executed is not None), loc="outside right center")
    what = "joint plan" if plan.spec.action_size else "joint future"
    plans, agents = counted(plan.num_samples, what), counted(len(names), "agent")
    figure.suptitle(f"{plans} of {agents}, {(plan.horizon - 1) * plan.spec.dt:.3g} s ahead")
    return figure


@matplotlib.rc_context(STYLE)
def plot_what_if(free: Plan, given: Plan, told: Mapping[str, str]) -> Figure:
    """Draws two plans from the same present side by side: what the team would do, and what it does given a future.

    Args:
        free: planned with nothing given.
        given: planned with the futures of the agents in ``told`` given.
        told: {agent: what it does, in words}, e.g. ``{"robot_0": "goes straight"}``; drawn with a dark edge, where
            it is drawn: agents without an x and a y are not, but how the others answer to them is.

    Raises:
        ValueError: the plans are of different agents, of none with an x and a y, or ``told`` names others.
    """
    names = placed(given.spec, given.present)
    if free.present != given.present:
        raise ValueError(f"plans of {free.present} and {given.present}; both must be of the same agents.")
    if not names:
        raise ValueError(f"no agent of {given.spec} has an x and a y to draw; set Role.position, or use plot_plan.")
    foreign = [name for name in told if name not in given.present]
    if foreign or not told:
        raise ValueError(f"told={dict(told)}; name agents among {given.present} and what they do.")
    figure = Figure((8.6, max(3.7, _legend_height(names))), layout="constrained")
    titles = ("nobody is told anything", fill(", ".join(f"{name} {what}" for name, what in told.items()), 36))
    goals = _goals(given)
    for axes, plan, title, marked in zip(figure.subplots(1, 2), (free, given), titles, ((), told), strict=True):
        _draw_from_above(axes, plan, names, None, goals, told=marked)
        axes.set(title=title, xlabel="x (m)")
    low, high = square_around(np.concatenate([axes.dataLim.get_points() for axes in figure.axes]))
    for axes in figure.axes:
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.locator_params(nbins=6)  # labels of half a picture's width overlap sooner
    figure.axes[0].set_ylabel("y (m)")
    edged = not set(told).isdisjoint(names)
    _explain_map(figure, figure.axes[0], given, names, executed=False, goals=bool(goals), told=edged)
    return figure


def _legend_height(names: Collection[str]) -> float:
    """Inches that a legend of these agents, and of what strokes mean, takes."""
    return 0.24 * (len(names) + 11)


def _goals(plan: Plan) -> dict[str, Sequence[float]]:
    """Where agents are known to want to be (m), that is, in all candidates alike."""
    found: dict[str, Sequence[float]] = {}
    for name in placed(plan.spec, plan.present):
        entries = list(plan.spec.role_of(name).goal)
        places = plan.observations[:, plan.spec.names.index(name), 0, entries]
        if entries and np.ptp(places, axis=0).max() < 1e-3:
            found[name] = places[0, :2].tolist()
    return found


def _check_agents(plan: Plan, executed: Trajectory | None, goals: Mapping[str, Sequence[float]]) -> None:
    if executed is not None and executed.spec.names != plan.spec.names:
        agents = f"agents {list(executed.spec.names)}, the plan of {list(plan.spec.names)}"
        raise ValueError(f"executed is an episode of {agents}; pass an episode of the plan's team.")
    foreign = [name for name in goals if name not in plan.present]
    if foreign:
        raise ValueError(f"goals of agents {foreign}, but the plan is of {plan.present}.")
    if wrong := {name: goal for name, goal in goals.items() if np.shape(goal) != (2,)}:
        raise ValueError(f"goals={wrong}; give x and y (m) of each agent.")


def _draw_map(
    figure: FigureBase,
    plan: Plan,
    names: list[str],
    executed: Trajectory | None,
    goals: Mapping[str, Sequence[float]],
) -> None:
    flying = [name for name in names if len(plan.spec.role_of(name).position) > 2]
    axes, *below = figure.subplots(2, height_ratios=(3, 1)) if flying else [figure.subplots()]
    _draw_from_above(axes, plan, names, executed, goals)
    for chart in below:
        _draw_heights(chart, plan, flying, executed)
    axes.set(xlabel="x (m)", ylabel="y (m)", adjustable="datalim")
    _explain_map(figure, axes, plan, names, executed is not None, bool(goals))


def _explain_map(
    figure: FigureBase,
    axes: Axes,
    plan: Plan,
    names: list[str],
    executed: bool,
    goals: bool,
    told: bool = False,
) -> None:
    """The legend of agents seen from above: who they are, what strokes mean, and what stands around, once a kind."""
    agents = [Line2D([], [], color=agent_color(plan.spec, name), linewidth=3, label=name) for name in names]
    gap, edge = Line2D([], [], color="none", label=""), Line2D([], [], color=INK, linewidth=5, label="told")
    scene = {str(patch.get_label()): patch for patch in axes.patches}
    handles = [*agents, gap, *_stroke_handles(plan, executed, goals), *([edge] if told else []), *scene.values()]
    figure.legend(handles=handles, loc="outside right center", labelspacing=0.7)


def _draw_from_above(
    axes: Axes,
    plan: Plan,
    names: list[str],
    executed: Trajectory | None,
    goals: Mapping[str, Sequence[float]],
    told: Collection[str] = (),
) -> None:
    """Draws the paths of agents with a position, their goals, and what is around them; who is told has a dark edge."""
    best, every = plan.best(), _dot_spacing(plan)
    paths = {name: best.positions(name)[0, :, :2] for name in names}
    draw_surroundings(axes, plan, names)
    scale = _dot_scale([*paths.values()], axes.dataLim.get_points() if axes.patches else np.zeros((0, 2)))
    for name, path in paths.items():
        color = agent_color(plan.spec, name)
        draw_candidates(axes, plan.positions(name)[..., :2], color)
        if name in told:
            axes.plot(*path.T, color=INK, linewidth=5, solid_capstyle="round", zorder=3)
            axes.plot(*path[:1].T, "o", color=INK, markersize=15 * scale**0.5, zorder=3)
        _draw_best(axes, path, color, every, scale)
        if executed is not None:
            happened = executed_path(executed, name, plan.horizon)
            axes.plot(*happened.T, "--", color=INK, linewidth=1.1, zorder=7)
            last = happened[~np.isnan(happened).any(1)][-1:]
            axes.plot(*last.T, "X", color=color, markersize=8, markeredgecolor=INK, markeredgewidth=0.9, zorder=8)
        if name in goals:
            x, y = goals[name]
            axes.scatter(x, y, s=130, facecolor="none", edgecolor=[color], linewidth=2, zorder=6)
    style_map(axes)


def _draw_heights(axes: Axes, plan: Plan, names: list[str], executed: Trajectory | None) -> None:
    """How high agents with x, y and z are over the planned seconds."""
    heights = np.stack([plan.positions(name)[..., 2] for name in names], -1)
    happened = None
    if executed is not None:
        paths = [executed_path(executed, name, plan.horizon, entries=slice(2, 3)) for name in names]
        happened = np.concatenate(paths, -1)
    style_chart(axes)
    colors = [agent_color(plan.spec, name) for name in names]
    _draw_entries(axes, plan.spec.dt, heights, heights[plan.best_index], happened, colors)
    axes.set(xlabel="time (s)", ylabel="z (m)")


def _dot_scale(paths: list[Float[np.ndarray, "H 2"]], corners: Float[np.ndarray, "n 2"]) -> float:
    """Of a dot's area: less where the paths of those that move are short beside the map, lest dots hide them."""
    whole, *lengths = (float(np.ptp(path, axis=0).max()) for path in (np.concatenate([*paths, corners]), *paths))
    moved = [length for length in lengths if length > 0.01 * whole]
    return float(np.clip(4 * np.median(moved) / whole, 0.3, 1.0) ** 2) if moved else 1.0


def _draw_best(axes: Axes, path: Float[np.ndarray, "H 2"], color: Color, every: int, scale: float) -> None:
    """A line that fades with time, a large dot now and small ones at equal times."""
    fading = [(*color, alpha) for alpha in np.linspace(1.0, 0.45, len(path))]
    segments = np.stack([path[:-1], path[1:]], axis=1)
    axes.add_collection(LineCollection(list(segments), colors=fading[:-1], linewidths=2.2, zorder=4))
    draw_dots(axes, path[every::every], color, size=26 * scale)
    draw_dots(axes, path[:1], color, size=130 * scale)


def _dot_spacing(plan: Plan) -> int:
    """Steps between two dots: a round number, at most eight dots to a plan."""
    choices = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    return next((steps for steps in choices if steps * 8 >= plan.horizon), choices[-1])


def _stroke_handles(plan: Plan, executed: bool, goals: bool) -> list[Line2D]:
    """Legend: what the strokes mean, in grey."""
    dot = partial(Line2D, [], [], linestyle="", marker="o", color=MUTED, markeredgecolor="white")
    ring = partial(Line2D, [], [], linestyle="", marker="o", markerfacecolor="none", markeredgecolor=MUTED)
    strong, *others = _line_handles(plan, executed)
    handles = [
        dot(markersize=10, label="now"),
        strong,
        dot(markersize=6, label=f"every {_dot_spacing(plan) * plan.spec.dt:.3g} s"),
        *others,
    ]
    if goals:
        handles += [ring(markersize=10, markeredgewidth=2, label="goal")]
    return handles


def _line_handles(plan: Plan, executed: bool) -> list[Line2D]:
    """Legend: what the lines mean, in grey."""
    line = partial(Line2D, [], [], color=MUTED)
    handles = [line(linewidth=2.2, label=_strong(plan))]
    if plan.num_samples > 1:
        handles += [line(linewidth=1, alpha=0.5, label=counted(plan.num_samples, "candidate"))]
    if executed:
        handles += [Line2D([], [], color=INK, linewidth=1.1, linestyle="--", marker="X", label="what happened")]
    return handles


def _strong(plan: Plan) -> str:
    """What the strong line is; nothing tells the best of candidates that nobody has ranked."""
    what = "plan" if plan.spec.action_size else "future"
    if "share" in plan.terms:  # representatives: the one of the largest cluster
        return f"likeliest {what}"
    return f"best {what}" if plan.values is not None else f"{'first ' * (plan.num_samples > 1)}{what}"


def _draw_over_time(
    figure: FigureBase, plan: Plan, names: list[str], executed: Trajectory | None, shared: bool
) -> None:
    """One row an agent: its observation and its action over the planned seconds.

    In a picture ``shared`` with agents seen from above, their colours mean agents, and entries have others.
    """
    acting = any(plan.spec.role_of(name).action_size for name in names)
    shown = ("observations", "actions") if acting else ("observations",)
    grid = figure.subplots(len(names), len(shown), sharex=True, squeeze=False)
    best = plan.best()
    for row, name in zip(grid, names, strict=True):
        index, role = plan.spec.names.index(name), plan.spec.role_of(name)
        sizes = {"observations": role.observation_size, "actions": role.action_size}
        for axes, what in zip(row, shown, strict=True):
            size, stepped = sizes[what], what == "actions" and role.discrete
            style_chart(axes)
            candidates, strong = (getattr(one, what)[:, index, :, :size] for one in (plan, best))
            happened = None if executed is None else getattr(executed, what)[: plan.horizon, index, :size]
            _draw_entries(axes, plan.spec.dt, candidates, strong[0], happened, _entry_colors(size, shared))
            for line in axes.lines:
                line.set_drawstyle("steps-post" if stepped else "default")
        row[0].set_ylabel(name)
    for axes, title in zip(grid[0], shown, strict=True):
        axes.set_title(title)
    figure.supxlabel("time (s)", fontsize=9)


def _draw_entries(
    axes: Axes,
    dt: float,
    candidates: Float[np.ndarray, "S H entries"],
    best: Float[np.ndarray, "H entries"],
    executed: Float[np.ndarray, "steps entries"] | None,
    colors: Sequence[Color],
) -> None:
    """One colour an entry: faint candidates, the best one strong, what happened dashed."""
    seconds = np.broadcast_to(np.arange(len(best)) * dt, candidates.shape[:2])
    for entry, color in enumerate(colors):
        draw_candidates(axes, np.stack([seconds, candidates[..., entry]], -1), color, weight=2)
        axes.plot(seconds[0], best[:, entry], color=color, linewidth=1.8)
        if executed is not None:
            axes.plot(seconds[0, : len(executed)], executed[:, entry], "--", color=INK, linewidth=0.9)
    axes.set_xlim(0, seconds[0, -1])


def _entry_colors(number: int, shared: bool) -> list[Color]:
    """The agents' palette where it suffices and agents do not need it, else a scale from dark to light."""
    if number <= len(AGENT_COLORS) and not shared:
        return list(AGENT_COLORS[:number])
    return [color[:3] for color in matplotlib.colormaps["cividis"](np.linspace(0, 0.95, number)).tolist()]
