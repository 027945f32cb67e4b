"""Pictures of episodes: the filmstrip of one, the overview of a store of many."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from diffplan.datasets.store import TrajectoryStore
from diffplan.envs.scene import AGENT_COLORS
from diffplan.plotting.style import (
    HAIRLINE,
    INK,
    STYLE,
    agent_color,
    counted,
    draw_dots,
    draw_interval,
    executed_path,
    placed,
    style_chart,
    style_map,
)
from diffplan.trajectory import Trajectory

if TYPE_CHECKING:
    from diffplan.rollout import Rollout

Groups = dict[str, Int[np.ndarray, "episodes"]]
MOST_GROUPS, PANELS_A_ROW, MOST_NAMED = 8, 4, 16


@matplotlib.rc_context(STYLE)
def plot_filmstrip(rollout: "Rollout", columns: int = 6) -> Figure:
    """Shows frames of an episode at equal times, each with its time in seconds.

    Args:
        rollout: from ``record_rollout``.
        columns: how many frames to show, at most.

    Raises:
        ValueError: ``columns`` is not positive.
    """
    if columns < 1:
        raise ValueError(f"columns={columns}; show at least one frame.")
    steps = np.unique(np.linspace(0, len(rollout.frames) - 1, columns).round().astype(int))
    height, width = rollout.frames.shape[1:3]
    figure = Figure((1.75 * len(steps), 1.75 * height / width + 0.2), layout="constrained")
    dt = rollout.trajectory.spec.dt
    digits = next(digits for digits in range(1, 9) if len({f"{step * dt:.{digits}f}" for step in steps}) == len(steps))
    for axes, step in zip(figure.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        axes.imshow(rollout.frames[step], interpolation="antialiased")
        axes.set_title(f"{step * dt:.{digits}f} s", fontsize=9, pad=2)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=HAIRLINE)  # white scenes would run into each other
    return figure


@matplotlib.rc_context(STYLE)
def plot_dataset(store: TrajectoryStore, by: str | None = None, episodes: int = 12) -> Figure:
    """Draws an overview of recorded episodes: paths of each agent, lengths, returns, success, and who is there when,
    as far as there is any of it.

    Paths, returns and success rates (with 95 % Wilson intervals) are told apart by a label, such as the style. Only the
    episodes whose paths are drawn are read from the disk.

    Args:
        store: the episodes.
        by: which label; by default the first one of words that has two or more values, of two episodes or more each
            in the mean.
        episodes: how many to draw paths of, for each value of the label, evenly spread over the store.

    Raises:
        TypeError: ``store`` is another thing, e.g. a folder's name.
        ValueError: the store is empty, or no episode has the label ``by``, or it has too many values.
    """
    if not isinstance(store, TrajectoryStore):
        raise TypeError(f"store is a {type(store).__name__}; pass TrajectoryStore.open(folder), or dataset.store.")
    if not len(store):
        raise ValueError(f"{store.path} holds no episodes yet; collect some with `diffplan collect`.")
    by, groups = _group(store, by)
    drawn = {value: [store[int(i)] for i in _spread(index, episodes)] for value, index in groups.items()}
    mapped = placed(store.spec, store.spec.names)
    columns = min(len(groups), PANELS_A_ROW)
    panel = 0.6 + min(2.7, 7.9 / columns * _height_to_width(drawn)) if mapped else 0
    rows = -(-len(groups) // columns)
    heights = [panel * rows, 2.3] if mapped else [2.3]
    figure = Figure((9.0, 0.3 + sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if mapped:
        _draw_paths(parts[0], drawn, columns)
    charts = _charts(store, groups, [episode for some in drawn.values() for episode in some])
    for axes, draw in zip(parts[-1].subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        style_chart(axes)
        draw(axes)
    seconds = store.num_steps * store.spec.dt
    length = f"{seconds / 60:,.3g} min" if seconds >= 60 else f"{seconds:.3g} s"
    title = f"{counted(len(store), 'episode')} of {counted(store.spec.num_agents, 'agent')}, {length}"
    figure.suptitle(title if by is None else f"{title}, by {by}")
    return figure


def _group(store: TrajectoryStore, by: str | None) -> tuple[str | None, Groups]:
    """A label and {its value: episodes}; None and all in one group where no label tells episodes apart."""
    known = list(dict.fromkeys(key for labels in store.labels for key in labels))
    if by is None:
        values = {key: {labels.get(key) for labels in store.labels} for key in known}
        words = [key for key in known if all(isinstance(value, str) for value in values[key])]
        most = min(MOST_GROUPS, len(store) // 2)  # a label that tells every episode apart groups nothing
        by = next((key for key in words if 2 <= len(values[key]) <= most), None)
        if by is None:
            return None, {"all episodes": np.arange(len(store))}
    elif by not in known:
        raise ValueError(f"no episode of {store.path} has a label {by!r}; choose one of {known}.")
    column = np.array([str(labels.get(by, "none")) for labels in store.labels])
    groups = {str(value): np.flatnonzero(column == value) for value in np.unique(column)}
    if len(groups) > MOST_GROUPS:
        raise ValueError(f"label {by!r} has {len(groups)} values; choose one of at most {MOST_GROUPS} among {known}.")
    return by, groups


def _spread(index: Int[np.ndarray, "episodes"], number: int) -> Int[np.ndarray, "some"]:
    """Up to ``number`` of the episodes, evenly spread."""
    return index[np.unique(np.linspace(0, len(index) - 1, max(1, number)).astype(int))]


def _height_to_width(drawn: dict[str, list[Trajectory]]) -> float:
    """Of the area that all paths cover; that of a square where nobody is there."""
    episodes = [episode for some in drawn.values() for episode in some]
    names = placed(episodes[0].spec, episodes[0].spec.names)
    places = np.concatenate([executed_path(one, name) for one in episodes for name in names])
    if np.isnan(places).all():
        return 1.0
    width, height = np.nanmax(places, axis=0) - np.nanmin(places, axis=0)
    return float(np.clip(height / max(width, 1e-6), 0.25, 1.0))


def _draw_paths(figure: FigureBase, drawn: dict[str, list[Trajectory]], columns: int) -> None:
    """One panel a group, seen from above: paths with a dot at each start."""
    grid = figure.subplots(-(-len(drawn) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(drawn) :]:
        axes.set_axis_off()
    spec = next(iter(drawn.values()))[0].spec
    names = placed(spec, spec.names)
    for axes, (value, episodes) in zip(grid.flat, drawn.items(), strict=False):
        for episode in episodes:
            for name in names:
                path, color = executed_path(episode, name), agent_color(spec, name)
                if np.isnan(path).all():
                    continue
                axes.plot(*path.T, color=color, linewidth=1, alpha=float(np.clip(6 / len(episodes), 0.15, 0.8)))
                draw_dots(axes, path[np.isfinite(path).all(1)][:1], color, size=14)
        style_map(axes)
        axes.set_title(value)
    named = names[:MOST_NAMED]
    handles = [Line2D([], [], color=agent_color(spec, name), linewidth=3, label=name) for name in named]
    if len(names) > len(named):
        handles.append(Line2D([], [], color="none", label=f"and {len(names) - len(named)} more"))
    figure.legend(handles=handles, loc="outside right center")
    for axes in grid[-1]:
        axes.set_xlabel("x (m)")
    for axes in grid[:, 0]:
        axes.set_ylabel("y (m)")


def _charts(store: TrajectoryStore, groups: Groups, read: list[Trajectory]) -> list[Callable[[Axes], None]]:
    """What there is to say about these episodes, one function that draws each."""
    charts = [lambda axes: _draw_lengths(axes, store)]
    if store.mean_returns.any():
        charts.append(lambda axes: _draw_returns(axes, store, groups))
    if any("success" in labels for labels in store.labels):
        charts.append(lambda axes: _draw_success(axes, store, groups))
    if not all(episode.agent_mask.all() for episode in read):
        charts.append(lambda axes: _draw_presence(axes, read))
    return charts


def _draw_lengths(axes: Axes, store: TrajectoryStore) -> None:
    steps, spread = store.lengths, int(np.ptp(store.lengths))
    width, pad = 1 + spread // min(30, 4 + int(len(steps) ** 0.5)), 2 + spread // 10
    edges = np.arange(steps.min() - 0.5, steps.max() + width, width)
    axes.hist(steps * store.spec.dt, bins=(edges * store.spec.dt).tolist(), color=AGENT_COLORS[0])
    axes.set_xlim((edges[0] - pad) * store.spec.dt, (edges[-1] + pad) * store.spec.dt)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="length", xlabel="seconds", ylabel="episodes")
    axes.grid(axis="x", visible=False)


def _draw_returns(axes: Axes, store: TrajectoryStore, groups: Groups) -> None:
    values, blue = store.mean_returns, (*AGENT_COLORS[0], 0.25)
    axes.boxplot(
        [values[index] for index in groups.values()],
        orientation="horizontal",
        positions=range(len(groups)),
        widths=0.5,
        patch_artist=True,
        boxprops={"facecolor": blue, "edgecolor": AGENT_COLORS[0]},
        medianprops={"color": INK},
        whiskerprops={"color": AGENT_COLORS[0]},
        capprops={"color": AGENT_COLORS[0]},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": blue},
    )
    axes.set(title="return", xlabel="mean over agents")
    _name_rows(axes, list(groups))


def _draw_success(axes: Axes, store: TrajectoryStore, groups: Groups) -> None:
    for row, index in enumerate(groups.values()):
        known = [bool(store.labels[i]["success"]) for i in index if "success" in store.labels[i]]
        if known:
            rate = sum(known) / len(known)
            interval = stats.binomtest(sum(known), len(known)).proportion_ci(method="wilson")
            draw_interval(axes, row, rate, interval.low, interval.high)
    axes.set(title="success", xlabel="share of episodes", xlim=(-0.05, 1.05))
    _name_rows(axes, [""] * len(groups))


def _draw_presence(axes: Axes, read: list[Trajectory]) -> None:
    """The mean number of agents that are there, those left out that just ended, over the episodes that last as long."""
    longest = max(len(episode) + 1 for episode in read)
    counts = np.full((len(read), longest), np.nan)
    for row, episode in zip(counts, read, strict=True):
        there = episode.agent_mask.copy()
        there[1:-1] &= ~(episode.terminations | episode.truncations)[:-1]
        row[: len(episode) + 1] = there.sum(1)
    seconds = np.arange(longest) * read[0].spec.dt
    axes.fill_between(
        seconds, np.nanmin(counts, 0), np.nanmax(counts, 0), color=AGENT_COLORS[0], alpha=0.2, linewidth=0
    )
    axes.plot(seconds, np.nanmean(counts, 0), color=AGENT_COLORS[0], linewidth=1.8)
    axes.set(title="agents there", xlabel="seconds", ylim=(0, None))


def _name_rows(axes: Axes, names: list[str]) -> None:
    """Names on the left of horizontal rows, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
