"""Guidance on data of every quality, beside imitation and offline reinforcement learning; joins guidance.json.

    python scripts/benchmark_ladder.py --tasks simple_spread --data medium --seeds 5 --d3rlpy d3rlpy-env/bin/python

One prior and one value function are trained per task, data and seed; the variants differ in how they plan with them.
Refining takes 8 candidates, unless 16 are ranked; a gradient's values rank them, too. Variants of the best half have a
prior of their own, of the half of the episodes that has the best return; so does one of behaviour cloning.
Scores are normalised: 0 is what random actions get, 100 the mean return of expert data. Everything is kept below
runs/ladder: an interrupted benchmark goes on. IQL and TD3+BC are d3rlpy's, on the joint action with its defaults for
20,000 steps, see ``offline_baselines.py``; without ``--d3rlpy`` they are left out. halfcheetah_2x3 has no script: its
expert and medium data are of policies that SAC learned, see ``learned_data.py``, which needs ``--d3rlpy``.
<task>_<data>_score: the best of our variants, on these episodes (of expert data ``benchmark_control.py`` has it); gain
and margin: by how many % of its score it is above the unguided plan and above the best of the baselines. expert_loss:
how many points below the unguided plan the task's ``chosen`` variant scores on expert data: critics learn least there.
"""

import argparse
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from figures import RESULTS, Figure, kept, one_thread, record

import diffplan as dp
from diffplan.baselines import train_behavior_cloning
from diffplan.evaluation import mean_interval
from diffplan.files import claim, read_json, write_json

FOLDER = Path("runs/ladder")
DATA = ("expert", "medium", "replay", "random")
COMMAND = "python scripts/benchmark_ladder.py --tasks {task} --data {data} --seeds {seeds} --episodes {episodes}"
CLONING = {"BC joint": True, "BC per agent": False, "BC joint, best half": True}
OFFLINE = {"IQL": "iql", "TD3+BC": "td3bc"}
VARIANTS = (
    "none",
    "ranking",
    "gradient",
    "return",
    "refine",
    "gradient, ranking",
    "gradient, refine",
    "ranking, refine",
    "best half",
    "best half, gradient",
)
BEST = 0.5


@dataclass(frozen=True)
class Task:
    """What to learn and for how long; ``weight`` is of the value guide, ``refine`` how far critics move actions."""

    env: str
    options: dict[str, Any] = field(default_factory=dict)
    episodes: int = 6_000
    horizon: int = 32
    steps: int = 3_000
    value_steps: int = 8_000
    discount: float = 0.99
    values: dict[str, float] = field(default_factory=dict)  # options of ``train_value``
    weight: float = 3.0
    refine: float = 1.0
    refine_price: float = 0.1
    random_return: float | None = None  # counts as 0; None: the mean of random data, whose actions are smooth
    learned: bool = False  # data are of a policy that was learned, not of a script
    variants: tuple[str, ...] = VARIANTS
    chosen: str = "refine"  # of them, as medium data tell; of equals the one that leaves plans as they are


QUICK_TASK: dict[str, Any] = {"discount": 0.95, "values": {"reach": 0.5}, "refine_price": 0.0}  # 25 steps an episode
TASKS = {
    "crossing": Task("crossing-v0", steps=4_000, chosen="ranking"),
    "transport": Task("transport-v0", steps=8_000, chosen="gradient"),
    "simple_spread": Task("mpe:simple_spread_v3", horizon=12, value_steps=6_000, random_return=-26.6, **QUICK_TASK),
    "halfcheetah_2x3": Task(
        "mamujoco:HalfCheetah-2x3",
        episodes=200,
        horizon=16,
        learned=True,
        variants=("none", "gradient", "refine", "gradient, refine"),  # 1,000 steps an episode: no 16 candidates each
    ),
}


def acting(variant: str, task: Task, value: dp.ValueFunction) -> dict[str, Any]:
    """How a variant plans: options of ``RecedingHorizonPolicy``."""
    moving, ranking = dp.ValueGuide(value, weight=task.weight), dp.ValueGuide(value, levels=None)
    refining = {"refine": task.refine, "refine_price": task.refine_price}
    return {
        "none": {},
        "ranking": {"guides": [ranking], "num_samples": 16},
        "gradient": {"guides": [moving]},
        "return": {"target_return": 0.95, "guidance_scale": 1.5},
        "refine": refining,
        "gradient, ranking": {"guides": [moving], "num_samples": 16},
        "gradient, refine": {"guides": [moving], **refining},
        "ranking, refine": {"guides": [ranking], "num_samples": 16, **refining},
        "best half": {},
        "best half, gradient": {"guides": [moving]},
    }[variant]


def store_of(name: str, skill: str, interpreter: str | None) -> dp.TrajectoryStore:
    task, out = TASKS[name], FOLDER / name / skill / "data"
    if task.learned and skill != "random":
        learn(name, interpreter)
        return dp.TrajectoryStore.open(out)
    return dp.collect_episodes(task.env, out=out, episodes=task.episodes, skill=skill, env_options=task.options)


@cache
def learn(name: str, interpreter: str | None) -> None:
    """Records the data of a task whose policy is learned, or goes on with it."""
    command = [interpreter, Path(__file__).with_name("learned_data.py"), "--env", TASKS[name].env]
    command += ["--out", FOLDER / name, "--episodes", TASKS[name].episodes]
    subprocess.run([str(part) for part in command], check=True)


def planner_of(name: str, skill: str, seed: int) -> dp.DiffusionPlanner:
    """The prior and its value function, trained where they are not there yet."""
    task, folder = TASKS[name], FOLDER / name / skill / str(seed)
    if (folder / "planner").exists():
        return dp.DiffusionPlanner.from_pretrained(folder / "planner")
    dataset = dp.load_dataset(FOLDER / name / skill / "data", horizon=task.horizon)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=64, return_conditioning=True, seed=seed)
    dp.train(planner, dataset, steps=task.steps, seed=seed, out=folder / "prior", resume=True, progress=False)
    planner.value_function = dp.ValueFunction.for_dataset(dataset, discount=task.discount, seed=seed)
    dp.train_value(planner.value_function, dataset, steps=task.value_steps, **task.values, seed=seed, progress=False)
    planner.save_pretrained(folder / "planner")
    return planner


def of_best_half(name: str, skill: str, seed: int) -> dp.DiffusionPlanner:
    """A prior of the best half of the episodes, with the value function of all of them."""
    folder, whole = FOLDER / name / skill / str(seed) / "best_half", planner_of(name, skill, seed)
    if not (folder / "planner").exists():
        dataset = dp.load_dataset(FOLDER / name / skill / "data", TASKS[name].horizon, normalizer=whole.normalizer)
        planner = dp.DiffusionPlanner.for_dataset(dataset, width=64, return_conditioning=True, seed=seed)
        steps = TASKS[name].steps
        dp.train(planner, dataset.best(BEST), steps=steps, seed=seed, out=folder, resume=True, progress=False)
    planner = dp.DiffusionPlanner.from_pretrained(folder)
    planner.value_function = whole.value_function
    return planner


def returns(name: str, skill: str, variant: str, seed: int, episodes: int, interpreter: str | None) -> list[float]:
    """What one variant of one training seed got in every episode; what is there already is read."""
    path = FOLDER / name / skill / str(seed) / f"{variant.replace(', ', '_').replace(' ', '_')}.json"
    if (report := kept(path, episodes, "returns")) is None:
        env = dp.make(TASKS[name].env, **TASKS[name].options)
        if variant in OFFLINE:
            command = [interpreter, Path(__file__).with_name("offline_baselines.py"), FOLDER / name / skill / "data"]
            command += ["--algorithm", OFFLINE[variant], "--out", path, "--seed", seed, "--episodes", episodes]
            subprocess.run([str(part) for part in command], check=True)
            return list(read_json(path)["returns"])
        if variant in CLONING:
            dataset = dp.load_dataset(FOLDER / name / skill / "data", horizon=TASKS[name].horizon)
            imitated = dataset.best(BEST) if "best half" in variant else dataset
            policy: Any = train_behavior_cloning(imitated, joint=CLONING[variant], seed=seed)
        else:
            planner = (of_best_half if "best half" in variant else planner_of)(name, skill, seed)
            policy = dp.RecedingHorizonPolicy(planner, **acting(variant, TASKS[name], planner.value_function))
        report = dp.evaluate(policy, env, episodes=episodes, seed=1_000 + seed).to_dict()
        write_json(path, report)
    return list(report["returns"])


def rung(name: str, skill: str, seeds: int, episodes: int, interpreter: str | None) -> list[Figure]:
    """Every variant on one task and quality of data."""
    claim(
        FOLDER / name,
        {key: value for key, value in asdict(TASKS[name]).items() if key not in ("variants", "learned", "chosen")},
    )
    low = TASKS[name].random_return
    high, own = store_of(name, "expert", interpreter).returns.mean(), store_of(name, skill, interpreter).returns
    low = float(store_of(name, "random", interpreter).returns.mean()) if low is None else low
    command = COMMAND.format(task=name, data=skill, seeds=seeds, episodes=episodes)
    command += " --d3rlpy d3rlpy-env/bin/python" * (interpreter is not None)

    def figure(label: str, groups: list[list[float]]) -> Figure:
        found = mean_interval([[100 * (value - low) / (high - low) for value in group] for group in groups])
        return Figure(label, found.value, found.low, found.high, "points", seeds, seeds * episodes, command)

    variants = (*TASKS[name].variants, *CLONING, *(OFFLINE if interpreter else ()))
    figures = []
    for variant in variants:
        groups = [returns(name, skill, variant, seed, episodes, interpreter) for seed in range(seeds)]
        figures.append(figure(f"{name}_{skill}_{variant.replace(', ', '_').replace(' ', '_')}", groups))
    found = dict(zip(variants, figures, strict=True))
    found["none"].baselines["the data's mean"] = figure("the data's mean", [own.mean(1).tolist()])
    others = {name: found[name] for name in (*CLONING, *OFFLINE) if name in found}
    for variant in TASKS[name].variants[1:]:
        found[variant].baselines.update({"unguided": found["none"]} | others)
    return [*figures, *summary(name, skill, found)]


def summary(name: str, skill: str, found: dict[str, Figure]) -> list[Figure]:
    """The best of our variants, and by how many percent it is above no guidance and above the best baseline.

    The best is the best on the very episodes that are reported. Of scores that are not positive, and of itself, nobody
    is a percent above.
    """
    others = {one: found[one] for one in (*CLONING, *OFFLINE) if one in found}
    best, rival = (max(ones, key=lambda one: found[one].value) for ones in (TASKS[name].variants, others))
    beside = {"unguided": found["none"]} | found["none"].baselines | others
    rows = [replace(found[best], figure=f"{name}_{skill}_score", baselines=beside)] if skill != "expert" else []
    for label, other in (("gain", "none"), ("margin", rival)):
        if found[other].low > 0 and other != best:
            rows.append(compared(f"{skill}_{label}_{name}", "%", found, best, other, lambda a, b: 100 * (a / b - 1)))
    if skill == "expert":
        chosen = TASKS[name].chosen
        rows.append(compared(f"expert_loss_{name}", "points", found, chosen, "none", lambda a, b: b - a))
    return rows


def compared(
    label: str, unit: str, found: dict[str, Figure], ours: str, other: str, how: Callable[[Any, Any], Any]
) -> Figure:
    """Of two scores; for the interval both are drawn from theirs, independently."""
    rng, pair = np.random.default_rng(0), [found[one] for one in (ours, other)]
    drawn = (rng.normal(one.value, (one.high - one.low) / 3.92, 100_000) for one in pair)
    low, high = np.quantile(how(*drawn), (0.025, 0.975)).tolist()
    names = ["unguided" if one == "none" else one for one in (ours, other)]
    beside = {one: replace(score, baselines={}) for one, score in zip(names, pair, strict=True)}
    value = how(*(one.value for one in pair))
    return replace(pair[0], figure=label, value=value, low=low, high=high, unit=unit, baselines=beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--d3rlpy", help="python of an environment that has d3rlpy")
    arguments = parser.parse_args()
    if any(TASKS[name].learned for name in arguments.tasks) and not arguments.d3rlpy:
        parser.error("data of learned policies need --d3rlpy.")
    for name in arguments.tasks:
        for skill in (one for one in arguments.data if one != "replay" or not TASKS[name].learned):
            record(RESULTS / "guidance.json", rung(name, skill, arguments.seeds, arguments.episodes, arguments.d3rlpy))


if __name__ == "__main__":
    one_thread()
    main()
