"""Asks planners what the world does under given joint actions, beside two plain models. Writes forecast_error_ratio.

Uses the planners of ``benchmark_control.py --rows crossing_open_4``, trained where missing, and episodes that they
were not trained on. From many presents on, the actions of the next 10 steps are given (later ones would tell where they
led), and the observations then are compared with MuJoCo's: root mean square of position and velocity over robots, in
the normaliser's units, as a share of the error of constant velocity; intervals over episodes. Beside it: a one-step
multi-layer perceptron (own observation and action -> next observation), trained on the same data and rolled out.
Writes to docs/results/teams.json.
"""

import argparse
from itertools import pairwise

import numpy as np
import torch
from benchmark_control import FOLDER, planner_of
from figures import RESULTS, Figure, record
from torch import nn

import diffplan as dp
from diffplan.evaluation import mean_interval
from diffplan.planners.question import Sampling

COMMAND = "python scripts/benchmark_world_model.py --seeds {seeds} --windows {windows} --steps {steps}"
ROW, AHEAD, HORIZON = FOLDER / "crossing_open_4", 10, 32
SKILLS = ("expert", "medium")
ONE = "with one denoising step"
MLP_STEPS, MLP_BATCH, MLP_WIDTH = 2_000, 512, 128


def windows(
    planner: dp.DiffusionPlanner, skill: str, seed: int, number: int, episodes: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Cells [B, N, H, D] of held-out episodes, in the planner's units, that go on for ``AHEAD`` steps or more, and the
    episode of each."""
    out = ROW / f"held_out_{skill}_{seed}"
    store = dp.collect_episodes(
        "crossing-v0", out=out, episodes=episodes, skill=skill, seed=seed, workers=0, progress=False
    )
    dataset = dp.TrajectoryDataset(store, HORIZON, normalizer=planner.normalizer)
    index = np.random.default_rng(seed).permutation(len(dataset))
    episode, step = dataset.locate(index)
    kept = np.flatnonzero(store.lengths[episode] - step > AHEAD)[:number]
    return dataset.batch(index[kept]).cells, episode[kept]


def forecast(planner: dp.DiffusionPlanner, cells: np.ndarray, steps: int) -> np.ndarray:
    """What the planner says under the actions up to there."""
    spec, O = planner.spec, planner.spec.observation_size
    physical = planner.normalizer.unnormalize(cells, spec.role_index)
    physical[:, :, AHEAD:, O:] = np.nan
    questions = [
        dp.Question(
            dict(zip(spec.names, window[:, 0, :O], strict=True)),
            given=dp.Cells(np.full_like(window[..., :O], np.nan), window[..., O:]),
        )
        for window in physical
    ]
    plans = planner.answer(questions, Sampling(num_inference_steps=steps))
    future = np.stack([plan.grid[0] for plan in plans])
    return planner.normalizer.normalize(future, spec.role_index)[:, :, AHEAD, :O]


def constant_velocity(planner: dp.DiffusionPlanner, cells: np.ndarray, *_: object) -> np.ndarray:
    role, O = planner.spec.role_of(planner.spec.names[0]), planner.spec.observation_size
    future = planner.normalizer.unnormalize(cells[:, :, :1], planner.spec.role_index)
    future[..., role.position] += AHEAD * planner.spec.dt * future[..., role.velocity]
    return planner.normalizer.normalize(future, planner.spec.role_index)[:, :, 0, :O]


def train_one_step(planner: dp.DiffusionPlanner, seed: int) -> nn.Module:
    """A perceptron that predicts the change of a robot's observation in one step."""
    spec, O = planner.spec, planner.spec.observation_size
    store = dp.TrajectoryStore.open(ROW / "data")
    dataset = dp.TrajectoryDataset(store, 2, normalizer=planner.normalizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [spec.size, MLP_WIDTH, MLP_WIDTH]
        hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.SiLU())]
        network = nn.Sequential(*hidden, nn.Linear(MLP_WIDTH, O))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MLP_STEPS)
    rng = np.random.default_rng(seed)
    for _ in range(MLP_STEPS):
        batch = dataset.sample(MLP_BATCH // spec.num_agents, rng)
        cells, exists = torch.from_numpy(batch.cells), torch.from_numpy(batch.mask[:, :, 1, :O])
        change = cells[:, :, 1, :O] - cells[:, :, 0, :O]
        loss = ((network(cells[:, :, 0]) - change).square() * exists).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


@torch.no_grad()
def roll_out(network: nn.Module, planner: dp.DiffusionPlanner, cells: np.ndarray) -> np.ndarray:
    O = planner.spec.observation_size
    actions, seen = torch.from_numpy(cells[..., O:]), torch.from_numpy(cells[:, :, 0, :O])
    for step in range(AHEAD):
        seen = seen + network(torch.cat((seen, actions[:, :, step]), -1))
    return seen.numpy()


def measure(seed: int, number: int, steps: int) -> dict[str, list[float]]:
    """Errors of every model, the mean of every episode, over the mean error of constant velocity on all of them."""
    planner = dp.DiffusionPlanner.from_pretrained(planner_of(ROW.name, seed))
    planner = planner.for_agents(dp.make("crossing-v0").joint_spec)
    network = train_one_step(planner, seed)
    moving = [
        entry for entry in range(planner.spec.observation_size) if entry not in planner.spec.roles["robot"].static
    ]
    rows = {}
    for skill in SKILLS:
        cells, episode = windows(planner, skill, 1_000 + seed, number)

        def error(estimate: np.ndarray, cells: np.ndarray = cells, episode: np.ndarray = episode) -> np.ndarray:
            off = np.sqrt(np.square(estimate - cells[:, :, AHEAD, : estimate.shape[-1]])[..., moving].mean((1, 2)))
            return np.array([off[episode == one].mean() for one in np.unique(episode)])

        least = error(constant_velocity(planner, cells))
        found = {"planner": forecast(planner, cells, steps), ONE: forecast(planner, cells, 1)}
        found["one-step MLP"] = roll_out(network, planner, cells)
        rows |= {f"{name}, {skill}": (error(one) / least.mean()).tolist() for name, one in found.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    arguments = parser.parse_args()
    found = [measure(seed, arguments.windows, arguments.steps) for seed in range(arguments.seeds)]
    count, command = arguments.seeds * arguments.windows, COMMAND.format(**vars(arguments))

    def figure(label: str, name: str, beside: dict[str, Figure]) -> Figure:
        mine = mean_interval([rows[name] for rows in found])
        return Figure(label, mine.value, mine.low, mine.high, "ratio", arguments.seeds, count, command, beside)

    first = f"planner, {SKILLS[0]}"
    beside = {name: figure(name, name, {}) for name in found[0] if name != first}
    record(RESULTS / "teams.json", [figure("forecast_error_ratio", first, beside)])


if __name__ == "__main__":
    main()
