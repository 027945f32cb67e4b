"""How benchmarks write figures down: a list in docs/results/<topic>.json, and docs/results.md made of all of them."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.stats import bootstrap

from diffplan.evaluation import Interval
from diffplan.files import atomic_path, nan_to_none, read_json, write_json

RESULTS = Path(__file__).parents[1] / "docs" / "results"
HEAD = """# Results

Made by the benchmarks of `docs/results/*.json` (again by `python scripts/make_results.py`); do not edit. Intervals hold
95 %, of two or three training seeds less where these differ (`mean_interval`). Rows that begin with "beside" show what
the figure above them is compared with.
"""
MADIFF, OMAR = "MADiff on OMAR's data (arXiv 2305.17330)", "OMAR on its data (arXiv 2111.11188)"
AGENTFORMER, MOFLOW = "AgentFormer (arXiv 2103.14023)", "MoFlow (arXiv 2503.09950)"
JOINT, STRAIGHT = "joint AgentFormer (arXiv 2305.06292)", "noisy constant velocity"
OTHERS = {  # what others published, and what their code was measured to take on a core like ours
    "plan_latency_ms": {"MADiff (its code)": 2_100, "MADiff on an RTX 3090 (arXiv 2305.17330)": 124},
    "guided_64_latency_ms": {"Diffuser, one agent (its code)": 2_200},
    "simple_spread_expert_score": {MADIFF: 95.0, OMAR: 114.9},
    "simple_spread_medium_score": {MADIFF: 64.9, OMAR: 47.9},
    "simple_spread_replay_score": {MADIFF: 30.3, OMAR: 37.9},
    "simple_spread_random_score": {MADIFF: 6.9, OMAR: 34.4},
    "eth_ucy_marginal_ade": {AGENTFORMER: 0.23, MOFLOW: 0.20, STRAIGHT: 0.41},
    "eth_ucy_marginal_fde": {AGENTFORMER: 0.39, MOFLOW: 0.32, STRAIGHT: 0.86},
    "eth_ucy_joint_ade": {STRAIGHT: 0.55},
    "eth_ucy_joint_fde": {STRAIGHT: 1.12},
    "eth_joint_published_ade": {JOINT: 0.485},
    "eth_joint_published_fde": {JOINT: 0.798},
    "nba_rebound_marginal_ade": {STRAIGHT: 1.61},
    "nba_rebound_marginal_fde": {STRAIGHT: 3.65},
    "nba_rebound_joint_ade": {STRAIGHT: 2.09},
    "nba_rebound_joint_fde": {STRAIGHT: 4.70},
}
COLUMNS = "| figure | value | interval | unit | seeds | episodes |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Figure:
    """One measured number with its 95 % interval, how it was measured, and the same for what it is compared with."""

    figure: str
    value: float
    low: float
    high: float
    unit: str
    seeds: int
    episodes: int
    command: str
    baselines: dict[str, "Figure"] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        data = {name: math.nan if value is None else value for name, value in data.items()}  # of one episode
        return cls(**data | {"baselines": {name: cls.from_dict(one) for name, one in data["baselines"].items()}})


def one_thread() -> None:
    """Starts this script anew with one thread, unless it has one: torch reads how many when it is loaded."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})


def record(path: str | Path, figures: Sequence[Figure]) -> None:
    """Writes ``figures``, with those of others beside them, to ``path``, and the page made of that folder.

    Figures of other names stay in ``path``.
    """
    merged = {one.figure: beside_others(one) for one in (*read(path), *figures)}
    write_json(path, nan_to_none([dataclasses.asdict(one) for one in merged.values()]))
    write_page(Path(path).parent)
    print(json.dumps([dataclasses.asdict(one) for one in figures], indent=2))


def beside_others(one: Figure) -> Figure:
    others = {
        name: Figure("", value, value, value, one.unit, 0, 0, "") for name, value in OTHERS.get(one.figure, {}).items()
    }
    return dataclasses.replace(one, baselines=one.baselines | others)


def resampled(statistic: Callable[[np.ndarray], Any], columns: Sequence[Sequence[Sequence[float]]]) -> Interval:
    """A statistic of the means of several columns [what][seed][episode], and its 95 % bootstrap interval.

    Seeds, and then episodes, are drawn for all columns together: they are of the same starts. NaN does not count.
    """
    rows, rng = np.array(columns, float), np.random.default_rng(0)
    _, seeds, episodes = rows.shape
    chosen = rng.integers(seeds, size=(4_000, seeds, 1)), rng.integers(episodes, size=(4_000, seeds, episodes))
    low, high = np.nanquantile(statistic(rows[:, *chosen].mean((-1, -2))), (0.025, 0.975))
    return Interval(float(statistic(rows.mean((1, 2)))), float(low), float(high))


def median(
    name: str, values: Sequence[float], unit: str, seeds: int, episodes: int, command: str, beside: dict[str, Figure]
) -> Figure:
    """Of measurements, with its 95 % bootstrap interval."""
    low, high = bootstrap((values,), np.median, method="percentile", rng=0).confidence_interval
    return Figure(name, float(np.median(values)), float(low), float(high), unit, seeds, episodes, command, beside)


def kept(path: Path, episodes: int, column: str = "success") -> dict[str, Any] | None:
    """An evaluation that was written before, unless it is of another number of episodes, as its ``column`` tells."""
    report = read_json(path) if path.exists() else {}
    return report if len(report.get(column, ())) == episodes else None


def read(path: str | Path) -> list[Figure]:
    """The figures in a file; none where there is no file."""
    return [Figure.from_dict(one) for one in read_json(path)] if Path(path).exists() else []


def write_page(folder: Path) -> None:
    """Makes ``folder``.md of the figures in ``folder``."""
    with atomic_path(folder.with_suffix(".md")) as temporary:
        temporary.write_text(page(folder))


def page(folder: Path) -> str:
    return "\n".join([HEAD, *(section(path.stem, read(path)) for path in sorted(folder.glob("*.json")))])


def section(topic: str, figures: list[Figure]) -> str:
    commands = "\n".join(dict.fromkeys(figure.command for figure in figures))
    return "\n".join([f"## {topic}\n", COLUMNS, *rows(figures), f"\n```bash\n{commands}\n```\n"])


def rows(figures: list[Figure]) -> Iterator[str]:
    for figure in figures:
        yield row(f"`{figure.figure}`", figure)
        yield from (row(f"beside: {name}", baseline) for name, baseline in figure.baselines.items())


def row(name: str, figure: Figure) -> str:
    interval = f"{number(figure.low)} to {number(figure.high)}"
    return f"| {name} | {number(figure.value)} | {interval} | {figure.unit} | {figure.seeds} | {figure.episodes:,} |"


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
