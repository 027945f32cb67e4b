"""Following a loss down: a run's optimisers and averaged weights, its metrics and checkpoints."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from diffplan.checkpoints import Kept
from diffplan.metrics import MetricsLog
from diffplan.optimizers import Muon, follow, load_optimizer_tensors, optimizer_tensors

WARMUP_STEPS = 100
BY_MUON = (".blocks.", ".embed_sample.", ".embed_known.", ".embed_present.", ".carry_present.")  # what reads cells, too
GRADIENT_CLIP = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, repr=False)
class TrainingReport:
    """What a run did: the loss of every logged step, seconds, and where the metrics are (if written)."""

    steps: list[int]
    losses: list[float]
    seconds: float
    metrics: Path | None

    def __repr__(self) -> str:
        return f"TrainingReport({fall(self.steps, self.losses)}, {self.seconds:.0f} s)"


def fall(steps: list[int], losses: list[float]) -> str:
    """How far a loss fell, in a few words."""
    return f"loss {losses[0]:.3g} to {losses[-1]:.3g} by step {steps[-1]:,}" if steps else "no step"


def learn(
    run: "DenoiserRun",
    loss_of: Callable[[int], Tensor],
    facts: dict[str, Any],
    folder: Path | None,
    *,
    first: int,
    steps: int,
    learning_rate: float,
    checkpoint_every: int,
    log_every: int,
    tensorboard: bool = False,
    progress: bool = True,
) -> TrainingReport:
    """Follows a loss down, writes metrics and checkpoints; afterwards the networks hold the averaged weights.

    Args:
        run: the networks, as they are at the first step.
        loss_of: a step's loss, a function of nothing but the weights and the step; networks are called within
            ``run.autocast()``.
        facts: what run it is, see ``load_newest``.
        folder: of the run; None keeps everything in memory.
        first: optimiser steps that were done before, by the run that goes on.
        steps: optimiser steps in all, those included.
        learning_rate: see ``train``; likewise the other arguments.
    """
    started, keeping = time.perf_counter(), Kept(folder, first, steps, checkpoint_every, run.tensors, facts)
    with keeping as kept, bar("training", progress, steps, first) as show:
        log = MetricsLog(folder, first, tensorboard)
        for step in range(first, steps):
            loss = loss_of(step)
            rate = learning_rate * _schedule(step, steps)
            with kept.step():
                run.update(loss, rate, step)
                if (step + 1) % log_every == 0 or step + 1 == steps:
                    row = {"step": step + 1, "loss": float(loss.detach()), "learning_rate": rate}
                    log.write(row | {"seconds": time.perf_counter() - started})
            show(step + 1, f"loss {float(loss.detach()):.4f}")
            kept.save_if_due()
    log.close()
    run.networks.load_state_dict(run.ema)
    run.networks.eval()
    rows = [row for row in log.rows if "loss" in row]
    return TrainingReport(
        [row["step"] for row in rows], [row["loss"] for row in rows], time.perf_counter() - started, log.path
    )


class DenoiserRun:
    """Weights, averaged weights and optimisers of a run: all that a checkpoint holds besides the step.

    Args:
        networks: what learns: a denoiser, or one with a partner encoder; ``ema`` holds their averaged weights.
        learning_rate: matrices of the blocks, and those that read cells, learn by Muon (arXiv 2502.16982), all else by
            AdamW (arXiv 1711.05101).
        ema_decay: of the averaged weights, warmed up over the first steps.
        half: compute in bfloat16, optimisers too.
    """

    def __init__(self, networks: nn.Module, learning_rate: float, ema_decay: float, half: bool):
        self.networks, self.ema_decay, self.half = networks, ema_decay, half
        self.parameters = dict(networks.named_parameters())
        if shared := dict(networks.named_parameters(remove_duplicate=False)).keys() - self.parameters:
            raise ValueError(f"{sorted(shared)} are weights that stand elsewhere, too, and cannot be saved; copy them.")
        self.ema = {name: value.detach().clone() for name, value in networks.state_dict().items()}
        named = [(f".{name}", value) for name, value in self.parameters.items()]
        matrices = [value for name, value in named if value.ndim == 2 and any(part in name for part in BY_MUON)]
        others = [value for value in self.parameters.values() if not any(value is one for one in matrices)]
        adam = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True)
        self.optimizers: list[torch.optim.Optimizer] = [adam]
        if matrices:
            dtype = torch.bfloat16 if half else torch.float32
            self.optimizers = [Muon(matrices, learning_rate, weight_decay=WEIGHT_DECAY, dtype=dtype), adam]

    def autocast(self) -> torch.autocast:
        """Around calls of the networks, and nothing else: products of data, too, would be rounded."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(iter(self.parameters.values())).device

    def update(self, loss: Tensor, learning_rate: float, step: int) -> None:
        """One optimiser step down the loss, the ``step``-th one."""
        self.networks.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters.values(), GRADIENT_CLIP)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate
            optimizer.step()
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        follow([self.ema[name] for name in self.parameters], [*self.parameters.values()], decay)
        for name, buffer in self.networks.named_buffers():
            if name in self.ema:  # of those that are saved
                self.ema[name].copy_(buffer)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        tensors = {f"model.{name}": value for name, value in self.networks.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        return tensors | optimizer_tensors(self.optimizers, self.parameters)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes on what ``tensors`` gave."""
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.networks.load_state_dict({name: tensors[f"model.{name}"] for name in self.ema})
        self.ema = {name: tensors[f"ema.{name}"].clone() for name in self.ema}
        load_optimizer_tensors(self.optimizers, self.parameters, tensors)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to 0."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


@contextmanager
def bar(title: str, shown: bool, steps: int, first: int) -> Iterator[Callable[[int, str], None]]:
    """Shows how many of a run's steps are done and the time left, beside what is said of it at each call."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task(title, total=steps, completed=first, told="")
        yield lambda done, told: progress.update(task, completed=done, told=told)
