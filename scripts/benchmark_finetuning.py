"""Fine-tunes pretrained planners online, most from medium data, and writes docs/results/finetuning.json.

    python scripts/benchmark_finetuning.py --rows simple_spread --seeds 5
    python scripts/benchmark_finetuning.py --rows simple_spread --steps 20000 --scratch d3rlpy-env/bin/python
    python scripts/benchmark_finetuning.py --exact-resumes 20

gain: score of the fine-tuned planner over that of the pretrained one (first sample, no ranking), both on new starts; of
rows that begin with random data the score itself (``random_*``), as the pretrained one's is about 0. Robots of rows
that end with ``safe`` have a safety filter, also before. Beside it, "by values, before": the pretrained planner on
these starts acting as the fine-tuned one does, by what critics know from the data alone.
Scores are success rates, or returns where random actions count as 0 and the scripted expert as 100. worst_on_the_way:
lowest score of a run's own evaluations over that of the planner that it began with, on the same starts. Figures of
other methods than ``critic`` end with their name. co_learning_<n>_*: the score where n robots learn each for itself
(``--each``), beside that of the planner that all began with.
wall_minutes_*: of the rounds; tests after the last one, with four times the candidates too, take a few minutes more.
speedup_over_scratch, of simple_spread: steps after which SAC, see ``online_baseline.py``, first scores as high as the
fine-tuned planner, over the planner's own; where it never does within ``--scratch-steps``, these count. The recorded
episodes that only the planner began with do not.
exact_resumes: tiny runs, killed at random moments and resumed, that end with the same metrics and weights.
Everything is kept below runs/benchmark: an interrupted benchmark goes on.
"""

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from figures import RESULTS, Figure, kept, one_thread, record, resampled

import diffplan as dp
from diffplan.evaluation import Interval, Policy, mean_interval, share_interval
from diffplan.files import claim, read_json, write_json
from diffplan.finetuning import METHODS, Acting, Learning
from diffplan.finetuning.loop import AUTO, weights_sha256

FOLDER = Path("runs/benchmark/finetuning")
COMMAND = "python scripts/benchmark_finetuning.py"
SCRIPTED = 200  # episodes of the random and the expert script, which make 0 and 100 of a return
DATA_SEED = 6_000
VALUED, UNFILTERED = "by values, before", "without the safety filter, before"


@dataclass(frozen=True)
class Row:
    """One task: its data and the planner that fine-tuning begins with."""

    env: str
    options: dict[str, Any] = field(default_factory=dict)
    skill: str = "medium"
    episodes: int = 6_000
    horizon: int = 32
    steps: int = 3_000
    width: int = 64
    best: float = 1.0  # share of the episodes that the prior imitates
    value_steps: int = 5_000
    discount: float = 0.99
    values: dict[str, float] = field(default_factory=dict)  # options of ``train_value``
    score: str = "success"
    acting: dict[str, float] = field(default_factory=dict)  # options of ``Acting``
    safe: bool = False  # with a safety filter, before and after


SIMPLE_SPREAD = Row(
    "mpe:simple_spread_v3",
    horizon=12,
    discount=0.95,
    values={"reach": 0.5},
    score="return",
    acting={"refine": 1.0, "refine_price": 0.0},
)
ROWS = {
    "simple_spread": SIMPLE_SPREAD,
    "simple_spread_random": replace(SIMPLE_SPREAD, skill="random"),
    "crossing_doorway": Row("crossing-v0", {"layout": "doorway"}, steps=6_000),
    "crossing_doorway_safe": Row("crossing-v0", {"layout": "doorway"}, steps=6_000, safe=True),
    "crossing_doorway_2": Row("crossing-v0", {"layout": "doorway", "num_robots": 2}, steps=6_000),
    "transport": Row("transport-v0", steps=6_000),
    "transport_best_half": Row("transport-v0", steps=6_000, best=0.5),
}


def run_seed(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pretrains, fine-tunes and tests one planner; what is there already is read."""
    row, base = ROWS[name], FOLDER / name
    out = base / f"{arguments.method}{'_each' * arguments.each}_{arguments.steps}_{seed}"
    if (found := kept(out / "result.json", arguments.episodes, VALUED)) is not None:
        return found
    env = dp.make(row.env, **row.options)
    data = dp.collect_episodes(
        row.env,
        out=base / "data",
        episodes=row.episodes,
        skill=row.skill,
        seed=DATA_SEED,
        workers=0,
        env_options=row.options,
    )
    offline = dp.load_dataset(data.path, horizon=row.horizon)
    planner = pretrained(row, offline, base / f"pretrained_{seed}", seed)
    safety = dp.SafetyFilter(**env.robot_limits) if row.safe else None
    alone = tested(dp.RecedingHorizonPolicy(planner, safety=safety), env, row, seed, arguments)
    beside = {UNFILTERED: tested(dp.RecedingHorizonPolicy(planner), env, row, seed, arguments)} if row.safe else {}
    report = dp.finetune(
        planner,
        env,
        offline=offline,
        out=out,
        method=arguments.method,
        acting=Acting(**row.acting, safety=safety),
        steps=arguments.steps,
        each=arguments.each,
        score=row.score,
        evaluate_every=max(1, arguments.steps // 5),
        seed=seed,
        resume=True,
        progress=False,
    )
    prior = pretrained(row, offline, base / f"pretrained_{seed}", seed)
    prior.register_to_config(action_spread=None)  # as of what is fine-tuned
    valued = report.acting.policy(prior)
    result = {
        "before": alone,
        **beside,
        "after": tested(report.policy, env, row, seed, arguments),
        VALUED: tested(valued, env, row, seed, arguments),
        "began": report.offline.value,
        "curve": [one["score"] for one in report.rows if "score" in one],
        "steps": report.environment_steps,
        "rollbacks": report.rollbacks,
        "signs": report.signs,
        "seconds": {key: sum(one.get(f"{key}_s", 0.0) for one in report.rows) for key in PHASES},
    }
    write_json(out / "result.json", result)
    return result


PHASES = ("acting", "planning", "learning", "evaluating")


def pretrained(row: Row, offline: dp.TrajectoryDataset, out: Path, seed: int) -> dp.DiffusionPlanner:
    """A planner and its value function, trained on the data alone."""
    if not (out / "planner_and_value").exists():
        planner = dp.DiffusionPlanner.for_dataset(offline, width=row.width, seed=seed)
        dp.train(planner, offline.best(row.best), steps=row.steps, seed=seed, out=out, resume=True, progress=False)
        value = dp.ValueFunction.for_dataset(offline, discount=row.discount, seed=seed)
        dp.train_value(value, offline, steps=row.value_steps, **row.values, seed=seed, progress=False)
        planner.register_modules(value_function=value)
        planner.save_pretrained(out / "planner_and_value")
    return dp.DiffusionPlanner.from_pretrained(out / "planner_and_value")


def tested(policy: Policy, env: Any, row: Row, seed: int, arguments: argparse.Namespace) -> list[float]:
    """The score of every test episode; starts are neither those of the data nor those of fine-tuning."""
    report = dp.evaluate(policy, env, episodes=arguments.episodes, seed=1_000 + seed)
    return report.returns if row.score == "return" else report.success


def scale(name: str) -> tuple[float, float]:
    """What counts as 0 and as 1: nothing and everything of a success, random and expert script of a return."""
    row = ROWS[name]
    if row.score == "success":
        return 0.0, 1.0
    means = []
    for skill in ("random", "expert"):
        store = dp.collect_episodes(
            row.env,
            out=FOLDER / name / skill,
            episodes=SCRIPTED,
            skill=skill,
            seed=DATA_SEED,
            workers=0,
            env_options=row.options,
        )
        means.append(float(store.returns.mean()))
    return means[0], means[1]


def run(name: str, arguments: argparse.Namespace) -> list[Figure]:
    """The figures of one task over all seeds."""
    claim(FOLDER / name, asdict(ROWS[name]))
    results, (low, high) = [run_seed(name, seed, arguments) for seed in range(arguments.seeds)], scale(name)

    def points(key: str) -> list[np.ndarray]:
        return [100 * (np.array(one[key]) - low) / (high - low) for one in results]

    def mean(key: str) -> Interval:
        if ROWS[name].score == "return":
            return mean_interval(points(key))
        found = share_interval([one[key] for one in results])
        return Interval(100 * found.value, 100 * found.low, 100 * found.high)

    before, after = points("before"), points("after")
    began, curves = points("began"), points("curve")
    seeds, episodes = arguments.seeds, arguments.seeds * arguments.episodes
    command = f"{COMMAND} --rows {name} --seeds {seeds} --steps {arguments.steps} --method {arguments.method}"
    command += f" --episodes {arguments.episodes}" + " --each" * arguments.each

    def figure(label: str, unit: str, value: Interval, beside: dict[str, Figure] | None = None) -> Figure:
        return Figure(label, value.value, value.low, value.high, unit, seeds, episodes, command, beside or {})

    budget = f"{arguments.steps // 1000}k_{name}" + f"_{arguments.method}" * (arguments.method != AUTO)
    beside = {
        label: figure(label, "points", mean(label))
        for label in ("before", *[UNFILTERED] * ROWS[name].safe, VALUED, "after")
    }
    if arguments.each or ROWS[name].skill == "random":
        number = dp.make(ROWS[name].env, **ROWS[name].options).joint_spec.num_agents
        label = f"co_learning_{number}_{budget}" if arguments.each else f"random_{budget.removesuffix('_random')}"
        beside.pop("after")
        return [figure(label, "points", mean("after"), beside)]
    worst = [curve.min() / start for curve, start in zip(curves, began, strict=True)]
    minutes = {phase: [[one["seconds"][phase] / 60] for one in results] for phase in PHASES}
    total = [[sum(minutes[phase][i][0] for phase in PHASES)] for i in range(seeds)]
    shares = {phase: figure(phase, "min", mean_interval(minutes[phase])) for phase in PHASES}
    return [
        figure(f"gain_{budget}", "ratio", resampled(lambda means: means[0] / means[1], [after, before]), beside),
        figure(f"worst_on_the_way_{budget}", "ratio", mean_interval([[one] for one in worst])),
        figure(f"wall_minutes_{budget}", "min", mean_interval(total), shares),
    ]


def speedup(name: str, arguments: argparse.Namespace) -> Figure:
    """How many times the steps of the fine-tuned planner SAC needs from scratch to score as it does, seed by seed."""
    (low, high), shares, ours, theirs = scale(name), [], [], []
    script, row = Path(__file__).with_name("online_baseline.py"), ROWS[name]
    for seed in range(arguments.seeds):
        out = FOLDER / name / f"sac_{arguments.scratch_steps}_{seed}_{arguments.episodes}.json"
        if not out.exists() or read_json(out)["curve"][-1]["steps"] < arguments.scratch_steps:
            command = [arguments.scratch, script, "--env", row.env, "--out", out, "--discount", row.discount]
            command += ["--steps", arguments.scratch_steps, "--seed", seed, "--episodes", arguments.episodes]
            subprocess.run([str(part) for part in command], check=True)
        curve = read_json(out)["curve"]
        score = run_seed(name, seed, arguments)["after"]
        reached = (one["steps"] for one in curve if np.mean(one["returns"]) >= np.mean(score))
        shares.append([next(reached, arguments.scratch_steps) / arguments.steps])
        ours.append([100 * (one - low) / (high - low) for one in score])
        theirs.append([100 * (one - low) / (high - low) for one in curve[-1]["returns"]])
    seeds, command = arguments.seeds, f"{COMMAND} --rows {name} --seeds {arguments.seeds} --steps {arguments.steps}"
    command += f" --method {arguments.method} --episodes {arguments.episodes}" + " --each" * arguments.each
    command += f" --scratch d3rlpy-env/bin/python --scratch-steps {arguments.scratch_steps}"

    def figure(label: str, unit: str, value: Interval, beside: dict[str, Figure] | None = None) -> Figure:
        count = seeds * arguments.episodes
        return Figure(label, value.value, value.low, value.high, unit, seeds, count, command, beside or {})

    after = f"after {arguments.steps // 1000}k steps of fine-tuning", f"after {arguments.scratch_steps // 1000}k of SAC"
    beside = {
        label: figure(label, "points", mean_interval(columns))
        for label, columns in zip(after, (ours, theirs), strict=True)
    }
    return figure("speedup_over_scratch", "ratio", mean_interval(shares), beside)


def tiny(folder: Path, out: Path) -> None:
    """A run of some seconds, or the rest of it."""
    offline = dp.load_dataset(folder, horizon=8)
    planner = dp.DiffusionPlanner.for_dataset(offline, width=16, depth=1)
    planner.register_modules(value_function=dp.ValueFunction.for_dataset(offline, width=16, depth=1))
    learning = Learning(batch_size=8, critic_batch_size=8)
    sizes = {"steps": 72, "episodes": 3, "updates_per_step": 0.1, "evaluate_every": 48, "evaluation_episodes": 2}
    env, acting = dp.make("mpe:simple_spread_v3", max_cycles=8), Acting(num_samples=2, refine=0.5)
    dp.finetune(
        planner,
        env,
        offline=offline,
        out=out,
        method="weighted",
        acting=acting,
        learning=learning,
        resume=True,
        progress=False,
        **sizes,
    )


def outcome(out: Path) -> tuple[str, str]:
    """What must be the same to the bit: the metrics but for times, and the weights."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    planner = dp.DiffusionPlanner.from_pretrained(out)
    kept = [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]
    return str(kept), weights_sha256(planner.denoiser) + weights_sha256(planner.value_function)


def exact_resumes(kills: int) -> Figure:
    """Kills tiny runs at random moments, resumes them, and counts those that end as if nothing had happened."""
    rng, same = np.random.default_rng(0), 0
    with tempfile.TemporaryDirectory() as folder:
        data, straight = Path(folder) / "data", Path(folder) / "straight"
        dp.collect_episodes("mpe:simple_spread_v3", out=data, episodes=40, skill="medium", workers=0, progress=False)
        started = time.perf_counter()
        started_child(data, straight).join()
        took = time.perf_counter() - started
        for trial in range(kills):
            out = Path(folder) / f"killed_{trial}"
            process = started_child(data, out)
            process.join(rng.uniform(0, took))
            process.kill()
            process.join()
            started_child(data, out).join()
            same += outcome(out) == outcome(straight)
            print(f"kill {trial + 1}: {same} of {trial + 1} resumed to the bit", flush=True)
    return Figure("exact_resumes", same, same, same, "runs", 1, kills, f"{COMMAND} --exact-resumes {kills}")


def started_child(data: Path, out: Path) -> BaseProcess:
    """A process of its own that runs or resumes; forked, for torch takes seconds to load."""
    process = get_context("fork").Process(target=tiny, args=(data, out))
    process.start()
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=[])
    parser.add_argument("--method", choices=list(METHODS), default=AUTO)
    parser.add_argument("--each", action="store_true", help="every agent learns for itself, with a planner of its own")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--scratch", help="python of an environment that has d3rlpy: also train SAC from scratch")
    parser.add_argument("--scratch-steps", type=int, default=300_000)
    parser.add_argument("--exact-resumes", type=int, metavar="KILLS", default=0)
    arguments = parser.parse_args()
    if arguments.scratch and (arguments.rows != ["simple_spread"] or arguments.scratch_steps % 10_000):
        parser.error("--scratch is of --rows simple_spread, and of --scratch-steps in tens of thousands")
    for name in arguments.rows:
        record(RESULTS / "finetuning.json", run(name, arguments))
        if arguments.scratch:
            record(RESULTS / "finetuning.json", [speedup(name, arguments)])
    if arguments.exact_resumes:
        record(RESULTS / "finetuning.json", [exact_resumes(arguments.exact_resumes)])


if __name__ == "__main__":
    one_thread()
    main()
