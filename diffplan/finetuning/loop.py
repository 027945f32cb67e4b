"""The loop of online fine-tuning: a round of episodes, steps of learning from them and all before, now and then a test.

All randomness of a round comes from (seed, round), and a checkpoint is written after every round, so a run that was
killed resumes to the bit: what it acts from then on is what it would have acted.
"""

import functools
import hashlib
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv
from torch import nn

from diffplan.checkpoints import check_out, checkpoints
from diffplan.checks import check_counts
from diffplan.datasets.collection import open_or_create
from diffplan.datasets.windows import TrajectoryDataset
from diffplan.envs.spaces import spec_from_env
from diffplan.evaluation import EvaluationReport, Interval, opened
from diffplan.files import alone
from diffplan.finetuning.acting import Acting, Team
from diffplan.finetuning.colearning import CoLearners
from diffplan.finetuning.gradient import PolicyGradient
from diffplan.finetuning.methods import CriticMethod, Learning, WeightedDenoising
from diffplan.finetuning.replay import Replay
from diffplan.finetuning.rounds import Run, tested
from diffplan.finetuning.steering import NoiseSteering
from diffplan.metrics import summary_writer
from diffplan.models.value import ValueFunction
from diffplan.planners.planner import DiffusionPlanner
from diffplan.spec import JointSpec
from diffplan.training import check_planner_fits
from diffplan.training_loop import bar
from diffplan.value_training import check_fits, train_value

METHODS: dict[str, type[CriticMethod]] = {
    "critic": CriticMethod,
    "weighted": WeightedDenoising,
    "noise": NoiseSteering,
    "gradient": PolicyGradient,
}
"""What ``finetune(method=...)`` can be, besides ``"auto"``."""
AUTO = "critic"
"""What ``method="auto"`` is: the cheapest, and the one that gained on simple_spread; see docs/experiments.md."""


@dataclass(frozen=True, repr=False)
class FinetuningReport:
    """What a run did.

    Args:
        method: what learned.
        offline: score of the planner as it was given, acting by its first sample.
        began: of the same from the same starts, acting as in the run (where that is open, in the best of the ways
            tried): what is not beyond it was not learned. What is may also come of the candidates that are tried at the
            end, or of being the highest of many tests. NaN where the run's metrics are gone.
        best: score of the best round: the highest of many tests of the same starts, so higher than another test would
            find (by 0.06 of a success rate of 0.8, had nothing changed in 25 tests of 100 episodes).
        final: score of the planner as it is now, which is that of the best round, from as many starts by which nothing
            was chosen.
        rows: the metrics of every round; ``score``, ``low`` and ``high`` stand in those that were evaluated.
        environment_steps: joint steps that were acted.
        rollbacks: how often a bad round was undone.
        signs: early signs of collapse that were seen, and in how many rounds.
        drifts: the online episodes at which partners (or the world) were found to have changed.
        seconds: of this call.
        metrics: where the rows are written.
        policy: acts by what was learned, as in the run's evaluations.
        acting: how that is: as in the best round, where it was open.
    """

    method: str
    offline: Interval
    began: Interval
    best: Interval
    final: Interval
    rows: list[dict[str, Any]]
    environment_steps: int
    rollbacks: int
    signs: dict[str, int]
    drifts: list[int]
    seconds: float
    metrics: Path
    policy: Team
    acting: Acting

    def __repr__(self) -> str:
        scores = f"offline {self.offline}, best {self.best}, final {self.final}"
        return (
            f"FinetuningReport({self.method}, {self.environment_steps:,} steps: {scores}, acting by {self.acting.way})"
        )


def finetune(
    planner: DiffusionPlanner,
    env: str | ParallelEnv | Callable[[], ParallelEnv],
    *,
    offline: TrajectoryDataset,
    out: str | Path,
    method: str | type[CriticMethod] = "auto",
    steps: int = 100_000,
    acting: Acting = Acting(),  # noqa: B008  # frozen
    learning: Learning = Learning(),  # noqa: B008
    online_share: float = 0.5,
    newest: int | None = None,
    priority: float = 0.0,
    each: bool = False,
    episodes: int = 50,
    updates_per_step: float = 0.05,
    critic_steps: int = 2_000,
    score: str = "return",
    evaluate_every: int = 10_000,
    evaluation_episodes: int = 100,
    floor: float | None = None,
    seed: int = 0,
    resume: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> FinetuningReport:
    """Improves a planner in place by acting; afterwards it has the weights of the best evaluated round.

    Args:
        planner: pretrained, for the environment's agents; a value function it lacks is trained from the data first.
        env: as in ``evaluate``.
        offline: the data of its pretraining, as windows of its horizon, history and normaliser.
        out: folder for the replay store, ``planner``, ``metrics.jsonl`` and checkpoints.
        method: ``"critic"`` (the prior stays frozen), ``"weighted"`` (it goes on learning, from the better half of the
            episodes), ``"noise"`` (it stays frozen, and which noise it begins with is learned), ``"gradient"`` (its
            last step learns by trial), or ``"auto"``: the first, until another is measured to pay. The report says
            which it was. Or a class of your own, derived from ``CriticMethod``; of it only the name is known on
            resuming.
        steps: joint environment steps in all, also when resumed, where they may be more than before; the round that
            reaches them is the last.
        acting: how it acts.
        learning: how it learns.
        online_share: share of every batch that comes from online episodes; more once partners, or the world, change.
        newest: learn only from so many newest online episodes; None: from all.
        priority: how much more often than the worst episodes the best are learned from, see ``Replay``.
        each: every agent that is not watched has a learner and a planner of its own, all like this one at first, and
            executes its own part of what that plans (``TeamOfPolicies``). They are saved in ``out/planners/NAME``;
            ``planner`` becomes the first agent's.
        episodes: of a round, side by side.
        updates_per_step: steps of learning for each environment step.
        critic_steps: of training a value function first, where the planner has none.
        score: what counts of an evaluation: ``"return"`` or ``"success"``.
        evaluate_every: environment steps between two evaluations; there is one at the end, too (and of what is kept one
            more, from other starts), and before the first round some: of the planner as it was given, as it acts, and
            of what ``acting`` leaves open to try; with more candidates at the end.
        evaluation_episodes: of each; always the same starts, which are not those of the rounds.
        floor: go back to the best round when the whole interval of a score is below this; None: below the interval of
            the planner as it was given; after partners (or the world) changed, of the best one, which is scored anew.
        seed: of everything random.
        resume: go on from the newest checkpoint in ``out``, with as many ``steps`` bit-identically at the same thread
            count.
        tensorboard: also write TensorBoard event files to ``out/tensorboard``.
        progress: show a bar with the time left.

    Raises:
        ValueError: arguments that do not fit each other, or a checkpoint of another run.
        FloatingPointError: a loss is not finite; the message names the place.
    """
    out = Path(out)
    name, learns = _method(method)
    settings: dict[str, Any] = {
        "steps": steps,
        "online_share": online_share,
        "newest": newest,
        "priority": priority,
        "each": each,
        "episodes": episodes,
        "updates_per_step": updates_per_step,
        "score": score,
        "evaluate_every": evaluate_every,
        "evaluation_episodes": evaluation_episodes,
        "floor": floor,
        "seed": seed,
    }
    _check(planner, offline, acting, **settings, critic_steps=critic_steps)
    check_out(out, resume)
    if tensorboard:
        summary_writer()  # raises where it is missing
    facts = {
        "method": name,
        "parent": weights_sha256(planner.denoiser),
        "value": planner.value_function and weights_sha256(planner.value_function),
        "offline_data": offline.store.fingerprint,
        "offline_windows": offline.facts,
        "acting": acting.to_dict(),
        "learning": asdict(learning),
        **settings,
    }
    started = time.perf_counter()
    with opened(env, episodes) as worlds, ExitStack() as held:
        spec = spec_from_env(worlds[0], planner.spec.dt)
        _check_agents(spec, offline)
        store = open_or_create(out / "replay", spec, f"fine-tuning of {facts['parent'][:12]}, seed={seed}")
        held.enter_context(alone(out))
        if len(store) and not checkpoints(out / "checkpoints"):
            raise ValueError(
                f"{store.path} is of a run whose checkpoints are gone; remove it, or choose another folder."
            )
        replay = Replay(offline, store, online_share, newest, priority)
        if score == "success" and not checkpoints(out / "checkpoints"):
            _check_told(tested(worlds, acting.plain(planner), seed, evaluation_episodes))
        if planner.value_function is None:
            value = ValueFunction.for_dataset(offline, seed=seed).to(planner.device)
            if not checkpoints(out / "checkpoints"):
                train_value(value, offline, steps=critic_steps, seed=seed, progress=progress)
            planner.register_modules(value_function=value)
        planner.to(planner.device)  # also parts that were given to it where they were trained
        planner.register_to_config(action_spread=None)  # what these critics ask for is done, and learned from
        watched = np.isin(planner.spec.names, acting.watched)
        names = [agent for agent in planner.spec.names if agent not in acting.watched]
        begin = functools.partial(learns, replay=replay, learning=learning, watched=watched)
        learner = CoLearners(planner, names, begin) if each else begin(planner)
        run = Run(planner, learner, replay, worlds, acting, facts, out)
        run.begin(floor, tensorboard)
        with bar("fine-tuning", progress, steps, run.acted) as show, run.kept():
            while run.acted < steps:
                run.round()
                show(run.acted, f"best score {run.watch.best.value:.4g}")
            final = run.finish()
    return FinetuningReport(
        name,
        run.offline,
        run.began,
        run.watch.best,
        final,
        run.log.rows,
        run.acted,
        run.watch.rollbacks,
        run.seen,
        run.drift.found,
        time.perf_counter() - started,
        out / "metrics.jsonl",
        learner.team(run.kept_acting),
        run.kept_acting,
    )


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of a network's weights, by name: which checkpoint this is, wherever it was saved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _method(method: str | type[CriticMethod]) -> tuple[str, type[CriticMethod]]:
    """Its name and class."""
    if isinstance(method, type) and issubclass(method, CriticMethod):
        return next((name for name, one in METHODS.items() if one is method), method.__name__), method
    known = METHODS | {"auto": METHODS[AUTO]}
    if not isinstance(method, str) or method not in known:
        raise ValueError(f"method={method!r}; choose 'auto', one of {tuple(METHODS)}, or a class like CriticMethod.")
    return AUTO if method == "auto" else method, known[method]


def _check(
    planner: DiffusionPlanner,
    offline: TrajectoryDataset,
    acting: Acting,
    *,
    online_share: float,
    newest: int | None,
    priority: float,
    each: bool,
    updates_per_step: float,
    score: str,
    evaluation_episodes: int,
    floor: float | None,
    seed: int,
    steps: int,
    episodes: int,
    evaluate_every: int,
    critic_steps: int,
) -> None:
    """Raises ``ValueError`` for arguments of ``finetune`` that make no sense, or do not fit each other."""
    check_counts(seed, steps=steps, episodes=episodes, evaluate_every=evaluate_every, critic_steps=critic_steps)
    if evaluation_episodes < 2:
        raise ValueError(f"evaluation_episodes={evaluation_episodes}; an interval takes 2 or more.")
    if score not in ("return", "success"):
        raise ValueError(f"score={score!r}; choose 'return' or 'success'.")
    if not 0 < online_share <= 1:
        raise ValueError(f"online_share={online_share}; it is a share of a batch, more than 0 and at most 1.")
    if newest is not None and newest < 1:
        raise ValueError(f"newest={newest}; it must be at least 1, or None for all.")
    for name, number in {"updates_per_step": updates_per_step, "priority": priority}.items():
        if not 0 <= number < float("inf"):
            raise ValueError(f"{name}={number}; give a number, 0 or more.")
    if floor is not None and not np.isfinite(floor):
        raise ValueError(f"floor={floor}; give a finite score, or None.")
    check_planner_fits(planner, offline)
    if planner.spec.agents != offline.spec.agents:
        raise ValueError(
            f"the planner is for agents {planner.spec.agents}, {offline.store.path} has {offline.spec.agents}; "
            "give data of these agents, or planner.for_agents(dataset.spec) and an environment of as many."
        )
    if planner.value_function is not None:
        check_fits(planner.value_function, offline)
    unfit = [agent for agent in planner.spec.names if each and not re.fullmatch(r"\w[\w-]*", agent)]
    if unfit:
        raise ValueError(f"each=True with agents {unfit}: planners are saved by name; use letters, digits, _ and -.")
    if (acting.partners is None) != (not acting.watched):
        raise ValueError(f"watched={acting.watched} and partners={acting.partners}; give both or neither.")
    acting.plain(planner)  # raises unless partners are agents


def _check_agents(spec: JointSpec, offline: TrajectoryDataset) -> None:
    """Raises ``ValueError`` unless the environment's agents are those of the data."""
    ours, theirs = ([*one.agents.items(), *one.roles.items()] for one in (spec, offline.spec))
    if ours != theirs:  # in order, which settles whose row is whose
        raise ValueError(
            f"the environment has {spec} with agents {spec.agents}, {offline.store.path} has {offline.spec} with "
            f"{offline.spec.agents}; fine-tune in the environment of the data, or give data of this one."
        )


def _check_told(report: EvaluationReport) -> None:
    """Raises ``ValueError`` unless the environment told of success."""
    if np.isnan(report.success).all():
        raise ValueError(
            f"score='success', but of success nothing was told in {len(report.success)} episodes of the planner as it "
            "is given; choose score='return'."
        )
