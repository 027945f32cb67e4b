"""Offline pretraining: the denoiser learns to estimate clean joint trajectories from noisy, partly known ones.

One step: draw windows, draw a question for each (which cells are known), noise every other cell to a level of its own,
``sample = (1 - level) * clean + level * noise``, and regress the clean cells (flow matching with a clean-sample
prediction, arXiv 2210.02747 and 2206.00364). All randomness of a step comes from (seed, step, rank), so a resumed run
is bit-identical.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from diffplan.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from diffplan.datasets.styles import StyleTable
from diffplan.datasets.windows import TrajectoryDataset, WindowBatch
from diffplan.optimizers import Muon
from diffplan.partner_training import LatentSource, takes_latents
from diffplan.planners.estimator import uses_bfloat16
from diffplan.planners.planner import DiffusionPlanner
from diffplan.questions import QuestionMix, draw_forgotten, draw_known, draw_levels, draw_returns, held_beyond_the_end

WARMUP_STEPS = 100
GRADIENT_CLIP = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class TrainingReport:
    """What a run did: the loss of every logged step, seconds, and where the metrics are (if written)."""

    steps: list[int]
    losses: list[float]
    seconds: float
    metrics: Path | None


def train(
    planner: DiffusionPlanner,
    dataset: TrajectoryDataset,
    *,
    steps: int = 3_000,
    batch_size: int = 128,
    learning_rate: float = 8e-3,
    ema_decay: float = 0.999,
    precision: str = "auto",
    mix: QuestionMix | None = None,
    start_share: float = 0.25,
    styles: StyleTable | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1_000,
    log_every: int = 50,
    compile: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> TrainingReport:
    """Trains a planner's denoiser in place; afterwards it holds the averaged weights.

    Args:
        planner: from ``DiffusionPlanner.for_dataset(dataset)``.
        dataset: windows to learn from.
        steps: optimiser steps in all, also when resumed.
        batch_size: windows a step, over all processes (start several with torchrun).
        learning_rate: peak of a schedule with linear warm-up and cosine decay to 0. The blocks' matrices learn by Muon
            (arXiv 2502.16982), all else by AdamW (arXiv 1711.05101).
        ema_decay: of the averaged weights, warmed up over the first steps.
        precision: ``"float32"``, ``"bfloat16"`` (autocast), or ``"auto"``: bfloat16 where the processor computes it.
        mix: how often each question is asked.
        start_share: share of the windows that begin where an episode does. There the team has not chosen its joint way
            yet, and choosing together is learned only there; drawn uniformly such windows are a few in a hundred.
        styles: who is a partner and of which style; a planner that takes latents but has no partner encoder needs them.
        seed: of everything random.
        out: folder for the planner, ``metrics.jsonl`` and checkpoints; None keeps everything in memory.
        resume: continue from the newest checkpoint in ``out``, bit-identically at the same thread count.
        checkpoint_every: steps between two checkpoints.
        log_every: steps between two lines of metrics.
        compile: use ``torch.compile`` (slow to start, faster steps).
        tensorboard: also write TensorBoard event files to ``out/tensorboard``.
        progress: show a bar with the time left.

    Raises:
        ValueError: planner and dataset do not fit, or the checkpoint is of another run.
        FloatingPointError: a loss is not finite; the message names the step and the windows.
    """
    _check(planner, dataset, out, resume, start_share)
    _check_positive(steps=steps, batch_size=batch_size, checkpoint_every=checkpoint_every, log_every=log_every)
    half = uses_bfloat16(precision, torch.cuda.is_available())
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    check_world_size(accelerator.num_processes)
    if batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size={batch_size} does not divide among {accelerator.num_processes} processes.")
    mix = mix or QuestionMix()
    facts = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "ema_decay": ema_decay,
        "bfloat16": half,
        "seed": seed,
        "mix": asdict(mix),
        "start_share": start_share,
        "data": dataset.store.fingerprint,
        "windows": [len(dataset), dataset.history, dataset.horizon, dataset.stride],
        "normalizer": planner.normalizer.config.kind,
        "denoiser": {k: v for k, v in planner.denoiser.config.items() if not k.startswith("_")},
    }
    denoiser, encoder = planner.denoiser.train(), planner.partner_encoder
    facts |= {"partner_encoder": {k: v for k, v in encoder.config.items() if not k.startswith("_")}} if encoder else {}
    networks = nn.ModuleDict({"denoiser": denoiser, "encoder": encoder.train()}) if encoder else denoiser
    model: nn.Module = accelerator.prepare(torch.compile(denoiser) if compile else denoiser)
    run = _Run(networks, learning_rate, ema_decay, half)
    first = run.resume(Path(out), facts) if resume and out is not None else 0
    latents = (
        LatentSource(encoder and accelerator.prepare(encoder), styles, mix) if takes_latents(planner, styles) else None
    )
    loss_of = _Loss(
        model, planner, dataset, mix, start_share, batch_size // accelerator.num_processes, seed, accelerator, latents
    )
    log = _Log(Path(out) if out is not None and accelerator.is_main_process else None, first, tensorboard)
    started = time.perf_counter()
    with _bar(progress and accelerator.is_main_process, steps, first) as advance:
        for step in range(first, steps):
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half):
                loss = loss_of(step)
            run.update(loss, accelerator, learning_rate * _schedule(step, steps), step)
            if (step + 1) % log_every == 0 or step + 1 == steps:
                log.write(step + 1, float(loss.detach()), learning_rate * _schedule(step, steps), started)
            advance(float(loss.detach()))
            if out is not None and accelerator.is_main_process and (step + 1) % checkpoint_every == 0:
                run.save(Path(out), step + 1, facts)
    log.close()
    networks.load_state_dict(run.ema)
    networks.eval()
    if out is not None and accelerator.is_main_process:
        planner.save_pretrained(Path(out) / "planner")
    return TrainingReport(log.steps, log.losses, time.perf_counter() - started, log.path)


class _Loss:
    """One step's loss, a function of nothing but the weights and the step."""

    def __init__(
        self,
        model: nn.Module,
        planner: DiffusionPlanner,
        dataset: TrajectoryDataset,
        mix: QuestionMix,
        start_share: float,
        batch_size: int,
        seed: int,
        accelerator: Accelerator,
        latents: LatentSource | None,
    ):
        self.latents = latents
        self.model, self.dataset, self.mix, self.batch_size = model, dataset, mix, batch_size
        self.start_share = start_share
        self.seed, self.rank, self.device = seed, accelerator.process_index, accelerator.device
        self.patch_size = planner.denoiser.config.patch_size
        self.static, self.features = map(torch.from_numpy, (dataset.spec.static_mask, dataset.spec.feature_mask))
        self.roles = torch.from_numpy(dataset.spec.role_index).to(self.device)
        takes_returns = planner.denoiser.config.return_conditioning
        self.return_ranks = torch.from_numpy(dataset.return_ranks) if takes_returns else None

    def __call__(self, step: int) -> Tensor:
        rng = np.random.default_rng([self.seed, step, self.rank])
        windows = self.dataset.sample(self.batch_size, rng, self.start_share)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        exists, size = torch.from_numpy(windows.mask), self.dataset.spec.observation_size
        clean, shown = held_beyond_the_end(
            torch.from_numpy(windows.cells), exists, self.features, self.dataset.history, size
        )
        partners = None if self.latents is None else self.latents.partners(windows)
        known = draw_known(self.mix, shown, self.static, self.dataset.history, size, generator, partners)
        past, seen = clean[:, :, : self.dataset.history + 1], known[:, :, : self.dataset.history + 1]
        forgotten = draw_forgotten(self.mix, len(known), self.dataset.history, known.shape[2], generator)
        clean, shown, known = clean.masked_fill(forgotten, 0), shown & ~forgotten, known & ~forgotten
        unknown = shown & ~known
        levels = draw_levels(self.mix, unknown.any(-1), self.patch_size, generator)
        noise = torch.randn(clean.shape, generator=generator)
        sample = torch.where(unknown, torch.lerp(clean, noise, levels[..., None]), clean)
        learned = unknown & exists
        clean, shown, known, learned, levels, sample = (
            tensor.to(self.device) for tensor in (clean, shown, known, learned, levels, sample)
        )
        told = None
        if self.return_ranks is not None:
            told = draw_returns(self.mix, self.return_ranks[windows.episode], generator).to(self.device)
        latents, extra = None, torch.zeros((), device=self.device)
        if self.latents is not None:
            latents, extra = self.latents(past.to(self.device), seen.to(self.device), self.roles, windows, generator)
        estimate = self.model(sample, levels, known, self.roles, shown.any(-1), told, latents)
        weight = 1 / levels.clamp(min=0.05)[..., None]
        loss = (weight * (estimate.float() - clean).square() * learned).sum() / (weight * learned).sum().clamp(min=1e-6)
        loss = loss + extra
        if not torch.isfinite(loss):
            raise FloatingPointError(_diagnosis(step, windows, estimate))
        return loss


def _diagnosis(step: int, windows: WindowBatch, estimate: Tensor) -> str:
    """Where a loss that is not finite comes from."""
    bad = np.argwhere(~np.isfinite(windows.cells))
    if len(bad):
        b, n, w, d = bad[0]
        place = f"episode {windows.episode[b]}, step {windows.step[b]} + {w}, agent {n}, entry {d}"
        return f"training step {step}: the data are not finite at {place}; run `diffplan data verify` on the store."
    finite = int(torch.isfinite(estimate).all(dim=(1, 2, 3)).sum())
    return (
        f"training step {step}: the loss is not finite, though the data are ({finite} of {len(estimate)} windows "
        "have finite estimates); lower learning_rate or use precision='float32'."
    )


class _Run:
    """Weights, averaged weights and optimisers of a run: all that a checkpoint holds besides the step."""

    def __init__(self, networks: nn.Module, learning_rate: float, ema_decay: float, half: bool):
        self.networks, self.ema_decay = networks, ema_decay
        self.parameters = dict(networks.named_parameters())
        self.ema = {name: value.detach().clone() for name, value in networks.state_dict().items()}
        hidden = [value for name, value in self.parameters.items() if ".blocks." in f".{name}" and value.ndim == 2]
        others = [value for value in self.parameters.values() if not any(value is one for one in hidden)]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(hidden, learning_rate, weight_decay=WEIGHT_DECAY, dtype=torch.bfloat16 if half else torch.float32),
            torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True),
        ]

    def update(self, loss: Tensor, accelerator: Accelerator, learning_rate: float, step: int) -> None:
        self.networks.zero_grad()
        accelerator.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters.values(), GRADIENT_CLIP)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate
            optimizer.step()
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        averaged = [self.ema[name] for name in self.parameters]
        torch._foreach_lerp_(averaged, [p.detach() for p in self.parameters.values()], 1 - decay)

    def save(self, out: Path, step: int, facts: dict[str, Any]) -> None:
        tensors = {f"model.{name}": value for name, value in self.networks.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self._moments(parameter).items()}
        save_checkpoint(out / "checkpoints", step, tensors, {"run": facts})

    def resume(self, out: Path, facts: dict[str, Any]) -> int:
        """Loads the newest checkpoint and returns its step. Raises ``ValueError`` when it is of another run."""
        found = checkpoints(out / "checkpoints")
        if not found:
            return 0
        tensors, manifest = load_checkpoint(found[-1])
        differing = [key for key, value in facts.items() if manifest["run"].get(key) != json.loads(json.dumps(value))]
        if differing:
            theirs = {key: manifest["run"].get(key) for key in differing}
            raise ValueError(
                f"{found[-1]} is of another run: {theirs} there, { ({key: facts[key] for key in differing}) } here; "
                "resume with the same settings and data, or choose another folder."
            )
        tensors = {name: tensor.to(next(iter(self.ema.values())).device) for name, tensor in tensors.items()}
        self.networks.load_state_dict({name: tensors[f"model.{name}"] for name in self.ema})
        self.ema = {name: tensors[f"ema.{name}"] for name in self.ema}
        for name, parameter in self.parameters.items():
            keys = [key.removesuffix(f"/{name}") for key in tensors if key.endswith(f"/{name}")]
            self._moments(parameter).update({key: tensors[f"{key}/{name}"] for key in keys})
        return int(manifest["step"])

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What the optimiser of a parameter remembers about it."""
        mine = (one for one in self.optimizers if any(parameter is other for other in one.param_groups[0]["params"]))
        return next(mine).state[parameter]


class _Log:
    """Metrics of a run: kept in memory, appended to ``metrics.jsonl``, and to TensorBoard if asked."""

    def __init__(self, out: Path | None, first: int, tensorboard: bool):
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.path = None if out is None else out / "metrics.jsonl"
        self.writer = _tensorboard_writer(out) if tensorboard and out is not None else None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text().splitlines() if first and self.path.exists() else []
            kept = [line for line in lines if json.loads(line)["step"] <= first]
            self.path.write_text("".join(line + "\n" for line in kept))
            self.steps, self.losses = [json.loads(x)["step"] for x in kept], [json.loads(x)["loss"] for x in kept]

    def write(self, step: int, loss: float, learning_rate: float, started: float) -> None:
        self.steps.append(step)
        self.losses.append(loss)
        if self.path is not None:
            row = {"step": step, "loss": loss, "learning_rate": learning_rate, "seconds": time.perf_counter() - started}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.writer is not None:
            self.writer.add_scalar("loss", loss, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _tensorboard_writer(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('TensorBoard is missing; install it with: pip install "diffplan[track]"') from error
    return SummaryWriter(str(out / "tensorboard"))


def check_world_size(num_processes: int) -> None:
    """Raises ``RuntimeError`` when fewer processes joined than a launcher asked for (``accelerate launch --cpu``)."""
    for name in ("WORLD_SIZE", "ACCELERATE_NUM_PROCESSES"):
        asked = int(os.environ.get(name, num_processes))
        if asked != num_processes:
            raise RuntimeError(
                f"{name}={asked}, but {num_processes} process(es) joined; start with "
                f"`torchrun --nproc_per_node {asked} -m diffplan train ...`."
            )


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}; it must be at least 1.")


def _check(
    planner: DiffusionPlanner, dataset: TrajectoryDataset, out: str | Path | None, resume: bool, start_share: float
) -> None:
    if out is not None and not resume and checkpoints(Path(out) / "checkpoints"):
        raise ValueError(f"{out} already holds a run; pass resume=True to go on with it, or choose another folder.")
    if resume and out is None:
        raise ValueError("resume=True needs out=, the folder of the run to continue.")
    if not 0 <= start_share <= 1:
        raise ValueError(f"start_share={start_share}; it is a share of the windows, 0 to 1.")
    if (planner.horizon, planner.history) != (dataset.horizon, dataset.history):
        raise ValueError(
            f"the planner has horizon={planner.horizon}, history={planner.history}, the dataset "
            f"horizon={dataset.horizon}, history={dataset.history}; load the dataset with the planner's."
        )
    planner.spec.check_same_roles(dataset.spec, "the planner", "the dataset")
    theirs = dataset.normalizer and dataset.normalizer.config
    if theirs is None or any(planner.normalizer.config[key] != theirs[key] for key in ("center", "scale")):
        raise ValueError(
            "the dataset is normalised otherwise than the planner; load it with normalizer=planner.normalizer."
        )


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to 0."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


@contextmanager
def _bar(shown: bool, steps: int, first: int) -> Iterator[Any]:
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    with Progress(*columns, disable=not shown) as bar:
        task = bar.add_task("training", total=steps, completed=first, loss=math.nan)
        yield lambda loss: bar.update(task, advance=1, loss=loss)
