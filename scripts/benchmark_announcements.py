"""Given one robot's announced plan, do the others' sampled plans fit it? Writes announced_plan_agreement.

Uses the planners of ``benchmark_control.py --rows crossing_open_4``, trained where missing. From new starts,
robot_0's plan is announced, and the others are sampled with another seed, told (``given``) or not told, with a guide
that keeps robots apart or without; 10 denoising steps each. They fit when all go round the centre the same way as
robot_0 and nobody touches anybody. Writes to docs/results/control.json.
"""

import argparse
from dataclasses import replace

import numpy as np
from benchmark_control import planner_of
from figures import RESULTS, Figure, record

import diffplan as dp
from diffplan.envs.crossing_layouts import RADIUS
from diffplan.evaluation import episode_seed, share_interval
from diffplan.planners.question import Sampling

COMMAND = "python scripts/benchmark_announcements.py --seeds {seeds} --episodes {episodes}"
DENOISING_STEPS = 10


def fits(paths: np.ndarray) -> bool:
    """Whether paths [N, H, 2] all go round the origin the same way and keep apart."""
    x, y = paths[..., 0], paths[..., 1]
    turn = np.sign((x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).sum(1))
    gaps = np.linalg.norm(paths[:, None] - paths[None], axis=-1)[np.triu_indices(len(paths), 1)]
    return bool((turn == turn[0]).all() and gaps.min() > 2 * RADIUS)


def agreement(planner: dp.DiffusionPlanner, starts: int, seed: int) -> dict[str, list[float]]:
    """For each way of planning and each start, whether the others' plans fit the one that robot_0 announced."""
    env, names = dp.make("crossing-v0", num_robots=4), planner.spec.names
    seen = [env.reset(seed=episode_seed(seed, start))[0] for start in range(starts)]
    sampling = Sampling(num_inference_steps=DENOISING_STEPS)
    announced = planner.answer([dp.Question(one, seed=2 * start) for start, one in enumerate(seen)], sampling)
    rows = {}
    for name, told, guides in (
        ("told", True, (dp.ConstraintGuide.separation(0.2, 10.0),)),
        ("told, without a guide", True, ()),
        ("not told", False, (dp.ConstraintGuide.separation(0.2, 10.0),)),
    ):
        questions = [
            dp.Question(one, given=plan.cells("robot_0") if told else None, seed=2 * start + 1)
            for start, (one, plan) in enumerate(zip(seen, announced, strict=True))
        ]
        plans = planner.answer(questions, replace(sampling, guides=guides))
        rows[name] = [
            float(fits(np.stack([first.positions(names[0])[0], *(plan.positions(robot)[0] for robot in names[1:])])))
            for first, plan in zip(announced, plans, strict=True)
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=200)
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.seeds):
        planner = dp.DiffusionPlanner.from_pretrained(planner_of("crossing_open_4", seed))
        found.append(agreement(planner, arguments.episodes, 1_000 + seed))
    count, command = arguments.seeds * arguments.episodes, COMMAND.format(**vars(arguments))

    def figure(label: str, name: str, beside: dict[str, Figure]) -> Figure:
        mine = share_interval([rows[name] for rows in found])
        return Figure(label, mine.value, mine.low, mine.high, "share", arguments.seeds, count, command, beside)

    beside = {name: figure(name, name, {}) for name in ("told, without a guide", "not told")}
    record(RESULTS / "control.json", [figure("announced_plan_agreement", "told", beside)])


if __name__ == "__main__":
    main()
