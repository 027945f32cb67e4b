"""Training of a value function by implicit Q-learning (arXiv 2110.06169), and, with a ``reach``, a little beyond it.

Without one no action outside the data is valued; with one V is of actions moved uphill from those of the data.

One step draws joint transitions; all randomness of it comes from (seed, step). With ``advantage = min Q(o, a) - V(o)``
of the team, by critics that follow slowly:

    V regresses   min Q(o, a) of the followers, a moved uphill within ``reach``; errors weighted by ``expectile`` where
                  the advantage is positive, else by ``1 - expectile``
    Q regresses   the rewards of the transition's n steps + discount^n V(o')
    reward        regresses the reward of the step

The weight is one for the team, so that agents' values add up to the team's expectile exactly.
"""

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from rich.progress import track
from torch import Tensor

from diffplan.checkpoints import Kept, check_out, load_newest
from diffplan.checks import check_counts
from diffplan.datasets.transitions import TransitionBatch, reward_statistics, take_transitions
from diffplan.datasets.windows import TrajectoryDataset, check_windows
from diffplan.metrics import MetricsLog
from diffplan.models.value import ValueFunction, lower_twin, uphill
from diffplan.optimizers import follow, load_optimizer_tensors, optimizer_tensors
from diffplan.planners.components import check_value
from diffplan.planners.estimator import check_default_dtype
from diffplan.planners.refinement import normalized_bounds
from diffplan.spec import JointSpec
from diffplan.training_loop import fall

WEIGHT_DECAY = 0.01
ASCENT_STEPS = 2
PARTS = ("state", "action", "reward")  # of the loss


@dataclass(frozen=True, repr=False)
class ValueReport:
    """What a run did: the loss of every logged step and its parts (mean squared errors, normalised), and seconds.

    ``plot_learning_curve`` draws it.
    """

    steps: list[int]
    losses: list[float]
    parts: dict[str, list[float]]
    seconds: float

    def __repr__(self) -> str:
        return f"ValueReport({fall(self.steps, self.losses)}, {self.seconds:.0f} s)"


def train_value(
    value: ValueFunction,
    dataset: TrajectoryDataset,
    *,
    steps: int = 5_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    expectile: float | None = None,
    target_rate: float = 0.005,
    return_steps: int = 3,
    reach: float = 0.0,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1_000,
    log_every: int = 50,
    progress: bool = True,
) -> ValueReport:
    """Trains a value function in place.

    Args:
        value: from ``ValueFunction.for_dataset(dataset)``.
        dataset: its windows' presents are the steps to learn from; its normaliser must be the planner's.
        steps: optimiser steps in all, also when resumed.
        batch_size: joint transitions a step.
        learning_rate: of AdamW (arXiv 1711.05101), decaying to 0 by a cosine.
        expectile: 0.5 values what the data do on average, more the better part of it; below 1. None: 0.8, or 0.5 with a
            ``reach``, which looks for better actions instead of waiting for them.
        target_rate: share of the networks that their follower takes on at every step.
        return_steps: up to how many steps' rewards are taken from the data before V is trusted (n; 1 in the paper).
            More carry late rewards back in fewer optimiser steps, but value the data's own way on these steps instead
            of its better part. First actions refined by critics of medium data (simple_spread, 6,000 steps, one seed,
            100 episodes) scored 77 with 1, 83 with 3, 80 with 10.
        reach: how far V moves the data's actions uphill before it values them, in units of the normaliser (standard
            deviations, for a Gaussian one): for a policy that will refine actions about twice as far. 0 values no
            action outside the data. (Two steps of ascent, which end up to half a reach beside the top: V is cautious.)
        seed: of everything random.
        out: folder for ``metrics.jsonl`` and checkpoints; None keeps everything in memory.
        resume: continue from the newest checkpoint in ``out``, bit-identically at the same thread count.
        checkpoint_every: steps between two checkpoints; there is one at the end, too, and one when interrupted.
        log_every: steps between two lines of the report.
        progress: show a bar.

    Raises:
        ValueError: value function and dataset do not fit, all returns in it are the same, or the checkpoint is of
            another run.
        FloatingPointError: a loss is not finite; the message names the step and the place.
    """
    expectile = default_expectile(reach) if expectile is None else expectile
    _check(value, dataset, learning_rate, expectile, target_rate, reach)
    check_out(out, resume)
    dataset = dataset.every_step()
    settings = {"steps": steps, "batch_size": batch_size, "return_steps": return_steps}
    check_counts(seed, **settings, log_every=log_every, checkpoint_every=checkpoint_every)
    value.train()
    learner = ValueLearner(value, dataset, learning_rate, expectile, target_rate, reach)
    facts = settings | {
        "learning_rate": learning_rate,
        "expectile": expectile,
        "target_rate": target_rate,
        "reach": reach,
        "seed": seed,
        "data": dataset.store.fingerprint,
        "windows": [dataset.digest, dataset.stride, dataset.inside and [dataset.history, dataset.horizon]],
        "normalizer": dataset.normalizer and dataset.normalizer.fingerprint,
        "value_function": value.settings,
    }
    folder = None if out is None else Path(out)
    first = load_newest(folder, facts, learner.load) if resume and folder else 0
    started = time.perf_counter()
    with Kept(folder, first, steps, checkpoint_every, learner.tensors, facts) as kept:
        log = MetricsLog(folder, first)
        for step in track(range(first, steps), "value function", disable=not progress):
            indices = dataset.draw(batch_size, np.random.default_rng([seed, step]))
            batch = take_transitions(dataset, indices, value.config.discount, return_steps)
            learner.optimizer.param_groups[0]["lr"] = learning_rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            with kept.step():
                parts = learner.update(batch, step)
                if (step + 1) % log_every == 0 or step + 1 == steps:
                    row = {name: float(part.detach()) for name, part in parts.items()}
                    log.write({"step": step + 1, "loss": sum(row.values()), **row})
            kept.save_if_due()
    value.eval()
    found = {name: [row[name] for row in log.rows] for name in ("step", *PARTS)}
    logged = found.pop("step")
    losses = [sum(row) for row in zip(*found.values(), strict=True)]
    return ValueReport(logged, losses, found, time.perf_counter() - started)


def default_expectile(reach: float) -> float:
    """The better part of what was done, or, where better actions are looked for, their mean."""
    return 0.5 if reach else 0.8


class ValueLearner:
    """The state of a value function's training: optimiser and a follower, its slow average; one ``update`` is one step.

    Args:
        value: learns.
        dataset: like the one that the transitions are from: tells of the agents and their actions' bounds.
        learning_rate: see ``train_value``; also ``expectile``, ``target_rate`` and ``reach``.
        partners: whose actions stay as they were, whatever the reach; None: nobody's.

    The attribute ``price`` is what moves within the reach must gain, see ``uphill``: nothing, unless it is set.
    """

    def __init__(
        self,
        value: ValueFunction,
        dataset: TrajectoryDataset,
        learning_rate: float,
        expectile: float,
        target_rate: float,
        reach: float = 0.0,
        partners: Bool[np.ndarray, "N"] | None = None,
    ):
        if dataset.normalizer is None:
            raise ValueError("the dataset has no normalizer; load it with the planner's.")
        self.value, self.spec, self.target_rate = value, dataset.spec, target_rate
        self.expectile, self.reach, self.price = expectile, reach, 0.0
        self.follower = copy.deepcopy(value).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(value.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        movable = self.spec.feature_mask[:, self.spec.observation_size :].astype(np.float32)
        if partners is not None:
            movable[partners] = 0
        self.movable, self.bounds, self.roles = (
            torch.from_numpy(array).to(value.device)
            for array in (movable, normalized_bounds(self.spec, dataset.normalizer), self.spec.role_index)
        )

    def update(self, batch: TransitionBatch, step: int) -> dict[str, Tensor]:
        """Takes one step and returns its losses. Raises ``FloatingPointError`` when one of them is not finite."""
        parts = self.losses(batch)
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(_diagnosis(step, batch, self.spec, parts))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        follow([*self.follower.parameters()], [*self.value.parameters()], 1 - self.target_rate)
        return parts

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The three regressions of a step; each trains networks of its own."""
        value, roles, scale = self.value, self.roles, self.value.config.reward_scale
        arrays = (batch.observations, batch.actions, batch.mask, batch.rewards, batch.returns, batch.next_observations)
        seen, done, mask, rewards, returns, then = (torch.from_numpy(array).to(value.device) for array in arrays)
        next_mask, discounts = (
            torch.from_numpy(array).to(value.device) for array in (batch.next_mask, batch.discounts)
        )
        better, limits = done, self.reach * self.movable
        if limits.any():
            better = uphill(
                self.follower.critics, seen, done, roles, mask, limits, self.bounds, ASCENT_STEPS, self.price
            )
        with torch.no_grad():
            followed = lower_twin(self.follower.action_values(seen, better, roles, mask))
            target = returns / scale + discounts[:, None] * value.state_values(then, roles, next_mask)
        agents = mask.sum().clamp(min=1)
        advantage = (followed - value.state_values(seen, roles, mask)) * mask
        weight = torch.where(advantage.detach().sum(-1) > 0, self.expectile, 1 - self.expectile)
        critic = (value.action_values(seen, done, roles, mask) - target).square() * mask
        reward = (value.rewards(seen, done, roles, mask) - rewards / scale).square() * mask
        return {
            "state": (weight[:, None] * advantage.square()).sum() / agents,
            "action": critic.sum() / agents,
            "reward": reward.sum() * (scale / value.config.reward_std) ** 2 / agents,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next update depends on, by name."""
        found = {f"value.{name}": tensor for name, tensor in self.value.state_dict().items()}
        found |= {f"follower.{name}": tensor for name, tensor in self.follower.state_dict().items()}
        return found | optimizer_tensors([self.optimizer], dict(self.value.named_parameters()))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes on what ``tensors`` gave."""
        self.value.load_state_dict({name: tensors[f"value.{name}"] for name in self.value.state_dict()})
        self.follower.load_state_dict({name: tensors[f"follower.{name}"] for name in self.follower.state_dict()})
        load_optimizer_tensors([self.optimizer], dict(self.value.named_parameters()), tensors)


def _diagnosis(step: int, batch: TransitionBatch, spec: JointSpec, parts: dict[str, Tensor]) -> str:
    """Where a loss that is not finite comes from."""
    for name in ("observations", "actions", "returns", "next_observations"):
        values = getattr(batch, name)
        exists = batch.next_mask if name == "next_observations" else batch.mask
        bad = np.argwhere(~np.isfinite(values.reshape(*exists.shape, -1)).all(-1) & exists)
        if len(bad):
            b, n = bad[0]
            return (
                f"value training step {step}: {name} are not finite at episode {batch.episode[b]}, step "
                f"{batch.step[b]}, agent {spec.names[n]!r}; run `diffplan data verify` on the store."
            )
    diverged = [name for name, part in parts.items() if not torch.isfinite(part)]
    return (
        f"value training step {step}: the loss of {diverged} is not finite, though the data are; "
        "lower learning_rate or target_rate."
    )


def check_fits(value: ValueFunction, dataset: TrajectoryDataset) -> None:
    """Raises unless these are windows, normalised, of cells for which the value function was made."""
    check_windows(dataset)
    check_default_dtype()
    if dataset.normalizer is None:
        raise ValueError("the dataset has no normalizer; load it with the planner's, normalizer=planner.normalizer.")
    check_value(value, dataset.spec, str(dataset.store.path))


def _check(
    value: ValueFunction,
    dataset: TrajectoryDataset,
    learning_rate: float,
    expectile: float,
    target_rate: float,
    reach: float,
) -> None:
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate={learning_rate}; it must be a positive number.")
    if not 0 < expectile < 1:
        raise ValueError(f"expectile={expectile}; choose more than 0 and less than 1, e.g. 0.7.")
    if not 0 < target_rate <= 1:
        raise ValueError(f"target_rate={target_rate}; choose more than 0 and at most 1, e.g. 0.005.")
    if not 0 <= reach < float("inf"):
        raise ValueError(f"reach={reach}; give 0 (only the data's actions) or more, e.g. 0.5.")
    check_fits(value, dataset)
    reward_statistics(dataset, value.config.discount)  # raises where there is nothing to learn
