"""2 to 8 agents must all choose the same of two ways: do they, and is the choice even? Writes docs/results/teams.json.

    python scripts/benchmark_joint_modes.py --seeds 5

Points on a line all go up or all go down, each at a pace of its own that only it knows. A tiny planner a seed is
trained on teams of 2 to 8. ``joint_mode_valid`` is the share of teams that agree, ``joint_mode_balance`` the share of
those that go up, each for the number of agents for which it is worst, over all seeds; planned for all at once, and by
everyone for itself. Data and planners are kept below runs/benchmark/joint_modes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figures import RESULTS, Figure, record

import diffplan as dp
from diffplan.evaluation import Interval, share_interval
from diffplan.planners import Question
from diffplan.planners.manners import Manners
from diffplan.planners.member import TeamMember, answers
from diffplan.planners.question import Sampling

FOLDER = Path("runs/benchmark/joint_modes")
MOST, LENGTH, STEPS = 8, 8, 1_500
COMMAND = "python scripts/benchmark_joint_modes.py --seeds {seeds} --teams {teams}"
ROLE = dp.Role(2, (-1.0,), (1.0,), position=(0,), static=(1,))
WAYS = ("at once", "shared seed", "private seeds")


def team_of(number: int) -> dp.JointSpec:
    return dp.JointSpec({f"point_{i}": "point" for i in range(number)}, {"point": ROLE})


def episode(rng: np.random.Generator) -> dp.Trajectory:
    """Some of the points are there, and go one way."""
    present = np.arange(MOST) < rng.integers(2, MOST + 1)
    pace = rng.uniform(0.5, 1, MOST) * present
    actions = np.repeat(rng.choice((-1, 1)) * pace[None, :, None], LENGTH, axis=0)
    place = np.concatenate([np.zeros((1, MOST, 1)), actions.cumsum(0)])
    observations = np.concatenate([place, np.repeat(pace[None, :, None], LENGTH + 1, axis=0)], axis=-1)
    never = np.zeros((LENGTH, MOST), bool)
    there = np.repeat(present[None], LENGTH + 1, axis=0)
    floats = (array.astype(np.float32) for array in (observations, actions, actions[..., 0]))
    return dp.Trajectory(team_of(MOST), *floats, never, never, there)


def train(seed: int) -> dp.DiffusionPlanner:
    rng, data = np.random.default_rng(0), FOLDER / "data"
    if not data.exists():
        dp.TrajectoryStore.create(data, team_of(MOST)).append([episode(rng) for _ in range(3_000)])
    dataset = dp.load_dataset(data, horizon=LENGTH)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=32, depth=2, seed=seed)
    dp.train(planner, dataset, steps=STEPS, start_share=1.0, seed=seed, out=FOLDER / f"joint_{seed}", resume=True)
    return planner


def ways(planner: dp.DiffusionPlanner, number: int, how: str, seed: int, teams: int) -> np.ndarray:
    """The way that every agent of every team plans for itself: 1 or -1 [teams, number]; no two seeds share a team."""
    names, manners = planner.spec.names, Manners(speak=False, shared_seed=how == "shared seed")
    pace = np.random.default_rng((1_000 + number, seed)).uniform(0.5, 1, (teams, number)).astype(np.float32)
    sensed = {name: np.array([0, np.nan], np.float32) for name in names}
    questions: list[Question] = []
    asked: list[tuple[TeamMember, Question]] = []
    for team, paces in enumerate(pace, seed * teams):
        now = {name: np.array([0, one], np.float32) for name, one in zip(names, paces, strict=True)}
        if how == "at once":
            questions += [Question(now, seed=team)]
        else:
            members = [TeamMember(planner, name, manners, team) for name in names]
            asked += [(one, one.ask(now[one.name], sensed, 0)) for one in members]
    plans = answers(asked) if asked else planner.answer(questions, Sampling(num_inference_steps=10))
    heading = np.sign(np.stack([plan.actions[0].mean((1, 2)) for plan in plans]))
    if how == "at once":
        return heading
    return np.diagonal(heading.reshape(teams, number, number), axis1=1, axis2=2)


def figures(planners: Sequence[dp.DiffusionPlanner], teams: int) -> list[Figure]:
    valid: dict[str, Interval] = {}
    balance: dict[str, Interval] = {}
    for how in WAYS:
        agree, up = [], []  # of every number of agents, one array a seed
        for n in range(2, MOST + 1):
            found = [ways(one.for_agents(team_of(n)), n, how, seed, teams) for seed, one in enumerate(planners)]
            agree.append([np.abs(one.mean(1)) == 1 for one in found])
            up.append([one[same, 0] > 0 for one, same in zip(found, agree[-1], strict=True)])
        valid[how] = min(map(share_interval, agree), key=lambda one: one.value)
        balance[how] = max(map(share_interval, up), key=lambda one: abs(one.value - 0.5))

    def figure(name: str, one: Interval, beside: dict[str, Figure]) -> Figure:
        seeds, count = len(planners), len(planners) * teams * (MOST - 1)
        command = COMMAND.format(seeds=seeds, teams=teams)
        return Figure(name, one.value, one.low, one.high, "share", seeds, count, command, beside)

    return [
        figure(f"joint_mode_{name}", found[WAYS[0]], {how: figure(how, found[how], {}) for how in WAYS[1:]})
        for name, found in (("valid", valid), ("balance", balance))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--teams", type=int, default=1_000, help="of each number of agents and seed")
    arguments = parser.parse_args()
    record(RESULTS / "teams.json", figures([train(seed) for seed in range(arguments.seeds)], arguments.teams))


if __name__ == "__main__":
    main()
