"""Foresees what people do next in Overcooked, beside a recurrent network; writes docs/results/overcooked.json.

    python scripts/benchmark_overcooked.py --data DIR --seeds 3

DIR holds ``overcooked_hh`` (``train.npz``, ``test.npz``, their states, ``layouts.json``): trials of two people, the
published split. Both networks see the last 12 joint steps, and where the players are now and what is around them, and
say each player's next action. Accuracy is over all steps of the test trials, and over those at which the action
changes; ``ahead`` is how much more often the planner is right than the recurrent network, trial by trial. How long both
learn was chosen on training trials left out (``--fold``). Planners lie below runs/overcooked.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from figures import RESULTS, Figure, one_thread, record
from torch import Tensor, nn
from torch.nn import functional as F

import diffplan as dp
from diffplan.datasets import TrajectoryDataset, TrajectoryStore, WindowBatch
from diffplan.datasets.importers import Overcooked
from diffplan.evaluation import mean_interval
from diffplan.questions import QuestionMix
from diffplan.spec import JointSpec

FOLDER = Path("runs/overcooked")
HISTORY, HORIZON = 12, 2
PLANNER_STEPS, RECURRENT_STEPS = 1_500, 2_000
NEXT_ACTION = QuestionMix(1, 0, 0, 0, 0, 0, 0, 0, independent_levels=0, level_shift=50)  # nearly always from pure noise
COMMAND = "python scripts/benchmark_overcooked.py --data DIR --seeds {}"


class Recurrent(nn.Module):
    """Behaviour cloning with a memory: a GRU over both players' steps, the one who is asked about first."""

    def __init__(self, size: int, actions: int, width: int = 128):
        super().__init__()
        self.remember, self.answer = nn.GRU(2 * size, width, batch_first=True), nn.Linear(width, actions)

    def forward(self, cells: Tensor) -> Tensor:
        """[B, N, W, D] -> scores [B, N, A] of the next action."""
        both = torch.stack([torch.cat((cells[:, i], cells[:, 1 - i]), -1) for i in range(2)], 1)
        return self.answer(self.remember(both.flatten(0, 1))[0][:, -1]).unflatten(0, (-1, 2))


def store_of(data: Path, part: str) -> TrajectoryStore:
    out = FOLDER / part
    if not (out / "manifest.json").exists():
        dp.import_episodes(Overcooked(data / "overcooked_hh" / f"{part}.npz"), out)
    return TrajectoryStore.open(out)


def seen(windows: WindowBatch, spec: JointSpec) -> tuple[Tensor, Tensor, Tensor]:
    """What is known of windows (the past, the present, the kitchen), which entries that is, and the next actions."""
    cells, size = torch.from_numpy(windows.cells), spec.observation_size
    step, entry = torch.arange(cells.shape[2])[:, None], torch.arange(cells.shape[3])
    known = (step < HISTORY) | ((step == HISTORY) & (entry < size)) | torch.from_numpy(spec.static_mask)[:, None]
    return cells * known, known, cells[:, :, HISTORY, size:].argmax(-1)


def train_recurrent(dataset: TrajectoryDataset, seed: int, steps: int) -> Recurrent:
    torch.manual_seed(seed)
    network, rng = Recurrent(dataset.spec.size, dataset.spec.action_size), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        windows = dataset.sample(256, rng)
        cells, _, action = seen(windows, dataset.spec)
        acts = torch.from_numpy(windows.mask[:, :, HISTORY, -1])
        loss = F.cross_entropy(network(cells[:, :, : HISTORY + 1])[acts], action[acts])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def train_planner(dataset: TrajectoryDataset, seed: int, out: Path, steps: int) -> dp.DiffusionPlanner:
    if (out / "planner").exists():
        return dp.DiffusionPlanner.from_pretrained(out)
    planner = dp.DiffusionPlanner.for_dataset(dataset, patch_size=2, seed=seed)
    dp.train(
        planner, dataset, steps=steps, mix=NEXT_ACTION, start_share=0, action_weight=20,
        seed=seed, out=out, resume=True, progress=False,
    )  # fmt: skip
    return planner


@torch.inference_mode()
def right(dataset: TrajectoryDataset, answers: dict[str, object]) -> dict[str, list[np.ndarray]]:
    """Of each answer and trial [2, L, N]: was a player's next action foreseen, and was it another than the last."""
    size, found = dataset.spec.observation_size, {name: [] for name in answers}
    offsets = np.concatenate([[0], np.cumsum(np.array(dataset.store.lengths)[dataset.episodes])])
    for first, last in pairwise(offsets):
        windows = dataset.batch(np.arange(first, last))
        cells, known, action = seen(windows, dataset.spec)
        before = torch.from_numpy(windows.cells)[:, :, HISTORY - 1, size:].argmax(-1)
        for name, answer in answers.items():
            if isinstance(answer, dp.DiffusionPlanner):
                noise = torch.randn(cells.shape, generator=torch.Generator().manual_seed(0))
                exists = torch.ones_like(cells[:1], dtype=torch.bool)
                estimate = answer.estimator(known[None], exists, len(cells))
                expected = estimate(torch.where(known, cells, noise), 1.0)  # of a choice, that is its probability
                said = answer.normalizer.unnormalize(expected, dataset.spec.role_index)[:, :, HISTORY, size:]
            elif isinstance(answer, Recurrent):
                said = answer(cells[:, :, : HISTORY + 1])
            else:
                said = F.one_hot(torch.full_like(action, int(answer)), dataset.spec.action_size)
            found[name].append(torch.stack((said.argmax(-1) == action, before != action)).numpy())
    return found


def accuracies(trials: list[list[np.ndarray]], changes: bool) -> np.ndarray:
    """[seeds, trials], over all steps or over those at which the action changes."""
    return np.array([[ok[moved].mean() if changes else ok.mean() for ok, moved in seed] for seed in trials])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fold", type=int, choices=range(5), help="be asked about a fifth of the training trials")
    parser.add_argument("--planner-steps", type=int, default=PLANNER_STEPS)
    parser.add_argument("--recurrent-steps", type=int, default=RECURRENT_STEPS)
    arguments = parser.parse_args()
    known = unseen = store_of(arguments.data, "train")
    asked, learned, name = None, None, f"joint_{arguments.planner_steps}"
    if arguments.fold is None:
        unseen = store_of(arguments.data, "test")
    else:
        asked = range(arguments.fold, len(known), 5)
        learned, name = sorted({*range(len(known))} - {*asked}), f"{name}_fold_{arguments.fold}"
    dataset = dp.load_dataset(known.path, HORIZON, HISTORY, normalizer="limits", episodes=learned)
    test = TrajectoryDataset(unseen, HORIZON, HISTORY, normalizer=dataset.normalizer, episodes=asked)
    stay = int(np.argmax(np.concatenate([one.actions.mean((0, 1))[None] for one in known]).mean(0)))
    results = {"joint": [], "GRU": [], "always the commonest": []}
    for seed in range(arguments.seeds):
        planner = train_planner(dataset, seed, FOLDER / f"{name}_{seed}", arguments.planner_steps)
        answers = (planner, train_recurrent(dataset, seed, arguments.recurrent_steps), stay)
        for who, trials in right(test, dict(zip(results, answers, strict=True))).items():
            results[who].append(trials)
    figures, command = [], COMMAND.format(arguments.seeds)

    def figure(label: str, shares: np.ndarray) -> Figure:
        mean = mean_interval(shares.tolist())
        return Figure(label, mean.value, mean.low, mean.high, "share", *shares.shape, command)

    for label, changes in (("overcooked_next_action", False), ("overcooked_change", True)):
        shares = {who: accuracies(trials, changes) for who, trials in results.items()}
        ours, *others = [figure(f"{label}_accuracy", one) for one in shares.values()]
        ours.baselines.update(zip([*results][1:], others, strict=True))
        figures += [ours, figure(f"{label}_ahead", shares["joint"] - shares["GRU"])]
    if arguments.fold is None:
        record(RESULTS / "overcooked.json", figures)
        return
    for one in figures:
        print(one.figure, one.value, {who: other.value for who, other in one.baselines.items()})


if __name__ == "__main__":
    one_thread()
    main()
