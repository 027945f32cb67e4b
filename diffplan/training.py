"""Offline pretraining: the denoiser learns to estimate clean joint trajectories from noisy, partly known ones.

One step: draw windows, make exercises of them (``exercises.py``), and regress the clean cells. All randomness of a step
comes from (seed, step, rank), so a resumed run is bit-identical.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffplan.augmentation import Augmentation
from diffplan.checkpoints import check_out, load_newest
from diffplan.checks import check_counts
from diffplan.datasets.statistics import Statistics
from diffplan.datasets.styles import StyleTable
from diffplan.datasets.windows import TrajectoryDataset, WindowBatch, check_horizon, check_windows
from diffplan.exercises import CHANGE_WEIGHT, Exercises
from diffplan.partner_training import LatentSource, takes_latents
from diffplan.planners.action_spread import action_spread
from diffplan.planners.estimator import check_default_dtype, uses_bfloat16
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.sampling import check_scheduler
from diffplan.questions import QuestionMix
from diffplan.training_loop import DenoiserRun, TrainingReport, learn

_LOOKED_AT = 20  # episodes whose static entries are checked before training


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
    change_weight: float = CHANGE_WEIGHT,
    action_weight: float = 1.0,
    styles: StyleTable | None = None,
    augmentation: Augmentation | None = None,
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
        learning_rate: peak of a schedule with linear warm-up and cosine decay to 0. Matrices of the blocks, and
            those that read cells, learn by Muon (arXiv 2502.16982), all else by AdamW (arXiv 1711.05101).
        ema_decay: of the averaged weights, warmed up over the first steps.
        precision: ``"float32"``, ``"bfloat16"`` (autocast), or ``"auto"``: bfloat16 where the processor computes it.
        mix: how often each question is asked.
        start_share: share of the windows that begin where an episode does. There the team has not chosen its joint way
            yet, and choosing together is learned only there; drawn uniformly such windows are a few in a hundred.
        change_weight: what errors of changes from step to step count beside errors of the entries themselves, see
            ``exercises.py``; 0: nothing.
        action_weight: what an error of an action's entry counts beside one of an observation's (as in Diffuser, arXiv
            2205.09991). Where observations are wide, let it be about how many times as wide: actions drown otherwise.
        styles: who is a partner and of which style, for a planner that takes latents; one that does but has no partner
            encoder needs them.
        augmentation: how windows are turned, mirrored and scaled before they are learned; None: not at all.
        seed: of everything random.
        out: folder for the planner, ``metrics.jsonl`` and checkpoints; None keeps everything in memory.
        resume: continue from the newest checkpoint in ``out``, bit-identically at the same thread count.
        checkpoint_every: steps between two checkpoints; there is one at the end, too, and one when interrupted.
        log_every: steps between two lines of metrics.
        compile: use ``torch.compile`` (slow to start, faster steps).
        tensorboard: also write TensorBoard event files to ``out/tensorboard``.
        progress: show a bar with the time left.

    Raises:
        ValueError: planner and dataset do not fit, entries that the spec calls static change in the first episodes, or
            the checkpoint is of another run.
        TypeError: a store in place of its windows.
        ImportError: TensorBoard is missing.
        RuntimeError: fewer processes joined than a launcher started.
        FloatingPointError: a loss is not finite; the message names the step and the windows.
    """
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "ema_decay": ema_decay,
        "seed": seed,
        "start_share": start_share,
        "change_weight": change_weight,
        "action_weight": action_weight,
    }
    check_out(out, resume)
    if tensorboard and out is None:
        raise ValueError("tensorboard=True needs out=, the folder for its files.")
    check_counts(seed, steps=steps, batch_size=batch_size, checkpoint_every=checkpoint_every, log_every=log_every)
    _check(planner, dataset, styles, augmentation, settings)
    half = uses_bfloat16(precision, torch.cuda.is_available())
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    check_world_size(accelerator.num_processes)
    if batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size={batch_size} does not divide among {accelerator.num_processes} processes.")
    mix, has_latents, encoder = mix or QuestionMix(), takes_latents(planner, styles), planner.partner_encoder
    facts = settings | {
        "bfloat16": half,
        "mix": asdict(mix),
        "styles": styles and styles.fingerprint,
        "data": dataset.store.fingerprint,
        "windows": dataset.facts,
        "normalizer": planner.normalizer.fingerprint,
        "denoiser": planner.denoiser.settings,
        "partner_encoder": encoder and encoder.settings,
        "augmentation": augmentation and asdict(augmentation),
        "processes": accelerator.num_processes,
    }
    planner.to(accelerator.device)
    denoiser = planner.denoiser.train()
    networks = nn.ModuleDict({"denoiser": denoiser, "encoder": encoder.train()}) if encoder else denoiser
    model: nn.Module = accelerator.prepare(torch.compile(denoiser) if compile else denoiser)
    run = DenoiserRun(networks, learning_rate, ema_decay, half)
    first = load_newest(Path(out), facts, run.load) if resume and out is not None else 0
    exercises = Exercises(
        dataset.spec,
        dataset.history,
        denoiser.config.patch_size,
        mix,
        return_ranks=torch.from_numpy(dataset.return_ranks) if denoiser.config.return_conditioning else None,
        latents=LatentSource(encoder and accelerator.prepare(encoder), styles, mix) if has_latents else None,
        augmentation=augmentation,
        device=accelerator.device,
        change_weight=change_weight,
        action_weight=action_weight,
        position=denoiser.config.position,
    )

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step, accelerator.process_index])
        windows = dataset.sample(batch_size // accelerator.num_processes, rng, start_share)
        exercise = exercises(windows, torch.Generator().manual_seed(int(rng.integers(2**62))))
        with run.autocast():
            estimate = exercise.estimate(model)
        loss = exercise.error(estimate, exercise.clean) + exercise.extra
        if not torch.isfinite(loss):
            raise FloatingPointError(diagnosis(f"training step {step}", windows, estimate))
        return loss

    folder = Path(out) if out is not None and accelerator.is_main_process else None
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
        tensorboard=tensorboard,
        progress=progress and accelerator.is_main_process,
    )
    planner.register_to_config(action_spread=action_spread(planner, dataset, seed))
    if folder is not None:
        planner.save_pretrained(folder / "planner")
    return report


def diagnosis(place: str, windows: WindowBatch, estimate: Tensor | None = None) -> str:
    """Where a loss that is not finite comes from."""
    bad = np.argwhere(~np.isfinite(windows.cells))
    if len(bad):
        b, n, w, d = bad[0]
        cell = f"episode {windows.episode[b]}, cell {w} of the window of step {windows.step[b]}, agent {n}, entry {d}"
        return f"{place}: the data are not finite at {cell}; run `diffplan data verify` on the store."
    if estimate is None:
        return f"{place}: the loss is not finite, though the data are; lower learning_rate."
    finite = int(torch.isfinite(estimate).all(dim=(1, 2, 3)).sum())
    return (
        f"{place}: the loss is not finite, though the data are ({finite} of {len(estimate)} windows "
        "have finite estimates); lower learning_rate or use precision='float32'."
    )


def check_world_size(num_processes: int) -> None:
    """Raises ``RuntimeError`` when fewer processes joined than a launcher asked for (``accelerate launch --cpu``)."""
    for name in ("WORLD_SIZE", "ACCELERATE_NUM_PROCESSES"):
        asked = int(os.environ.get(name, num_processes))
        if asked != num_processes:
            raise RuntimeError(
                f"{name}={asked}, but {num_processes} process(es) joined; start with "
                f"`torchrun --nproc_per_node {asked} -m diffplan train ...`."
            )


def _check(
    planner: DiffusionPlanner,
    dataset: TrajectoryDataset,
    styles: StyleTable | None,
    augmentation: Augmentation | None,
    settings: Mapping[str, float],
) -> None:
    """Raises where arguments of ``train`` make no sense, or do not fit each other."""
    check_planner_fits(planner, dataset)
    if not (0 < settings["learning_rate"] < math.inf and 0 <= settings["ema_decay"] < 1):
        told = f"learning_rate={settings['learning_rate']}, ema_decay={settings['ema_decay']}"
        raise ValueError(f"{told}; the first is above 0, the second 0 to below 1.")
    if not 0 <= settings["start_share"] <= 1:
        raise ValueError(f"start_share={settings['start_share']}; it is a share of the windows, 0 to 1.")
    for name in ("change_weight", "action_weight"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"{name}={settings[name]}; give a number, 0 or more.")
    if styles is not None and styles.family.shape[1:] != (len(dataset.store), dataset.spec.num_agents):
        raise ValueError(
            f"styles are of {styles.family.shape[1:]} episodes and agents, {dataset.store.path} has "
            f"{(len(dataset.store), dataset.spec.num_agents)}; make them of this store: StyleTable.of(store, families)."
        )
    if dataset.crowd is not None and takes_latents(planner, styles):
        raise ValueError("a crowd's windows do not say whose latents are whose; load the dataset without crowd.")
    if augmentation is not None:
        augmentation.check(dataset.spec, planner.normalizer.config.kind)
    first = Statistics.of(dataset.spec, (dataset.store[int(index)] for index in dataset.episodes[:_LOOKED_AT]))
    if changing := first.static_but_changing():
        raise ValueError(
            f"{changing} of {dataset.store.path} change within an episode, but the spec says they are static, and what "
            "is static is known of the future. Take them out of Role.static, and record or import the data anew."
        )


def check_planner_fits(planner: DiffusionPlanner, dataset: TrajectoryDataset) -> None:
    """Raises unless these are windows of the planner's horizon, history, roles and normaliser."""
    check_windows(dataset)
    check_default_dtype()
    check_scheduler(planner.scheduler)
    check_horizon(dataset, planner.horizon, planner.history)
    planner.spec.check_same_roles(dataset.spec, "the planner", "the dataset")
    if [*planner.spec.roles] != [*dataset.spec.roles]:
        raise ValueError(
            f"the planner knows the roles {[*planner.spec.roles]}, the dataset {[*dataset.spec.roles]}, in this order; "
            "merge stores into one that has the planner's, or make a planner for this dataset."
        )
    theirs = dataset.normalizer and dataset.normalizer.config
    if theirs is None or any(planner.normalizer.config[key] != theirs[key] for key in ("center", "scale")):
        raise ValueError(
            "the dataset is normalised otherwise than the planner; load it with normalizer=planner.normalizer."
        )
