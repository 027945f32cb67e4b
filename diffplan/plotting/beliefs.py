"""A picture of a belief forming: what a partner is taken for over time, and its predicted paths against what it did."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffplan.envs.scene import AGENT_COLORS, Color
from diffplan.plotting.style import (
    INK,
    MUTED,
    STYLE,
    draw_candidates,
    draw_dots,
    executed_path,
    style_chart,
    style_map,
)
from diffplan.trajectory import Plan, Trajectory


@matplotlib.rc_context(STYLE)
def plot_belief(
    plans: Sequence[Plan], executed: Trajectory, partner: str, moments: Sequence[int] = (0, 5, 10, 20, 30)
) -> Figure:
    """Draws fans of a partner's predicted paths at some steps over what it did, and the belief at every step.

    A fan has the colour of the family that the partner is then taken for.

    Args:
        plans: one made at every step of the episode, with several candidates and a belief.
        executed: what happened.
        partner: whose prediction and belief to draw.
        moments: steps at which to draw the fans; those beyond the last plan are left out.

    Raises:
        ValueError: no plans, no moment among them, or plans without a belief about this agent.
    """
    shown = [step for step in moments if 0 <= step < len(plans)]
    if not shown:
        raise ValueError(f"moments={tuple(moments)} are outside the {len(plans)} plans; choose steps 0 and up.")
    beliefs = [plan.belief_about(partner) for plan in plans]
    figure = Figure((2.0 * len(shown) + 1.0, 5.0), layout="constrained")
    grid = figure.add_gridspec(2, len(shown), height_ratios=(1.25, 1))
    first: Axes | None = None
    for column, step in enumerate(shown):
        axes = figure.add_subplot(grid[0, column], sharex=first, sharey=first)
        likeliest = int(np.argmax(list(beliefs[step].values())))
        _draw_fan(axes, plans[step], executed, partner, step, _family_color(likeliest))
        axes.set_xlabel("x (m)")
        if first is None:
            first = axes
            axes.set_ylabel("y (m)")
            axes.tick_params(labelleft=True)
    _draw_probabilities(figure.add_subplot(grid[1, :]), beliefs, executed, shown)
    strokes = [
        Line2D(
            [],
            [],
            color=MUTED,
            alpha=0.7,
            label=f"{partner}: {plans[0].num_samples} predicted paths, coloured by the likeliest style",
        ),
        Line2D([], [], color=INK, linestyle="--", label="what it did"),
        Line2D([], [], color="#b0b0b0", marker="o", markersize=5, linewidth=1.2, label="the others"),
    ]
    figure.legend(handles=strokes, loc="outside upper center", ncols=3 if len(shown) > 3 else 1)
    return figure


def _family_color(index: int) -> Color:
    return AGENT_COLORS[index % len(AGENT_COLORS)]


def _draw_fan(axes: Axes, plan: Plan, executed: Trajectory, partner: str, step: int, color: Color) -> None:
    """The partner's candidates from now on, its path so far and after, the others' paths so far."""
    path, begins = executed_path(executed, partner), step + 1  # a plan that is acted on tells what comes next
    for name in executed.spec.names:
        if name != partner:
            other = executed_path(executed, name)
            axes.plot(*other[: begins + 1].T, color=MUTED, alpha=0.5, linewidth=1.2)
            draw_dots(axes, other[begins : begins + 1], (0.62, 0.62, 0.62), size=40)
    draw_candidates(axes, plan.positions(partner)[..., :2], color, weight=14)
    axes.plot(*path[: begins + 1].T, color=INK, linewidth=1.4, zorder=4)
    axes.plot(*path[begins : begins + plan.horizon].T, "--", color=INK, linewidth=1.1, zorder=4)
    draw_dots(axes, path[begins : begins + 1], color, size=90)
    style_map(axes)
    axes.set_title(f"{step * executed.spec.dt:.1f} s", fontsize=9)
    axes.locator_params(nbins=3)
    axes.tick_params(labelleft=False)


def _draw_probabilities(
    axes: Axes, beliefs: list[dict[str, float]], executed: Trajectory, shown: Sequence[int]
) -> None:
    """One band a family; bands of all families fill the height."""
    families = list(beliefs[0])
    time = np.arange(len(beliefs)) * executed.spec.dt
    bands = np.array([[belief[name] for belief in beliefs] for name in families])
    colors = [_family_color(index) for index in range(len(families))]
    axes.stackplot(time, bands, colors=colors, alpha=0.8, edgecolor="white", linewidth=0.6)
    for index, (name, color) in enumerate(zip(families, colors, strict=True)):
        axes.plot([], [], color=color, linewidth=6, alpha=0.8, label=name)
        _write_in(axes, name, bands[index], bands[:index].sum(0), time)
    for step in shown:
        axes.axvline(step * executed.spec.dt, color=INK, linewidth=0.6, alpha=0.5)
    switch = executed.labels.get("switch_time")
    if switch is not None:
        axes.axvline(float(switch), color=INK, linewidth=1.6, linestyle=":")
    style_chart(axes)
    axes.grid(visible=False)
    axes.set(xlim=(0, time[-1]), ylim=(0, 1), yticks=(0, 0.5, 1), xlabel="time (s)", ylabel="belief")
    axes.set_title(_truth(executed), fontsize=9, loc="left", color=MUTED)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=0.8)


def _write_in(axes: Axes, name: str, band: np.ndarray, below: np.ndarray, time: np.ndarray) -> None:
    """The family's name inside its band, in the middle of the longest stretch in which that is high."""
    high = np.flatnonzero(band > 0.4)
    if len(high) < 6:
        return
    stretch = max(np.split(high, np.flatnonzero(np.diff(high) > 1) + 1), key=len)
    middle = stretch[len(stretch) // 2]
    axes.text(
        time[middle], below[middle] + band[middle] / 2, name, ha="center", va="center", color="white", weight="bold"
    )


def _truth(executed: Trajectory) -> str:
    """What the labels say that the partner was."""
    family, second = (executed.labels.get(name) for name in ("family", "switched_family"))
    if family is None:
        return ""
    return f"in truth: {family}" + ("" if second is None else f", from {executed.labels['switch_time']:.1f} s {second}")
