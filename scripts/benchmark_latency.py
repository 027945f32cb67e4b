"""Times one plan and 64 candidates: 4 agents, horizon 32, 5 steps, one core; writes docs/results/control.json."""

import argparse
import time

import torch
from figures import RESULTS, Figure, median, record

import diffplan as dp
from diffplan.planners import make_scheduler

COMMAND = "python scripts/benchmark_latency.py"
REPEATS = 200


def planner_for(env: object) -> dp.DiffusionPlanner:
    """An untrained planner of the sizes that ``for_dataset`` chooses: time does not depend on the weights."""
    spec = env.joint_spec
    denoiser = dp.JointDenoiser(size=spec.size, window=32, patch_size=8, from_present=True).eval()
    normalizer = dp.Normalizer("gaussian", [[0.0] * spec.size], [[1.0] * spec.size])
    return dp.DiffusionPlanner(denoiser, make_scheduler("flow"), normalizer, spec, 32, 0)


def measure(figure: str, planner: dp.DiffusionPlanner, observations: dict, num_samples: int) -> Figure:
    times = []
    for seed in range(REPEATS + 5):
        started = time.perf_counter()
        planner(observations, num_samples=num_samples, seed=seed)
        times.append(1e3 * (time.perf_counter() - started))
    return median(figure, times[5:], "ms", 1, REPEATS, COMMAND, {})


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    env = dp.make("crossing-v0", num_robots=4)
    planner, (observations, _) = planner_for(env), env.reset(seed=0)
    figures = [
        measure("plan_latency_ms", planner, observations, 1),
        measure("candidates_64_latency_ms", planner, observations, 64),
    ]
    record(RESULTS / "control.json", figures)


if __name__ == "__main__":
    main()
