"""Training of a fixed number of futures by the best of them (multiple hypotheses, arXiv 1612.00197).

One step: of every window the network draws all futures, from nothing but what is known; the one that is nearest to what
happened, or now and then any other, learns from it. So each comes to stand for the part of what may happen to which it
is nearest, at its middle. All randomness of a step comes from (seed, step), so a resumed run is bit-identical.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffplan.augmentation import Augmentation
from diffplan.checkpoints import check_out, load_newest
from diffplan.checks import check_counts
from diffplan.datasets.windows import TrajectoryDataset
from diffplan.exercises import Exercise, Exercises
from diffplan.planners.estimator import uses_bfloat16
from diffplan.planners.futures import Futures
from diffplan.questions import QuestionMix
from diffplan.training import check_planner_fits, diagnosis
from diffplan.training_loop import DenoiserRun, TrainingReport, learn

BESIDE = 0.1  # what errors count of agents that do not say which future is nearest
OTHERS = (0.5, 0.02)  # how often any future learns instead of the nearest: at first, and from half the steps on


def train_futures(
    futures: Futures,
    dataset: TrajectoryDataset,
    *,
    steps: int = 3_000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    ema_decay: float = 0.999,
    mix: QuestionMix | None = None,
    start_share: float = 0.0,
    roles: Sequence[str] | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1_000,
    log_every: int = 50,
    progress: bool = True,
) -> TrainingReport:
    """Trains futures in place; afterwards their network holds the averaged weights.

    Losses are distances to what happened of the futures that learned, in the normaliser's units: the root of an agent's
    squared errors of a step, all entries together, as displacement errors are where these are positions.

    Args:
        futures: from ``Futures.of`` a trained planner.
        dataset: windows to learn from; those of the planner's training.
        steps: optimiser steps in all, also when resumed. One takes as long as ``futures.count / 3`` of ``train``'s.
        batch_size: windows a step.
        learning_rate: as of ``train``.
        ema_decay: of the averaged weights.
        mix: how often each question is asked.
        start_share: as of ``train``.
        roles: who is to be foreseen; None: everybody. Their errors say which joint future is nearest (where none of
            them is there, everybody's), those of others count a tenth.
        augmentation: as of ``train``.
        seed: of everything random.
        out: folder for the planner, ``metrics.jsonl`` and checkpoints; None keeps everything in memory.
        resume: continue from the newest checkpoint in ``out``, bit-identically at the same thread count.
        checkpoint_every: steps between two checkpoints; there is one at the end, too, and one when interrupted.
        log_every: steps between two lines of metrics.
        progress: show a bar with the time left.

    Raises:
        TypeError: a planner in place of futures.
        ValueError: futures and dataset do not fit, or the checkpoint is of another run.
        FloatingPointError: a loss is not finite; the message names the step and the windows.
    """
    if not isinstance(futures, Futures):
        raise TypeError(
            f"futures is a {type(futures).__name__}; make them of a planner, Futures.of(planner, count=20)."
        )
    planner, spec = futures.planner, dataset.spec
    check_out(out, resume)
    check_planner_fits(planner, dataset)
    check_counts(seed, steps=steps, batch_size=batch_size, checkpoint_every=checkpoint_every, log_every=log_every)
    if not (0 < learning_rate < math.inf and 0 <= ema_decay < 1 and 0 <= start_share <= 1):
        told = f"learning_rate={learning_rate}, ema_decay={ema_decay}, start_share={start_share}"
        raise ValueError(f"{told}; the first is above 0, the second 0 to below 1, the third a share, 0 to 1.")
    if roles is not None and (isinstance(roles, str) or not roles or not {*roles} <= {*spec.roles}):
        raise ValueError(f"roles={roles!r}; give some of {[*spec.roles]}, or None for all.")
    if augmentation is not None:
        augmentation.check(spec, planner.normalizer.config.kind)
    mix, device = mix or QuestionMix(), planner.device
    half = uses_bfloat16("auto", device.type == "cuda")
    facts = {
        "count": futures.count,
        "per_agent": futures.per_agent,
        "roles": roles and [*roles],
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "ema_decay": ema_decay,
        "start_share": start_share,
        "bfloat16": half,
        "seed": seed,
        "mix": asdict(mix),
        "data": dataset.store.fingerprint,
        "windows": dataset.facts,
        "normalizer": planner.normalizer.fingerprint,
        "denoiser": planner.denoiser.settings,
        "augmentation": augmentation and asdict(augmentation),
    }
    denoiser = planner.denoiser.train()
    run = DenoiserRun(denoiser, learning_rate, ema_decay, half)
    folder = None if out is None else Path(out)
    first = load_newest(folder, facts, run.load) if resume and folder else 0
    exercises = Exercises(
        spec,
        dataset.history,
        denoiser.config.patch_size,
        mix,
        augmentation=augmentation,
        device=device,
        position=denoiser.config.position,
    )
    chooses = torch.tensor([roles is None or role in roles for role in spec.agents.values()], device=device)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        windows = dataset.sample(batch_size, rng, start_share)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        exercise = exercises(windows, generator)
        with run.autocast():
            loss = _loss(futures, exercise, chooses[: exercise.clean.shape[1]], step / steps, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(diagnosis(f"training step {step}", windows))
        return loss

    report = learn(
        run,
        loss_of,
        facts,
        folder,
        first=first,
        steps=steps,
        learning_rate=learning_rate,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        progress=progress,
    )
    if folder is not None:
        futures.save_pretrained(folder / "planner")
    return report


def _loss(futures: Futures, exercise: Exercise, chooses: Tensor, progress: float, generator: torch.Generator) -> Tensor:
    """How far off those futures are that learn from each window."""
    B, N, S, alone = *exercise.clean.shape[:2], futures.count, futures.per_agent
    open_ = exercise.levels > 0
    known = exercise.known | ~open_[..., None]
    asked = replace(exercise, sample=exercise.clean * known, levels=open_.float())
    order = torch.arange(S).expand(B, N, S)
    if alone:  # of agents side by side not the same ones
        order = torch.rand(B, N, S, generator=generator).argsort(-1)
    order = order.to(exercise.clean.device)
    with torch.no_grad():
        off = torch.stack([_distances(futures, asked, order[..., s]) for s in range(S)])  # [S, B, N]
    torch.clear_autocast_cache()  # of casts without gradients, which older versions of torch would use below
    asks = (exercise.learned.any(-1).any(-1) & chooses).any(-1, keepdim=True)  # else everybody's errors say it
    nearest = (off if alone else (off * (chooses | ~asks)).sum(-1, keepdim=True)).argmin(0)
    often = max(OTHERS[1], OTHERS[0] * (1 - 2 * progress))
    other, any_ = torch.rand(2, *nearest.shape, generator=generator).to(nearest.device)
    learning = torch.where(other < often, (any_ * S).long(), nearest).expand(B, N)
    off = _distances(futures, asked, order.gather(2, learning[..., None])[..., 0])
    counts = torch.where(chooses, 1.0, BESIDE)
    steps = exercise.learned.any(-1).sum(-1)
    return (off * counts).sum() / (steps * counts).sum().clamp(min=1)


def _distances(futures: Futures, asked: Exercise, which: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """How far each agent's drawn future is from what happened, added up over the steps to be foreseen."""
    told = replace(asked, latents=torch.nn.functional.one_hot(which, futures.count).float())
    wrong = (told.estimate(futures.planner.denoiser) - asked.clean) * asked.learned
    return (wrong.square().sum(-1) + 1e-6).sqrt().mul(asked.learned.any(-1)).sum(-1)
