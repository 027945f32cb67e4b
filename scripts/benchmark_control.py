"""Trains and evaluates planners on every control task, beside their baselines, and writes docs/results/control.json.

    python scripts/benchmark_control.py --rows crossing_open_4 crossing_doorway_4 --seeds 5

Data, planners and evaluations are kept below runs/benchmark: an interrupted benchmark goes on. Two trainings run side
by side, one thread each. ``two_arm_lift`` needs the ``robots`` extra.
"""

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from figures import RESULTS, Figure, kept, one_thread, record

import diffplan as dp
from diffplan.baselines import train_behavior_cloning
from diffplan.child_process import follow_parent
from diffplan.evaluation import Interval, mean_interval, share_interval
from diffplan.files import claim, write_json

FOLDER = Path("runs/benchmark")
JOINT, ALONE, CLONING, CLONING_ALONE = "joint", "no agent attention", "BC joint", "BC per agent"
UNGUIDED, SAFE = "without guides", "with guides and safety filter"
UNASKED = "no return asked for"
COMMAND = "python scripts/benchmark_control.py --rows {row} --seeds {seeds} --episodes {episodes}"
BASELINE_SEEDS = 2


@dataclass(frozen=True)
class Row:
    """One task: where its data come from, how long to train, how to act."""

    figure: str
    env: str
    options: dict[str, Any] = field(default_factory=dict)
    trained_on: tuple[dict[str, Any], ...] = ()  # options of the environments of the data, where they are others
    variants: tuple[str, ...] = (JOINT, ALONE, CLONING, CLONING_ALONE)
    episodes: int = 1_000
    horizon: int = 32
    steps: int = 3_000
    width: int = 64
    batch_size: int = 50  # episodes side by side
    warm_start_steps: int = 1  # denoising steps of a replan
    clearance: float = 0.0  # weight of the guides that keep robots apart and clear of obstacles
    target_return: float | None = None  # that is planned for, a rank among the data's
    random_return: float | None = None  # counts as 0, the data's own return as 100 (mean over agents); None: success


LARGE = {"episodes": 10_000, "variants": (JOINT, CLONING)}
ROWS = {
    "crossing_open_4": Row("crossing_open_4_success", "crossing-v0", steps=4_000),
    "crossing_open_8": Row("crossing_open_8_success", "crossing-v0", {"num_robots": 8}, steps=6_000, **LARGE),
    "zero_shot_8": Row(
        "zero_shot_8_success",
        "crossing-v0",
        {"num_robots": 8},
        ({"num_robots": 4}, {"num_robots": 6}),
        variants=(JOINT,),
        episodes=10_000,
        steps=6_000,
    ),
    "crossing_doorway_4": Row(
        "crossing_doorway_4_success", "crossing-v0", {"layout": "doorway"}, steps=20_000, width=128, **LARGE
    ),
    "crossing_obstacles_4": Row(
        "crossing_obstacles_4_success",
        "crossing-v0",
        {"layout": "obstacles"},
        variants=(JOINT, UNGUIDED, SAFE, CLONING),
        episodes=10_000,
        steps=4_000,
        width=96,
        warm_start_steps=2,
        clearance=10.0,
    ),
    "crossing_obstacles_8": Row(
        "crossing_obstacles_8_success",
        "crossing-v0",
        {"layout": "obstacles", "num_robots": 8},
        variants=(JOINT, UNGUIDED, SAFE),
        episodes=8_000,
        steps=3_000,
        width=96,
        warm_start_steps=2,
        clearance=10.0,
    ),
    "transport_3": Row("transport_3_success", "transport-v0", steps=8_000, width=128, **LARGE | {"episodes": 7_000}),
    "simple_spread": Row(
        "simple_spread_expert_score",
        "mpe:simple_spread_v3",
        variants=(JOINT, UNASKED, ALONE, CLONING, CLONING_ALONE),
        episodes=20_000,
        steps=10_000,
        width=96,
        horizon=12,
        target_return=0.95,
        random_return=-26.6,
    ),
    "two_arm_lift": Row(
        "two_arm_lift_success",
        "robosuite:TwoArmLift",
        episodes=200,
        steps=6_000,
        variants=(JOINT, CLONING),
        batch_size=10,
    ),
}


def train_and_evaluate(name: str, variant: str, seed: int, episodes: int) -> dict[str, Any]:
    """One training seed of one variant of a row; what is there already is read."""
    row, path = ROWS[name], FOLDER / name / f"{variant}_{seed}.json".replace(" ", "_")
    if (report := kept(path, episodes)) is not None:
        return report
    env = dp.make(row.env, **row.options)
    if variant in (CLONING, CLONING_ALONE):
        policy = train_behavior_cloning(dataset_of(name), joint=variant == CLONING, seed=seed)
    else:
        planner = train(name, variant, seed)
        policy = dp.RecedingHorizonPolicy(planner.for_agents(env.joint_spec), **acting(row, env, variant))
    report = dp.evaluate(policy, env, episodes=episodes, seed=1_000 + seed, batch_size=row.batch_size).to_dict()
    write_json(path, report)
    return report


def dataset_of(name: str) -> dp.TrajectoryDataset:
    return dp.load_dataset(FOLDER / name / "data", horizon=ROWS[name].horizon, normalizer="gaussian")


def train(name: str, variant: str, seed: int) -> dp.DiffusionPlanner:
    """Trains a planner of a row, or goes on with it."""
    row, dataset = ROWS[name], dataset_of(name)
    layout = {"width": row.width, "agent_attention": variant != ALONE}
    layout |= {"return_conditioning": row.target_return is not None}
    planner = dp.DiffusionPlanner.for_dataset(dataset, **layout, seed=seed)
    out = FOLDER / name / f"{ALONE if variant == ALONE else JOINT}_{seed}".replace(" ", "_")
    dp.train(planner, dataset, steps=row.steps, seed=seed, out=out, resume=True, progress=False)
    return planner


def planner_of(name: str, seed: int) -> Path:
    """The folder of a row's planner, for other benchmarks; recorded and trained from nothing where it is missing."""
    out = FOLDER / name / f"{JOINT}_{seed}"
    claim(FOLDER / name, recipe(ROWS[name]))
    if not (out / "planner").exists():
        collect(ROWS[name], FOLDER / name / "data")
        train(name, JOINT, seed)
    return out


def acting(row: Row, env: Any, variant: str) -> dict[str, Any]:
    """How a variant of a row acts: with guides or for a return where the row has them, and the filter where it says."""
    options: dict[str, Any] = {"warm_start_steps": row.warm_start_steps}
    if variant in (UNGUIDED, UNASKED):
        return options
    if row.target_return is not None:
        options |= {"target_return": row.target_return, "guidance_scale": 1.5}
    if row.clearance:
        guide, weight = dp.ConstraintGuide, row.clearance
        options["guides"] = [guide.separation(0.2, weight), guide.clearance(0.05, weight)]
    return options | ({"safety": dp.SafetyFilter(**env.robot_limits)} if variant == SAFE else {})


def recipe(row: Row) -> dict[str, Any]:
    """What data and planners of a row depend on: all of it but how they are shown."""
    return {name: value for name, value in asdict(row).items() if name not in ("figure", "variants", "batch_size")}


def collect(row: Row, out: Path) -> None:
    """Records the row's data, in a folder that is this row's; of several environments in stores that are merged."""
    claim(out.parent, recipe(row))
    if not row.trained_on:
        dp.collect_episodes(row.env, out=out, episodes=row.episodes, env_options=row.options)
    else:
        shutil.rmtree(out, ignore_errors=True)
        parts = [out.with_name(f"{out.name}_{index}") for index in range(len(row.trained_on))]
        for options, part in zip(row.trained_on, parts, strict=True):
            dp.collect_episodes(row.env, out=part, episodes=row.episodes // len(parts), env_options=options)
        dp.merge_stores(parts, out)


def interval(name: str, reports: list[dict[str, Any]]) -> Interval:
    low = ROWS[name].random_return
    if low is None:
        return share_interval([report["success"] for report in reports])
    high = float(dp.TrajectoryStore.open(FOLDER / name / "data").returns.mean())
    return mean_interval([[100 * (value - low) / (high - low) for value in report["returns"]] for report in reports])


def run(name: str, seeds: int, episodes: int, workers: int) -> Figure:
    row = ROWS[name]
    collect(row, FOLDER / name / "data")
    same = {UNGUIDED, UNASKED, SAFE}  # act with the first one's planner
    trained = {v: seeds if v in {JOINT, *same} else min(seeds, BASELINE_SEEDS) for v in row.variants}
    reports = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), follow_parent) as pool:
        for group in ({JOINT, ALONE, CLONING, CLONING_ALONE}, same):
            jobs = [(name, v, seed, episodes) for v in row.variants if v in group for seed in range(trained[v])]
            reports |= (
                dict(zip(jobs, pool.map(train_and_evaluate, *zip(*jobs, strict=True)), strict=True)) if jobs else {}
            )
    unit = "share" if row.random_return is None else "points"
    command = COMMAND.format(row=name, seeds=seeds, episodes=episodes)

    def figure(label: str, variant: str, baselines: dict[str, Figure]) -> Figure:
        mine = interval(name, [report for job, report in reports.items() if job[1] == variant])
        number = trained[variant]
        return Figure(label, mine.value, mine.low, mine.high, unit, number, number * episodes, command, baselines)

    beside = {variant: figure(variant, variant, {}) for variant in row.variants if variant != JOINT}
    return figure(row.figure, JOINT, beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.rows:
        record(RESULTS / "control.json", [run(name, arguments.seeds, arguments.episodes, arguments.workers)])


if __name__ == "__main__":
    one_thread()
    main()
