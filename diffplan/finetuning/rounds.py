"""One round of fine-tuning after the other: act, learn, test where it is due, write everything down."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv

from diffplan.checkpoints import check_same_run, checkpoints, going_on, load_checkpoint, save_checkpoint
from diffplan.datasets.collection import EpisodeRecorder
from diffplan.evaluation import EvaluationReport, Interval, Policy, episode_seed, evaluate_in, run_batch
from diffplan.finetuning.acting import PLAIN, WAYS, Acting, Exploration
from diffplan.finetuning.drift import Drift, Foresight
from diffplan.finetuning.method import Method, below
from diffplan.finetuning.replay import Replay, evaluation_seed, round_seeds
from diffplan.finetuning.safeguards import Watch, diversity, overestimation, signs
from diffplan.metrics import MetricsLog
from diffplan.planners.planner import DiffusionPlanner
from diffplan.spec import Observations

MORE = 4  # times the candidates, tried at the end

PROGRESS = ("acted", "rounds", "updates", "evaluated", "others", "best_way", "seen", "pretrained_diversity")
"""What of a run's own state is plain, and stands in its checkpoints as it is."""

KEPT = "best/"  # before the names of the best round's tensors; those of agents have no slash


@dataclass
class Run:
    """The state of a run, and one round of it; what ``begin`` sets stands last."""

    planner: DiffusionPlanner
    method: Method
    replay: Replay
    worlds: list[ParallelEnv]
    acting: Acting
    facts: dict[str, Any]
    out: Path
    acted: int = 0
    rounds: int = 0
    updates: int = 0
    evaluated: int = 0  # environment steps at the last evaluation
    others: list[dict[str, Any]] = field(default_factory=list)  # ways to act that wait for their turn to be tried
    best_way: dict[str, Any] = field(default_factory=dict)  # of the best round
    seen: dict[str, int] = field(default_factory=dict)  # signs of collapse, and in how many rounds
    watch: Watch = field(default_factory=Watch)
    final: Interval | None = None  # what is kept, tested once more at the end
    offline: Interval = field(init=False)  # score of the planner as it was given
    pretrained_diversity: float = field(init=False)
    parent_provenance: dict[str, Any] = field(init=False)
    foresight: Foresight = field(init=False)
    drift: Drift = field(init=False)
    log: MetricsLog = field(init=False)

    def begin(self, floor: float | None, tensorboard: bool) -> None:
        """Loads the newest checkpoint; where there is none, scores the planner as it is, and as it acts from now on.

        Where how to act is open, that is tried in between.
        """
        self.parent_provenance = self.planner.provenance
        self.foresight = Foresight(self.planner, np.isin(self.planner.spec.names, self.acting.watched))
        found = checkpoints(self.out / "checkpoints")
        if found:
            self._resume(found[-1])
        else:
            self.offline = self._score(self.acting.plain(self.planner))
            open_ = self.acting.refine is None and not self.method.on_policy
            possible = [way for way in WAYS if self.acting.num_samples > 1 or not way["refine"]]
            ways = [replace(self.acting, **way).way for way in possible] if open_ else [self.acting.way]
            scored = sorted(((self._score_of(way), way) for way in ways), key=lambda one: -one[0].value)
            if open_ and self.offline.value > scored[0][0].value:  # critics know no better yet: as it was given
                scored.insert(0, (self.offline, replace(self.acting, **PLAIN).way))
            (score, way), *others = scored
            self.acting, self.others = replace(self.acting, **way), [other for _, other in others]
            self.drift = self.foresight.reference(self.replay.offline, np.random.default_rng([self.facts["seed"], 4]))
            self.pretrained_diversity = diversity(self.planner, self._starts())
            self.watch.floor = self.offline.low if floor is None else floor
        self.method.refining(self.acting.refine or 0.0, self.acting.refine_price)
        self.log = MetricsLog(self.out, self.rounds if found else -1, tensorboard)
        if not found:
            began = {"step": 0, "environment_steps": 0, "pretrained": self.offline.value}
            self.log.write(began | self._judgement(score))
            self._save()

    def _resume(self, checkpoint: Path) -> None:
        tensors, manifest = load_checkpoint(checkpoint)
        with going_on(checkpoint):
            run = manifest["run"]
            check_same_run(checkpoint, run | {"steps": max(run["steps"], self.facts["steps"])}, self.facts)
            state = manifest["state"]
            for name in PROGRESS:
                setattr(self, name, state[name])
            self.offline, self.acting = Interval(**state["offline"]), replace(self.acting, **state["way"])
            self.method.pace = state["pace"]
            self.watch.best, self.watch.rollbacks = Interval(**state["best"]), state["rollbacks"]
            self.watch.weights, self.watch.floor = below(KEPT, tensors), state["floor"]
            self.drift, self.replay.since = Drift(**state["drift"]), state["since"]
            self.replay.online_share = state["online_share"]
            self.method.load(tensors)

    def round(self) -> None:
        """Acts, learns, tests where it is due, and writes everything down."""
        rng = np.random.default_rng([self.facts["seed"], self.rounds])
        began = time.perf_counter()
        episodes, planning = self._act(Exploration.draw(self.acting.num_samples, rng))
        acting = time.perf_counter() - began - planning
        lengths, returns = self.replay.store.lengths[episodes], self.replay.store.mean_returns[episodes]
        self.acted, self.rounds = self.acted + int(lengths.sum()), self.rounds + 1
        row = {"step": self.rounds, "environment_steps": self.acted, "met": float(returns.mean())}
        row |= {"acting_s": acting, "planning_s": planning}
        began = time.perf_counter()
        row |= self._foreseen(episodes)
        row |= self._learn(round(self.facts["updates_per_step"] * int(lengths.sum())), rng)
        row["learning_s"], began = time.perf_counter() - began, time.perf_counter()
        row |= self._signs(episodes, row)
        changed = row["drifted"] is not None
        due = self.acted - self.evaluated >= self.facts["evaluate_every"] or self.acted >= self.facts["steps"]
        if changed or due:
            self.evaluated = self.acted
            row |= self._judged(changed)
        row["evaluating_s"] = time.perf_counter() - began
        self.log.write(row)
        self._save()

    def _foreseen(self, episodes: range) -> dict[str, Any]:
        """Whether the world has changed; then what was met before counts less from now on."""
        rng = np.random.default_rng([self.facts["seed"], self.rounds, 4])
        errors = self.foresight.log_errors(self.replay.windows_of(episodes), rng)
        row = self.drift.meet(episodes.start, errors)
        if row["drifted"] is not None:
            self.replay.changed(row["drifted"], episodes.stop)
        return row | {"online_share": self.replay.online_share}

    def _signs(self, episodes: range, row: dict[str, Any]) -> dict[str, Any]:
        """What tells of collapse early, and which of it does so now."""
        met, starts, learners = self.replay.windows_of(episodes), self._starts(), self.method.members()
        least = min(diversity(one.planner, starts) for one in learners)
        found: dict[str, Any] = {
            "diversity": least / max(self.pretrained_diversity, 1e-9),
            "overestimation": max(overestimation(one.critics.follower, met, self.rounds) for one in learners),
        }
        found["signs"] = signs(row | found)
        for name in found["signs"]:
            self.seen[name] = self.seen.get(name, 0) + 1
        return found

    def _act(self, exploration: Exploration) -> tuple[range, float]:
        """Records a round's episodes, unless a killed run did so; tells which, and the seconds of planning."""
        store, first = self.replay.store, self.rounds * self.facts["episodes"]
        episodes = range(first, first + self.facts["episodes"])
        policy = self.method.team(self.acting, exploration)
        seeds = round_seeds(self.facts["seed"], self.rounds, len(episodes)).tolist()
        if len(store) <= first or self.method.on_policy:
            recorders = [EpisodeRecorder(world, store.spec) for world in self.worlds]
            met = []
            for start in range(0, len(seeds), len(recorders)):
                chunk = seeds[start : start + len(recorders)]
                run_batch(policy, recorders[: len(chunk)], chunk)
                met += [
                    one.trajectory({"round": self.rounds, "seed": s}) for one, s in zip(recorders, chunk, strict=False)
                ]
            if len(store) <= first:
                store.append(met)
        self.replay.refresh(episodes.stop)
        self.method.met(self.replay.windows_of(episodes), seeds)
        return episodes, sum(policy.stats.seconds)

    def _learn(self, updates: int, rng: np.random.Generator) -> dict[str, float]:
        """So many steps of learning; the means of their losses."""
        losses: dict[str, list[float]] = {}
        for _ in range(updates):
            for name, loss in self.method.learn(self.updates, rng).items():
                losses.setdefault(name, []).append(loss)
            self.updates += 1
        self.method.settle()
        return {name: float(np.mean(values)) for name, values in losses.items()}

    def _judged(self, changed: bool = False) -> dict[str, Any]:
        """Scores the planner as it acts and as it might; takes the better way. In a changed world the kept one, too."""
        if changed:
            learned = self.method.acting()
            self.method.act_by(self.watch.weights)
            self.watch.best = self._score_of(self.best_way)
            self.watch.floor = self.watch.best.low if self.facts["floor"] is None else self.facts["floor"]
            self.method.act_by(learned)
        score = self._score_of(self.acting.way)
        if self.others:
            other, *self.others = self.others
            self.others.append(other)  # its turn comes again last
            if (found := self._score_of(other)).value > score.value:
                score = found
                self._take_up(other)
        return self._judgement(score)

    def _judgement(self, score: Interval) -> dict[str, Any]:
        """Keeps the planner or goes back, after this score, and says so."""
        row = {"score": score.value, "low": score.low, "high": score.high} | self.acting.way
        back = self.watch.judge(score, self.method.acting())
        if self.watch.best is score:
            self.best_way = self.acting.way
        if back:
            self.method.go_back(self.watch.weights)
            self._take_up(self.best_way)
        return row | {"rolled_back": back}

    def _take_up(self, way: dict[str, Any]) -> None:
        """Acts so from now on; values are to be of a team that does."""
        self.others = [one for one in (*self.others, self.acting.way) if one != way]
        self.acting = replace(self.acting, **way)
        self.method.refining(self.acting.refine or 0.0, self.acting.refine_price)

    def _score_of(self, way: dict[str, Any]) -> Interval:
        return self._score(self.method.team(replace(self.acting, **way)))

    def finish(self) -> Interval:
        """Tries what more candidates win; scores what is kept once more, from starts by which nothing was chosen."""
        self.method.act_by(self.watch.weights)
        if self.others and self.best_way["num_samples"] > 1:
            more = self.best_way | {"num_samples": MORE * self.best_way["num_samples"]}
            if (score := self._score_of(more)).value > self.watch.best.value:
                self.watch.best, self.best_way = score, more
        self.final = self._score(self.method.team(self.kept_acting), final=True)
        return self.final

    @property
    def began(self) -> Interval:
        """Score of the planner as it was given, acting as in the run; NaN where the first row of metrics is gone."""
        first = next((row for row in self.log.rows if row["step"] == 0), {})
        return Interval(*(float(first.get(name, np.nan)) for name in ("score", "low", "high")))

    @property
    def kept_acting(self) -> Acting:
        """How the best round acted."""
        return replace(self.acting, **self.best_way)

    def _score(self, policy: Policy, final: bool = False) -> Interval:
        report = tested(self.worlds, policy, self.facts["seed"], self.facts["evaluation_episodes"], final)
        return report.summary().get(self.facts["score"], Interval(0.0, 0.0, 0.0))  # a success of which nothing is told

    def _starts(self) -> list[Observations]:
        """First observations of the first few offline episodes."""
        offline = self.replay.offline
        starts = (offline.store[int(index)] for index in offline.episodes[:16])
        return [one.spec.unstack_observations(one.observations[0], one.agent_mask[0]) for one in starts]

    def _save(self) -> None:
        tensors = self.method.tensors() | {f"{KEPT}{name}": tensor for name, tensor in self.watch.weights.items()}
        state = {name: getattr(self, name) for name in PROGRESS} | {
            "offline": asdict(self.offline),
            "way": self.acting.way,
            "pace": self.method.pace,
            "best": asdict(self.watch.best),
            "rollbacks": self.watch.rollbacks,
            "floor": self.watch.floor,
            "drift": asdict(self.drift),
            "since": self.replay.since,
            "online_share": self.replay.online_share,
        }
        save_checkpoint(self.out / "checkpoints", self.rounds, tensors, {"run": self.facts, "state": state})

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the body, Ctrl-C too: the planner has the weights of the best round, and is saved."""
        try:
            yield
        finally:
            self.method.act_by(self.watch.weights)
            done = {"environment_steps": self.acted, "updates": self.updates, "best": asdict(self.watch.best)}
            done |= {"final": self.final and asdict(self.final)}
            done |= {"drifts": self.drift.found, **self.best_way}
            done |= {"parent_provenance": self.parent_provenance, "online_data": self.replay.store.fingerprint}
            for folder, planner in self.method.planners().items():
                planner.provenance = {**self.facts, **done}
                planner.save_pretrained(self.out / folder)
            self.log.close()


def tested(
    worlds: Sequence[ParallelEnv], policy: Policy, seed: int, episodes: int, final: bool = False
) -> EvaluationReport:
    """Runs a policy from the starts of a run's evaluations, or from those of its last one."""
    first = evaluation_seed(seed, final)
    return evaluate_in(worlds, policy, [episode_seed(first, index) for index in range(episodes)])
