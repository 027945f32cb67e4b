"""Measures guidance where the answer is known, its latency, and what the safety filter does; writes guidance.json.

    python scripts/benchmark_guidance.py

gaussian_*: the prior N(0, 1) with the exact denoiser, times exp(-(x - 2)^2 / 2), is N(1, 1/2). bound_violations and
non_finite_plans: 10,000 plans of random networks under weights from 0 to 1e6. Latencies are of one thread and random
networks too: those of untrained ones have no gradients, which costs nothing.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from benchmark_latency import planner_for
from figures import RESULTS, Figure, one_thread, record

import diffplan as dp
from diffplan.evaluation import mean_interval
from diffplan.models.denoiser import JointDenoiser
from diffplan.planners import make_scheduler

COMMAND = "python scripts/benchmark_guidance.py"
SAMPLES, SEEDS = 4_000, 5


class ExactDenoiser(JointDenoiser):
    """The mean of clean given noisy under the prior N(0, 1)."""

    def forward(self, sample: torch.Tensor, noise_level: torch.Tensor, *_: object) -> torch.Tensor:
        return (1 - noise_level[..., None]) / ((1 - noise_level) ** 2 + noise_level**2)[..., None] * sample


def gaussian() -> Iterator[Figure]:
    """Mean and spread of guided samples: by gradient in 1,000 steps, re-weighted in 20."""
    spec = dp.JointSpec({"point": "point"}, {"point": dp.Role(1, (), ())})
    normalizer = dp.Normalizer("gaussian", [[0.0]], [[1.0]])
    planner = dp.DiffusionPlanner(
        ExactDenoiser(1, 1, patch_size=1), make_scheduler("flow"), normalizer, spec, horizon=1
    )
    planner.scheduler.set_shift(1.0)
    near_two = dp.ConstraintGuide(lambda plan: (plan.observations - 2).square().sum((2, 3, 4)) / 2)
    for suffix, steps, resample in (("", 1_000, False), ("_20", 20, True)):
        drawn = [
            planner(
                {"point": np.array([np.nan])},
                guides=[near_two],
                num_samples=SAMPLES,
                num_inference_steps=steps,
                resample=resample,
                seed=seed,
            ).observations.ravel()
            for seed in range(SEEDS)
        ]
        yield figure(f"gaussian_mean{suffix}", [[one.mean()] for one in drawn], "", SAMPLES)
        yield figure(f"gaussian_std{suffix}", [[one.std()] for one in drawn], "", SAMPLES)


def extremes() -> Iterator[Figure]:
    """Executed actions out of bounds, beside planned ones, and plans that are not finite, under any weight."""
    outside, broken, plans, before = 0, 0, 0, 0
    env = dp.make("crossing-v0", num_robots=4)
    planner = planner_for(env)
    randomize(planner.denoiser)
    limits = np.array([[role.action_low, role.action_high] for role in planner.spec.roles.values()])
    for index, weight in enumerate((0.0, 1.0, 1e2, 1e4, 1e6)):
        guides = [
            dp.ConstraintGuide.separation(0.2, weight),
            dp.ConstraintGuide(lambda plan: -plan.actions.sum((2, 3, 4)), weight, name="linear"),
        ]
        for start in range(20):
            observations, _ = env.reset(seed=start)
            plan = planner(observations, guides=guides, num_samples=100, seed=start + 100 * index)
            plans += plan.num_samples
            broken += int((~np.isfinite(plan.actions)).any((1, 2, 3)).sum())
            before += int((abs(plan.actions[:, :, 0]) > limits[0, 1]).any((1, 2)).sum())
            for sample in range(plan.num_samples):
                actions = np.stack(list(plan.sample(sample).actions_at(0).values()))
                outside += int(not ((actions >= limits[0, 0]) & (actions <= limits[0, 1])).all())
    beside = {"before actions are clipped": Figure("", before, before, before, "plans", 1, plans, COMMAND)}
    yield Figure("bound_violations", outside, outside, outside, "plans", 1, plans, COMMAND, beside)
    yield Figure("non_finite_plans", broken, broken, broken, "plans", 1, plans, COMMAND)


def randomize(network: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)


def latencies() -> Iterator[Figure]:
    """64 candidates, value-ranked and gradient-guided; and the safety filter for 10 robots in a crowd."""
    env = dp.make("crossing-v0", num_robots=4)
    planner = planner_for(env)
    observations, _ = env.reset(seed=0)
    spec = planner.spec
    value = dp.ValueFunction(spec.observation_size, spec.action_size)
    randomize(planner.denoiser)
    randomize(value)
    moving, apart = dp.ValueGuide(value), dp.ConstraintGuide.separation(0.2)
    rows = {
        "guided_64_latency_ms": [moving],
        "with a separation guide, too": [moving, apart],
        "ranked by value only": [dp.ValueGuide(value, levels=None)],
        "no guide": [],
    }
    timed = {
        name: figure(name, [milliseconds(lambda g=g: planner(observations, num_samples=64, guides=g), 30)], "ms", 30)
        for name, g in rows.items()
    }
    first, *others = timed.values()
    first.baselines.update({one.figure: one for one in others})
    yield first
    safety, rng = dp.SafetyFilter(**env.robot_limits), np.random.default_rng(0)
    scenes = [crowd(rng) for _ in range(500)]
    yield figure("filter_latency_ms", [[milliseconds(lambda s=s: safety.filter(*s), 1)[0] for s in scenes]], "ms", 500)


def crowd(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ten robots on a jittered grid, half a radius apart, and what they want."""
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2)[:10] * 0.24 - 0.4
    return grid + rng.uniform(-0.02, 0.02, (10, 2)), rng.normal(0, 0.2, (10, 2)), rng.uniform(-1, 1, (10, 2))


def milliseconds(call: Callable[[], object], repeats: int) -> list[float]:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return times


def figure(name: str, groups: list[list[float]], unit: str, episodes: int) -> Figure:
    found = mean_interval(groups)
    return Figure(name, found.value, found.low, found.high, unit, len(groups), len(groups) * episodes, COMMAND)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    record(RESULTS / "guidance.json", [*gaussian(), *extremes(), *latencies()])


if __name__ == "__main__":
    one_thread()
    main()
