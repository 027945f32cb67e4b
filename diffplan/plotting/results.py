"""Pictures of results: learning curves, comparisons with their intervals, and how far values can be trusted."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation

from diffplan.envs.scene import AGENT_COLORS
from diffplan.plotting.style import INK, MUTED, STYLE, draw_interval, style_chart

if TYPE_CHECKING:
    from diffplan.evaluation import Interval
    from diffplan.finetuning import FinetuningReport
    from diffplan.training_loop import TrainingReport
    from diffplan.value_calibration import Calibration
    from diffplan.value_training import ValueReport

    Run = str | Path | TrainingReport | ValueReport


@matplotlib.rc_context(STYLE)
def plot_learning_curve(runs: "Run | Mapping[str, Run]") -> Figure:
    """Draws the training loss over optimiser steps: every logged value faintly, a running mean strongly.

    Args:
        runs: a ``TrainingReport`` or ``ValueReport``, a ``metrics.jsonl`` or the folder of a run that holds one; or
            {name: any of these}.

    Raises:
        ValueError: no runs, no metrics, or a line that is not a step and a loss; the message names the file.
        FileNotFoundError: there is no such file.
    """
    named, figure, axes = _chart_of_runs(runs)
    for (name, run), color in zip(named.items(), itertools.cycle(AGENT_COLORS)):
        steps, losses = _losses(run)
        smooth = _running_mean(losses, max(1, len(losses) // 20))
        axes.plot(steps, losses, color=color, linewidth=0.8, alpha=0.35)
        axes.plot(steps, smooth, color=color, linewidth=1.8, label=name, marker="o" if len(steps) == 1 else None)
    axes.set(xlabel="optimiser step", ylabel="loss (bold: running mean)")
    low, high = axes.dataLim.intervaly
    if high > 3 * low > 0:  # within less, and below 0, a logarithmic axis names hardly a tick
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 1)))
    style_chart(axes)
    if any(named):
        figure.legend(loc="outside right upper")
    return figure


def _chart_of_runs(runs: Any) -> tuple[Mapping[str, Any], Figure, Axes]:
    """{name: run}, the only one without a name where none is given, and an empty chart beside which names have room."""
    named = runs if isinstance(runs, Mapping) else {"": runs}
    if not named:
        raise ValueError("no runs to draw; give a metrics.jsonl, the folder of a run, a report, or several with names.")
    figure = Figure((6.4, max(3.6, 0.2 * len(named))), layout="constrained")
    return named, figure, figure.subplots()


def _losses(run: "Run") -> tuple[np.ndarray, np.ndarray]:
    if isinstance(run, str | Path):
        path = _metrics_of(run)
        source, rows = str(path), [_metrics_row(path, number, line) for number, line in _numbered_lines(path)]
    else:
        source, rows = "the report", [(float(step), loss) for step, loss in zip(run.steps, run.losses, strict=True)]
    if not rows:
        raise ValueError(f"{source} holds no metrics yet; train for at least log_every steps.")
    steps, losses = np.array(rows).T
    return steps, losses


def _metrics_of(run: str | Path) -> Path:
    path = Path(run) / "metrics.jsonl" if Path(run).is_dir() else Path(run)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; name the folder of a run of `diffplan train`.")
    return path


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    return enumerate(path.read_bytes().splitlines(), 1)


def _json_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: expected a dictionary in JSON, got {line[:60]!r}.")
    return row


def _metrics_row(path: Path, number: int, line: bytes) -> tuple[float, float]:
    try:
        row = json.loads(line)
        return float(row["step"]), float(row["loss"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        what = "that of a fine-tuning, which plot_finetuning (--kind finetuning) draws"
        got = what if b'"environment_steps"' in line else repr(line[:60])
        raise ValueError(f'{path}, line {number}: expected {{"step": ..., "loss": ...}}, got {got}.') from error


def _running_mean(values: Float[np.ndarray, "n"], reach: int) -> Float[np.ndarray, "n"]:
    """Mean over up to ``reach`` values on either side, fewer at the ends."""
    index, total = np.arange(len(values)), np.concatenate([[0], np.cumsum(values)])
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))


@matplotlib.rc_context(STYLE)
def plot_finetuning(runs: "str | Path | FinetuningReport | Mapping[str, str | Path | FinetuningReport]") -> Figure:
    """Draws the scores of online fine-tuning over environment steps, with their 95 % intervals.

    Crosses mark rounds that were undone, dashes the score of the planner as it was given, by its first samples. Bands,
    and bars of single scores, are the intervals.

    Args:
        runs: a ``FinetuningReport``, a ``metrics.jsonl`` or the folder of a run that holds one; or {name: any of
            these}.

    Raises:
        ValueError: no runs, or none of the rows holds a score; the message names the file.
        FileNotFoundError: there is no such file.
    """
    named, figure, axes = _chart_of_runs(runs)
    marks = {}
    for (name, run), color in zip(named.items(), itertools.cycle(AGENT_COLORS)):
        (steps, score, low, high, undone), pretrained = _scores(run)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        if len(steps) == 1:
            axes.vlines(steps, low, high, color=color, alpha=0.4)
        axes.plot(steps, score, "o-", color=color, linewidth=1.8, markersize=3.5, label=name)
        axes.plot(steps[undone], score[undone], "x", color=INK, markersize=7)
        axes.axhline(pretrained, color=color, linewidth=1.2, linestyle="--")
        if undone.any():
            marks["undone"] = Line2D([], [], color=INK, marker="x", markersize=7, linestyle="")
        if np.isfinite(pretrained):
            shade = MUTED if len(named) > 1 else color
            marks["as pretrained,\nby first samples"] = Line2D([], [], color=shade, linewidth=1.2, linestyle="--")
    axes.set(xlabel="environment steps", ylabel="score")
    style_chart(axes)
    lines, names = axes.get_legend_handles_labels() if any(named) else ([], [])
    figure.legend([*lines, *marks.values()], [*names, *marks], loc="outside right upper")
    return figure


def _scores(run: "str | Path | FinetuningReport") -> tuple[tuple[np.ndarray, ...], float]:
    """Environment steps, score, its interval, and whether it was undone, of evaluated rounds; the pretrained score."""
    if isinstance(run, str | Path):
        path = _metrics_of(run)
        source, rows = str(path), [_json_row(path, number, line) for number, line in _numbered_lines(path)]
    else:
        source, rows = "the report", run.rows
    names = ("environment_steps", "score", "low", "high", "rolled_back")
    scored = [[row[name] for name in names] for row in rows if all(name in row for name in names)]
    if not scored:
        raise ValueError(f"{source} holds no scores; it is written by `diffplan finetune`.")
    try:
        steps, score, low, high, undone = np.array(scored, float).T
        pretrained = np.nan if (given := rows[0].get("pretrained")) is None else float(given)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{source} has scores that are no numbers ({error}); restore it from a copy.") from error
    return (steps, score, low, high, undone.astype(bool)), pretrained


@matplotlib.rc_context(STYLE)
def plot_comparison(results: "Mapping[str, Interval] | Mapping[str, Mapping[str, Interval]]") -> Figure:
    """Draws one dot a method with its 95 % interval, in the order given, one panel a metric.

    Args:
        results: {method: interval} or {method: {metric: interval}}, e.g. of ``EvaluationReport.summary()``.

    Raises:
        ValueError: nothing to compare.
    """
    table = {name: one if isinstance(one, Mapping) else {"": one} for name, one in results.items()}
    metrics = list(dict.fromkeys(metric for one in table.values() for metric in one))
    if not metrics:
        raise ValueError("nothing to compare; give {name: Interval} or {name: {metric: Interval}}.")
    figure = Figure((1.6 + 2.9 * len(metrics), 0.9 + 0.34 * len(table)), layout="constrained")
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(grid, metrics, strict=True):
        for row, one in enumerate(table.values()):
            if metric in one:
                draw_interval(axes, row, one[metric].value, one[metric].low, one[metric].high)
        axes.set_title(metric)
        style_chart(axes)
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=4)  # more labels of small numbers overlap
        axes.spines["left"].set_visible(False)
    grid[0].set_yticks(range(len(table)), table)
    grid[0].tick_params(axis="y", labelcolor=INK, labelsize=9)
    grid[0].set_ylim(len(table) - 0.5, -0.5)
    return figure


@matplotlib.rc_context(STYLE)
def plot_calibration(calibration: "Calibration") -> Figure:
    """Draws realised over predicted team returns: a faint dot a recorded step, strong dots the means of ten bins.

    Where the strong dots lie on the line, the values can be believed; their bars are two standard errors, of steps
    taken as independent.

    Args:
        calibration: of ``diffplan.calibration(value, held_out)``.
    """
    figure = Figure((4.4, 4.4), layout="constrained")
    axes = figure.subplots()
    everything = np.concatenate([calibration.predicted, calibration.realised])
    margin = 0.04 * max(float(np.ptp(everything)), 1e-6)
    ends = everything.min() - margin, everything.max() + margin
    axes.plot(ends, ends, color=MUTED, linewidth=1.0, linestyle="--", label="as predicted")
    alpha = float(np.clip(100 / len(calibration.predicted), 0.06, 0.5))
    axes.plot(calibration.predicted, calibration.realised, "o", color=AGENT_COLORS[0], alpha=alpha, mew=0, markersize=3)
    predicted, realised, error = calibration.bins()
    axes.errorbar(
        predicted,
        realised,
        2 * error,
        fmt="o",
        color=AGENT_COLORS[1],
        mec="white",
        markersize=7,
        label="mean of a tenth, 2 standard errors",
    )
    axes.set(xlabel="predicted team return", ylabel="realised team return", xlim=ends, ylim=ends, aspect="equal")
    axes.locator_params(nbins=5)
    numbers = f"slope {calibration.slope:.2f}, correlation {calibration.correlation:.2f}"
    axes.set_title(
        f"{numbers}, error {calibration.error:.2f}\n{calibration.trusted:.0%} of realised returns are own estimates"
    )
    style_chart(axes)
    axes.legend(loc="upper left")
    return figure
