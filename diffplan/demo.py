"""``diffplan demo``: the main job end to end. Four robots swap places; in the data they go round the centre either way.

It records episodes, trains the joint planner, the same network without attention between agents, and behaviour cloning,
runs all three in closed loop from the same new starts, and draws what happened. What is complete is kept: an
interrupted demo goes on.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from diffplan.baselines import train_behavior_cloning
from diffplan.child_process import follow_parent
from diffplan.datasets import TrajectoryDataset, collect_episodes, load_dataset
from diffplan.doctor import check_rendering
from diffplan.envs import make
from diffplan.evaluation import EvaluationReport, Interval, Policy, episode_seed, evaluate
from diffplan.files import claim, write_json
from diffplan.planners import ConstraintGuide, DiffusionPlanner, RecedingHorizonPolicy
from diffplan.plotting import (
    animate_denoising,
    plot_comparison,
    plot_filmstrip,
    plot_learning_curve,
    plot_plan,
    save_figure,
)
from diffplan.rollout import record_rollout, save_video
from diffplan.spec import Observations
from diffplan.training import train

ENV, OPTIONS = "crossing-v0", {"num_robots": 4, "layout": "open"}
SEED, HORIZON, EXECUTE_STEPS = 0, 32, 1
JOINT, ALONE, CLONING = "joint planner", "no agent attention", "behaviour cloning"
FOLDERS = {JOINT: "joint", ALONE: "alone"}  # of the runs
CANDIDATES, PLAN_STEPS, FILMED_CANDIDATES, DENOISING_STEPS, FRAMES_A_SECOND = 32, 10, 6, 24, 8  # of the pictures


@dataclass(frozen=True)
class Budget:
    """How much of everything; ``workers`` record the episodes."""

    episodes: int
    training_steps: int
    batch_size: int
    width: int
    depth: int
    cloning_steps: int
    evaluation_episodes: int
    workers: int


FULL = Budget(1_000, 2_500, 128, width=64, depth=3, cloning_steps=3_000, evaluation_episodes=100, workers=2)
QUICK = Budget(12, 20, 16, width=32, depth=1, cloning_steps=20, evaluation_episodes=4, workers=0)


def demo(out: str | Path = "runs/demo", *, quick: bool = False, progress: bool = True) -> dict[str, Any]:
    """Does the main job end to end; writes data, runs, pictures, a video and ``report.json`` below ``out``.

    Args:
        out: folder for everything; a demo that was interrupted goes on in it.
        quick: tiny sizes, to see that everything works.
        progress: show bars and the table.

    Returns:
        What ``report.json`` holds: settings, results, seconds and pictures.

    Raises:
        ValueError: ``out`` holds a demo of other sizes.
        OSError: ``out`` cannot be written.
        RuntimeError: the process beside this one failed; a script must call this under ``if __name__ == "__main__"``.
    """
    out, budget, console = Path(out), QUICK if quick else FULL, Console(quiet=not progress)
    settings = {"env": ENV, "options": OPTIONS, "seed": SEED, "horizon": HORIZON, "execute_steps": EXECUTE_STEPS}
    claim(out, settings := settings | dataclasses.asdict(budget))
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    with stage("data", seconds, console):
        dataset = record(out / "data", budget, progress)
    with half_the_threads() as threads, another_process(ALONE, train_planner, out, ALONE, budget, threads):
        with stage(JOINT, seconds, console, f" (and {ALONE}, in another process)"):
            joint = train_planner(out, JOINT, budget, progress=progress)
        with stage(CLONING, seconds, console):
            cloning = train_behavior_cloning(
                dataset, steps=budget.cloning_steps, batch_size=2 * budget.batch_size, seed=SEED, progress=progress
            )
        console.print(f"[bold]{ALONE}[/] (its last steps)")
    alone = DiffusionPlanner.from_pretrained(out / FOLDERS[ALONE] / "planner")
    seconds |= {name: training_seconds(out / folder) for name, folder in FOLDERS.items()}
    policies: dict[str, Policy] = {JOINT: follow(joint), ALONE: follow(alone), CLONING: cloning}
    with stage("evaluation", seconds, console):
        reports = {name: run(policy, budget, progress) for name, policy in policies.items()}
    with stage("pictures", seconds, console):
        drawings = (
            partial(draw_plan, joint, out),
            partial(draw_denoising, joint, out),
            partial(draw_runs, reports, out),
            partial(film, joint, out, console),
        )
        pictures = [name for draw in track(drawings, "drawing", console=console) for name in draw()]
    results = {name: results_of(report) for name, report in reports.items()}
    report = {"settings": settings, "results": results, "seconds": seconds, "pictures": pictures}
    write_json(out / "report.json", report)
    console.print(table(reports, seconds, dataset.spec.dt))
    console.print(
        f"{time.perf_counter() - started:.0f} s in this run; pictures and report.json are in {escape(str(out))}"
    )
    return report


@contextmanager
def stage(name: str, seconds: dict[str, float], console: Console, beside: str = "") -> Iterator[None]:
    """Announces one part of the demo and notes how long it took."""
    console.print(f"[bold]{name}[/]{beside}")
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 2)


def record(path: Path, budget: Budget, progress: bool) -> TrajectoryDataset:
    """Expert episodes of both styles, as windows."""
    collect_episodes(
        ENV,
        out=path,
        episodes=budget.episodes,
        seed=SEED,
        workers=budget.workers,
        env_options=OPTIONS,
        progress=progress,
    )
    return load_dataset(path, HORIZON)


@contextmanager
def half_the_threads() -> Iterator[int]:
    """Leaves half of the processor's threads to another process. Networks of this size gain nothing by a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)


@contextmanager
def another_process(name: str, job: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Does a job in a process of its own beside what is done here; it is ended where this one leaves.

    Raises ``RuntimeError`` when the job failed; its traceback is on standard error by then.
    """
    process = get_context("spawn").Process(name=name, target=_beside, args=(job, *arguments), daemon=True)
    process.start()
    try:
        yield
        process.join()
    finally:
        process.terminate()
        process.join()
    if process.exitcode:
        raise RuntimeError(f"{name}: its process ended with exit code {process.exitcode}; start again to go on.")


def _beside(job: Callable[..., Any], *arguments: Any) -> None:
    follow_parent()
    job(*arguments)


def train_planner(
    out: Path, name: str, budget: Budget, threads: int | None = None, progress: bool = False
) -> DiffusionPlanner:
    """A trained planner; from its last checkpoint on, if it has one. ``threads`` are those of a process of its own."""
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = load_dataset(out / "data", HORIZON)
    planner = DiffusionPlanner.for_dataset(
        dataset, width=budget.width, depth=budget.depth, agent_attention=name == JOINT, seed=SEED
    )
    train(
        planner,
        dataset,
        steps=budget.training_steps,
        batch_size=budget.batch_size,
        seed=SEED,
        out=out / FOLDERS[name],
        resume=True,
        checkpoint_every=budget.training_steps // 4,
        log_every=10,
        progress=progress,
    )
    return planner


def training_seconds(run: Path) -> float:
    """How long a run trained (since it last went on), as its metrics say."""
    return float(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["seconds"])


def follow(planner: DiffusionPlanner, num_samples: int = 1) -> RecedingHorizonPolicy:
    return RecedingHorizonPolicy(planner, EXECUTE_STEPS, num_samples)


def run(policy: Policy, budget: Budget, progress: bool) -> EvaluationReport:
    """Closed-loop episodes from the same starts for every policy."""
    return evaluate(policy, make(ENV, **OPTIONS), episodes=budget.evaluation_episodes, seed=SEED, progress=progress)


def start() -> Observations:
    """What the robots see at the first evaluated start."""
    observations, _ = make(ENV, **OPTIONS).reset(seed=episode_seed(SEED, 0))
    return dict(observations)


def draw_plan(planner: DiffusionPlanner, out: Path) -> list[str]:
    """``plan.png``: what the planner imagines at the first evaluated start; the best keeps robots apart."""
    observations = start()
    apart = ConstraintGuide.separation(0.2, levels=None)  # ranks, and changes no plan
    plan = planner(observations, guides=[apart], num_samples=CANDIDATES, num_inference_steps=PLAN_STEPS, seed=SEED)
    save_figure(plot_plan(plan), out / "plan.png")
    return ["plan.png"]


def draw_denoising(planner: DiffusionPlanner, out: Path) -> list[str]:
    """``denoising.gif``: how the same plans come out of noise."""
    observations = start()
    plan = planner(
        observations, num_samples=CANDIDATES, num_inference_steps=DENOISING_STEPS, seed=SEED, return_chain=True
    )
    save_video(animate_denoising(plan), out / "denoising.gif", fps=FRAMES_A_SECOND)
    return ["denoising.gif"]


def draw_runs(reports: Mapping[str, EvaluationReport], out: Path) -> list[str]:
    """``learning_curve.png`` and ``comparison.png``."""
    save_figure(
        plot_learning_curve({name: out / folder for name, folder in FOLDERS.items()}), out / "learning_curve.png"
    )
    shown = {name: {key: report.summary()[key] for key in ("success", "contacts")} for name, report in reports.items()}
    save_figure(plot_comparison(shown), out / "comparison.png")
    return ["learning_curve.png", "comparison.png"]


def film(planner: DiffusionPlanner, out: Path, console: Console) -> list[str]:
    """``rollout.mp4`` and ``filmstrip.png``: an episode from the first evaluated start in MuJoCo, where it can draw."""
    check = check_rendering(os.environ)
    if not check.ok:
        console.print(f"[yellow]no rollout.mp4 and filmstrip.png[/] ({escape(check.detail)}): {escape(check.remedy)}")
        return []
    env = make(ENV, **OPTIONS, render_mode="rgb_array")
    rollout = record_rollout(follow(planner, FILMED_CANDIDATES), env, episode_seed(SEED, 0))
    env.close()
    rollout.save(out / "rollout.mp4")
    save_figure(plot_filmstrip(rollout), out / "filmstrip.png")
    return ["rollout.mp4", "filmstrip.png"]


def results_of(report: EvaluationReport) -> dict[str, Any]:
    """The report without its episodes."""
    plain = report.to_dict()
    return {**plain["summary"], "plan_ms": plain["plan_ms"], "fallbacks": plain["fallbacks"]}


def table(reports: Mapping[str, EvaluationReport], seconds: Mapping[str, float], dt: float) -> Table:
    """One row a method: means with their 95 % intervals, and what it cost."""
    columns = ("", "success (%)", "contact (%)", "time (s)", "plan\n(ms)", "training\n(s)")
    rows = Table(*columns, title="mean [95 % interval]", box=SIMPLE_HEAD, pad_edge=False)
    for name, report in reports.items():
        means = report.summary()
        success, contact = (rounded(means.get(key), 100, 0) for key in ("success", "contacts"))
        planning = "-" if math.isnan(report.plan_ms) else f"{report.plan_ms:.1f}"
        rows.add_row(name, success, contact, rounded(means.get("steps"), dt, 1), planning, f"{seconds[name]:.0f}")
    return rows


def rounded(interval: Interval | None, factor: float, digits: int) -> str:
    """An interval in other units, as it stands in the table."""
    if interval is None:
        return "-"
    mean, low, high = (f"{factor * value:.{digits}f}" for value in (interval.value, interval.low, interval.high))
    return escape(f"{mean} [{low}, {high}]")
