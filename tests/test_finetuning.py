"""Fine-tuning keeps its promises: on a line of two carts that are paid for how far right they are, from random data."""

import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from pettingzoo import ParallelEnv

import diffplan as dp
from diffplan.checkpoints import checkpoints, load_checkpoint
from diffplan.commands.finetuning import _flags
from diffplan.datasets.collection import EpisodeRecorder
from diffplan.datasets.transitions import take_transitions
from diffplan.evaluation import EvaluationReport, Interval, run_batch
from diffplan.finetuning import METHODS, Acting, FinetuningReport, Learning
from diffplan.finetuning.acting import Exploration
from diffplan.finetuning.colearning import CoLearners
from diffplan.finetuning.gradient import PolicyGradient, decayed_sums
from diffplan.finetuning.loop import weights_sha256
from diffplan.finetuning.methods import WeightedDenoising
from diffplan.finetuning.replay import Replay, evaluation_seed
from diffplan.finetuning.rounds import Run
from diffplan.finetuning.safeguards import Watch, signs
from diffplan.finetuning.steering import NoiseSteering
from diffplan.planners.guides import Estimate
from diffplan.plotting import plot_finetuning

STEPS = 6
SMALL = {"batch_size": 16, "critic_batch_size": 32, "learning_rate": 4e-3, "critic_learning_rate": 1e-3}
QUICK = {"acting": Acting(2, refine=0.5), "learning": Learning(**SMALL), "evaluation_episodes": 3, "progress": False}
BRIEF = QUICK | {"method": "weighted", "steps": 54, "episodes": 3, "updates_per_step": 0.2, "evaluate_every": 18}


class Line(ParallelEnv):
    """Two carts that move by up to 0.3 a step and are paid where they stand; an episode is truncated after 6 steps."""

    metadata = {"name": "line"}
    possible_agents = ["a", "b"]

    def observation_space(self, agent: str) -> Box:
        return Box(-np.inf, np.inf, (1,), np.float32)

    def action_space(self, agent: str) -> Box:
        return Box(-1, 1, (1,), np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        self.agents, self.time = list(self.possible_agents), 0
        self.places = dict(zip(self.agents, np.random.default_rng(seed).normal(0, 0.2, size=2), strict=True))
        return self.seen(), {}

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        self.time += 1
        for name, action in actions.items():
            self.places[name] += 0.3 * float(np.clip(action[0], -1, 1))
        over, agents = self.time == STEPS, self.agents
        self.agents = [] if over else agents
        rewards = {name: float(self.places[name]) for name in agents}
        return self.seen(), rewards, dict.fromkeys(agents, False), dict.fromkeys(agents, over), {n: {} for n in agents}

    def seen(self) -> dict[str, np.ndarray]:
        return {name: np.array([place], np.float32) for name, place in self.places.items()}


class Proud(Line):
    """Tells of success, the first cart's place above 0 at the end, but never of failure."""

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        *rest, infos = super().step(actions)
        won = not self.agents and self.places["a"] > 0
        return (*rest, {name: {"success": True} if won else {} for name in infos})


class Wanderer:
    """Moves at random."""

    labels: dict[str, Any] = {}

    def reset(self, env: Any, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, observations: dict) -> dict:
        return {name: self.rng.uniform(-1, 1, 1).astype(np.float32) for name in observations}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dp.TrajectoryDataset:
    path = tmp_path_factory.mktemp("line") / "data"
    dp.collect_episodes(Line, Wanderer, out=path, episodes=60, workers=0, progress=False)
    return dp.load_dataset(path, horizon=4)


@pytest.fixture(scope="module")
def pretrained(offline: dp.TrajectoryDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    planner = dp.DiffusionPlanner.for_dataset(offline, width=16, depth=1)
    dp.train(planner, offline, steps=80, batch_size=32, progress=False)
    value = dp.ValueFunction.for_dataset(offline, width=16, depth=1)
    dp.train_value(value, offline, steps=80, batch_size=64, learning_rate=3e-3, progress=False)
    planner.register_modules(value_function=value)
    path = tmp_path_factory.mktemp("line") / "planner"
    planner.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tune(pretrained: Path, offline: dp.TrajectoryDataset) -> Callable[..., FinetuningReport]:
    """Fine-tunes a fresh copy of the pretrained planner."""

    def run(out: Path, world: type[Line] = Line, **arguments: Any) -> FinetuningReport:
        planner = dp.DiffusionPlanner.from_pretrained(pretrained)
        return dp.finetune(planner, world, offline=offline, out=out, **BRIEF | arguments)

    return run


@pytest.fixture(scope="module")
def straight(tune: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinetuningReport]:
    """A brief run that nothing interrupted."""
    out = tmp_path_factory.mktemp("line") / "straight"
    return out, tune(out)


class Killed(BaseException):
    """Nothing expects it, as nothing expects a kill."""


@contextmanager
def killed_at(place: str, call: int) -> Iterator[None]:
    """A run in the body is killed when it comes to this method of ``Run`` for the ``call``-th time, from 0 on."""
    original, calls = getattr(Run, place), itertools.count()

    def killed(run: Run, *args: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return original(run, *args)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, place, killed)
        yield


def timeless(report: FinetuningReport) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in report.rows]


def test_critics_move_actions_only_where_that_scores_better(
    pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    def chosen(wrong: bool, resume: bool = False, candidates: int = 8) -> dict[str, Any]:
        planner = dp.DiffusionPlanner.from_pretrained(pretrained)
        if wrong:
            planner.value_function.critics.head.weight.data.neg_()
        out = tmp_path / f"{wrong}_{candidates}"
        options = BRIEF | {"acting": Acting(candidates), "resume": resume, "out": out}
        return dp.finetune(planner, Line, offline=offline, **options).acting.way

    assert chosen(wrong=True)["refine"] == 0.0
    right = chosen(wrong=False)
    assert right["refine"] == 1.0 and right["refine_price"] < 0.4  # the dearest price leaves actions as they are
    assert chosen(wrong=False, resume=True) == right
    assert chosen(wrong=False, candidates=1)["refine"] == 0.0  # one candidate says nothing of what is open


@pytest.mark.parametrize("options", [{"refine_price": 0.4}, {"guided": True}])
def test_how_critics_are_trusted_is_given_whole_or_left_open(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="are of a given refine; without one, they are tried out"):
        Acting(**options)


@pytest.mark.parametrize(
    "options", [{"num_samples": 0}, {"value_weight": -1.0}, {"refine": -0.5}, {"num_samples": 1, "refine": 0.5}]
)
def test_acting_that_makes_no_sense_is_refused_before_anything_is_done(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Acting(**options)


def test_one_candidate_is_not_said_to_be_ranked() -> None:
    assert _flags(Acting(1, refine=0.0)) == " --num-samples 1"
    assert _flags(Acting(8, refine=0.0)) == " --num-samples 8 --guide rank=4"
    assert _flags(Acting(1, guided=True, refine=0.0)) == " --num-samples 1 --guide value=4"


def scored(value: float, half: float = 0.0) -> Interval:
    return Interval(value, value - half, value + half)


@pytest.mark.parametrize("won", [-0.5, 0.5])
def test_a_run_acts_in_the_way_that_scores_best_also_after_it_was_killed(
    won: float, tune: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value gradient scores best at first, then refining at no price, which is tried after the fourth round.

    At the end more candidates may win something, or lose it.
    """

    def score(run: Run, policy: dp.RecedingHorizonPolicy, final: bool = False) -> Interval:
        (guided,) = [guide.levels is not None for guide in policy.sampling.guides] or [False]
        more = run.acted == 90 and policy.sampling.num_samples == 8
        assert more or policy.sampling.num_samples == (1 if guided or not policy.sampling.guides else 2)
        value = 2.0 if run.rounds and (policy.refine, policy.refine_price) == (1.0, 0.0) else float(guided)
        return scored(value + won * more)

    monkeypatch.setattr(Run, "_score", score)
    brief = {"acting": Acting(2), "method": "critic", "steps": 90}
    whole = tune(tmp_path / "whole", **brief)
    assert [(row["score"], row["guided"], row["refine"]) for row in whole.rows] == [(1, True, 0)] * 4 + [
        (2, False, 1)
    ] * 2
    most = 8 if won > 0 else 2
    assert whole.acting.way == {"num_samples": most, "guided": False, "refine": 1.0, "refine_price": 0.0}
    assert whole.best.value == whole.final.value == 2 + max(won, 0)
    assert dp.DiffusionPlanner.from_pretrained(tmp_path / "whole").provenance["num_samples"] == most

    with killed_at("_save", 3):
        tune(tmp_path / "killed", **brief)
    resumed = tune(tmp_path / "killed", **brief, resume=True)
    assert (timeless(resumed), resumed.acting) == (timeless(whole), whole.acting)


def test_first_samples_are_followed_until_critics_know_better(
    tune: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(run: Run, policy: dp.RecedingHorizonPolicy, final: bool = False) -> Interval:
        value = 1.0 if not policy.sampling.guides else 2.0 * (run.acted >= better_from)
        return Interval(value, value - 0.1, value + 0.1)

    monkeypatch.setattr(Run, "_score", score)
    for better_from, kept in ((1_000, 1.0), (40, 2.0)):
        report = tune(tmp_path / f"from_{better_from}", acting=Acting(2))
        assert (report.offline.value, report.began.value, report.best.value) == (1.0, 1.0, kept)
        assert (report.acting.num_samples == 1 and not report.acting.guided) == (kept == 1.0)


def test_a_saved_planner_says_how_it_acts_best(tune: Callable, pretrained: Path, tmp_path: Path) -> None:
    report = tune(tmp_path / "run")
    saved = dp.DiffusionPlanner.from_pretrained(tmp_path / "run")
    assert Acting.of(saved) == report.acting
    with pytest.raises(ValueError, match="was not fine-tuned"):
        Acting.of(dp.DiffusionPlanner.from_pretrained(pretrained))
    saved.provenance["each"] = True
    with pytest.raises(ValueError, match="one of several learners"):
        Acting.of(saved)


def test_a_run_that_is_over_goes_on_for_more_steps(tune: Callable, tmp_path: Path) -> None:
    first = tune(tmp_path / "run")
    more = tune(tmp_path / "run", resume=True, steps=2 * first.environment_steps)
    assert more.environment_steps >= 2 * first.environment_steps
    with pytest.raises(ValueError, match="is of another run"):
        tune(tmp_path / "run", resume=True, steps=first.environment_steps)
    assert [row["step"] for row in more.rows][: len(first.rows)] == [row["step"] for row in first.rows]


@pytest.mark.parametrize("method", METHODS)
def test_acting_improves_a_planner_beyond_doubt(method: str, tune: Callable, tmp_path: Path) -> None:
    many = {"steps": 240, "episodes": 20, "updates_per_step": 0.3, "evaluate_every": 240, "evaluation_episodes": 20}
    if method == "gradient":  # learns by trial alone, of large steps here
        how = Learning(**SMALL | {"batch_size": 64}, policy_learning_rate=3e-3, spread=0.5)
        many |= {"steps": 960, "evaluate_every": 960, "learning": how}
    report = tune(tmp_path, method=method, **many)
    assert report.best.low > report.offline.high
    assert report.began.value == report.rows[0]["score"] < report.best.value
    assert report.rows[-1]["met"] > report.offline.high


@pytest.mark.parametrize(("place", "call"), [("_act", 0), ("_act", 2), ("_learn", 2), ("_judged", 2), ("_save", 0)])
def test_a_run_killed_at_any_place_resumes_to_the_bit(
    place: str, call: int, straight: tuple[Path, FinetuningReport], tune: Callable, tmp_path: Path
) -> None:
    with killed_at(place, call):
        tune(tmp_path)
    assert timeless(tune(tmp_path, resume=True)) == timeless(straight[1])
    weights = [dp.DiffusionPlanner.from_pretrained(one) for one in (straight[0], tmp_path)]
    assert len({weights_sha256(one.denoiser) + weights_sha256(one.value_function) for one in weights}) == 1


def test_episodes_that_a_killed_run_recorded_are_not_acted_again(tune: Callable, tmp_path: Path) -> None:
    with killed_at("_learn", 0):
        tune(tmp_path)
    before = dp.TrajectoryStore.open(tmp_path / "replay").fingerprint
    with killed_at("_learn", 0):
        tune(tmp_path, resume=True)
    assert dp.TrajectoryStore.open(tmp_path / "replay").fingerprint == before


def test_an_interrupted_run_leaves_the_best_planner_so_far(
    tune: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path)
    left = dp.DiffusionPlanner.from_pretrained(tmp_path)
    assert left.provenance["updates"] == 0
    assert weights_sha256(left.denoiser) == left.provenance["parent"]


def test_a_planner_remembers_where_it_comes_from_through_saving(
    straight: tuple[Path, FinetuningReport], pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    parent, planner = map(dp.DiffusionPlanner.from_pretrained, (pretrained, straight[0]))
    planner.save_pretrained(tmp_path)
    facts = dp.DiffusionPlanner.from_pretrained(tmp_path).provenance
    assert facts["parent"] == weights_sha256(parent.denoiser)
    assert facts["offline_data"] == offline.store.fingerprint
    assert facts["online_data"] == dp.TrajectoryStore.open(straight[0] / "replay").fingerprint
    assert facts["environment_steps"] == 54
    assert facts["final"]["value"] == straight[1].final.value
    assert parent.config.action_spread > 0
    assert planner.config.action_spread is None  # its critics learned from what they chose


def test_the_saved_planner_is_that_of_the_best_round(straight: tuple[Path, FinetuningReport]) -> None:
    out, report = straight
    assert report.best.value == max(row["score"] for row in report.rows if "score" in row)
    policy = QUICK["acting"].policy(dp.DiffusionPlanner.from_pretrained(out))
    for final, score in ((False, report.best), (True, report.final)):
        found = dp.evaluate(policy, Line, episodes=3, seed=evaluation_seed(0, final)).summary()["return"]
        assert found.value == pytest.approx(score.value, abs=1e-4)
    assert report.final.value != report.best.value


def test_a_score_below_the_floor_brings_the_best_weights_back(
    tune: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.0, 1.0, -3.0, -2.0, -1.0])  # as it was given, as it acts from then on, after each round
    monkeypatch.setattr(Run, "_score", lambda _, __, final=False: scored(0.0 if final else next(scores), 0.1))
    report = tune(tmp_path)
    assert [row["rolled_back"] for row in report.rows] == [False, True, True, True]
    tensors, facts = load_checkpoint(checkpoints(tmp_path / "checkpoints")[-1])
    assert (report.rollbacks, facts["state"]["pace"]) == (3, 0.125)
    for name in ("project.weight", "blocks.0.query_key_value.weight"):
        assert torch.equal(tensors[f"denoiser.model.{name}"], tensors[f"best/denoiser.{name}"])


def test_a_failure_of_which_nothing_is_told_counts_as_one(tune: Callable, tmp_path: Path) -> None:
    report = tune(tmp_path, Proud, score="success", evaluation_episodes=10)
    assert 0 < report.offline.value < 1
    assert all(0 <= row["score"] <= 1 for row in report.rows if "score" in row)


def test_a_round_without_a_success_scores_nothing(
    tune: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = EvaluationReport([np.nan] * 10, [0.0] * 10, [np.nan] * 10, [6] * 10, 1.0, 0)
    monkeypatch.setattr("diffplan.finetuning.rounds.tested", lambda *_: lost)
    report = tune(tmp_path, Proud, score="success", evaluation_episodes=10)
    assert [row["score"] for row in report.rows if "score" in row] == [0.0] * 4
    assert report.best.value == 0.0


def test_only_a_score_below_doubt_is_undone() -> None:
    watch = Watch(floor=1.0)
    assert not watch.judge(scored(2.0, 0.5), {"weight": torch.ones(1)})
    assert not watch.judge(scored(0.5, 0.7), {})
    assert watch.judge(scored(0.2, 0.7), {})
    assert (watch.best.value, watch.rollbacks, watch.weights["weight"].item()) == (2.0, 1, 1.0)


def test_exploring_draws_candidates_in_proportion_to_exp_of_their_value() -> None:
    values, rng = torch.tensor([0.0, 1.0, 2.0]), np.random.default_rng(0)
    cells = torch.zeros(1, 3, 2, 4, 2)
    spec = dp.JointSpec({"a": "cart", "b": "cart"}, {"cart": dp.Role(1, (-1.0,), (1.0,))})
    estimate = Estimate(spec, cells[..., :1], cells[..., 1:], cells, torch.ones(1, 2, dtype=torch.bool))
    chosen = [int((values + Exploration.draw(3, rng).log_weight(estimate)[0]).argmax()) for _ in range(4_000)]
    shares = np.bincount(chosen, minlength=3) / len(chosen)
    assert shares == pytest.approx(values.softmax(0).numpy(), abs=0.03)


def test_a_batch_holds_the_set_share_of_online_episodes(offline: dp.TrajectoryDataset, tmp_path: Path) -> None:
    online = dp.TrajectoryStore.create(tmp_path, offline.spec)
    replay = Replay(offline, online, 0.25, newest=2)
    assert (replay.windows(replay.draw(16, np.random.default_rng(0))).episode < 60).all()
    online.append([offline.store[index] for index in (3, 4, 5)])
    replay.refresh()
    draw = replay.draw(16, np.random.default_rng(0))
    windows, transitions = replay.windows(draw), replay.transitions(16, np.random.default_rng(0), 0.9, 2)
    assert (windows.episode >= 60).sum() == 4
    assert set(windows.episode[windows.episode >= 60]) <= {61, 62}  # the two newest
    assert (windows.episode == transitions.episode).all() and (windows.step == transitions.step).all()
    alone = take_transitions(replay.online, draw[1][1], 0.9, 2)
    assert np.array_equal(transitions.returns[12:], alone.returns)
    assert replay.return_ranks[60:] == pytest.approx(offline.return_ranks[[3, 4, 5]])


def test_episodes_of_better_return_are_drawn_more_often_by_their_priority(
    offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    online = dp.TrajectoryStore.create(tmp_path, offline.spec)
    best, worst = offline.return_ranks.argmax(), offline.return_ranks.argmin()
    online.append([offline.store[int(index)] for index in (best, worst)])
    replay = Replay(offline, online, 0.5, None, priority=2.0)
    episodes = replay.windows(replay.draw(4_000, np.random.default_rng(0))).episode
    good, bad = ((episodes == number).sum() for number in (60, 61))
    assert good + bad == 2_000
    assert good / bad == pytest.approx(np.exp(2.0), rel=0.15)
    ranks = offline.return_ranks[episodes[episodes < 60]]
    assert ranks.mean() == pytest.approx(0.66, abs=0.04)  # of a rank with density ~ e^2x
    episodes = replay.transitions(4_000, np.random.default_rng(0), 0.9, 2).episode  # critics see all alike
    assert offline.return_ranks[episodes[episodes < 60]].mean() == pytest.approx(0.5, abs=0.04)


def test_critics_learn_of_every_step_also_where_windows_do_not(offline: dp.TrajectoryDataset, tmp_path: Path) -> None:
    sparse = dp.load_dataset(offline.store.path, offline.horizon, stride=5, inside=True)
    assert len(sparse.every_step()) == len(offline) > len(sparse) and offline.every_step() is offline
    batch = Replay(sparse, dp.TrajectoryStore.create(tmp_path, offline.spec), 0.5, None).transitions(
        4_000, np.random.default_rng(0), 0.9, 1
    )
    ends = offline.store.lengths[batch.episode] - 1
    assert (batch.step == ends).any() and set(batch.step.tolist()) == set(range(int(ends.max()) + 1))


def test_the_denoiser_learns_from_the_better_half_and_what_is_as_good(
    offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    online = dp.TrajectoryStore.create(tmp_path, offline.spec)
    replay, rng = Replay(offline, online, 0.5, None), np.random.default_rng(0)
    order = offline.return_ranks.argsort()
    assert set(replay.windows(replay.draw(2_000, rng, best=0.5)).episode) == set(order[30:])
    online.append([offline.store[int(index)] for index in order[:3]])
    replay.refresh()
    assert (replay.windows(replay.draw(200, rng, best=0.5)).episode < 60).all()
    assert (replay.windows(replay.draw(200, rng)).episode >= 60).sum() == 100
    online.append([offline.store[int(order[-1])]])
    replay.refresh()
    met = replay.windows(replay.draw(2_000, rng, best=0.5)).episode
    assert set(met) - set(range(60)) == {63}
    assert (met == 63).sum() == 250  # an eighth: one of four is good, half are of those met
    replay.changed(0, 3)
    assert (replay.windows(replay.draw(200, rng, best=0.5)).episode < 60).all()
    replay.changed(1, 3)  # in a world that has changed the best of what was met since is good
    assert set(replay.windows(replay.draw(200, rng, best=0.5)).episode) - set(range(60)) == {62}


def test_a_strong_trust_region_holds_the_denoiser_at_its_prior(
    pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    def distance(trust: float) -> float:
        planner = dp.DiffusionPlanner.from_pretrained(pretrained)
        online = dp.TrajectoryStore.create(tmp_path / str(trust), offline.spec)
        method = WeightedDenoising(planner, Replay(offline, online, 0.5, None), Learning(**SMALL, trust=trust))
        return [method.learn(update, np.random.default_rng(update))["distance"] for update in range(25)][-1]

    assert distance(100.0) < 0.5 * distance(0.0)


def test_steered_noise_makes_better_plans_of_the_same_denoiser(
    pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    planner = dp.DiffusionPlanner.from_pretrained(pretrained)
    before = weights_sha256(planner.denoiser)

    def score() -> Interval:
        """Of first samples, neither ranked nor refined."""
        return dp.evaluate(dp.RecedingHorizonPolicy(planner), Line, episodes=20).summary()["return"]

    unsteered = score()
    replay = Replay(offline, dp.TrajectoryStore.create(tmp_path, offline.spec), 0.5, None)
    method = NoiseSteering(planner, replay, Learning(**SMALL | {"critic_learning_rate": 3e-3}))
    assert score() == unsteered
    parts = [method.learn(update, np.random.default_rng(update)) for update in range(60)]
    assert score().low > unsteered.high + 0.5
    assert np.mean([part["steered"] for part in parts[-10:]]) > 0.3
    assert weights_sha256(planner.denoiser) == before


def test_trials_that_went_better_than_expected_become_more_likely(
    pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    planner = dp.DiffusionPlanner.from_pretrained(pretrained)
    replay = Replay(offline, dp.TrajectoryStore.create(tmp_path, offline.spec), 0.5, None)
    how = Learning(**SMALL, policy_learning_rate=1e-3, spread=0.5, trust=0.0)
    method, seeds = PolicyGradient(planner, replay, how), list(range(20))
    recorders = [EpisodeRecorder(Line(), offline.spec) for _ in seeds]
    run_batch(method.team(Acting(2), Exploration.draw(2, np.random.default_rng(0))), recorders, seeds)
    replay.store.append([one.trajectory({}) for one in recorders])
    method.met(replay.windows_of(range(20)), seeds)
    trials, roles = method.trials, offline.spec.role_index
    assert sorted(trials.moments) == [(seed, step) for seed in seeds for step in range(STEPS)]

    def estimated() -> torch.Tensor:
        with torch.no_grad():
            return planner.denoiser(roles=torch.from_numpy(roles), **trials.asked)[:, :, 0, 1:]

    torch.testing.assert_close(estimated() + how.spread * trials.shocks, trials.actions, rtol=1e-4, atol=1e-4)
    cells = torch.cat((torch.zeros_like(trials.actions), trials.actions), -1)[:, :, None]
    tried = offline.normalizer.unnormalize(cells.numpy(), roles)[:, :, 0, 1:].clip(-1, 1)
    taken = np.stack([replay.store[seed].actions[step] for seed, step in trials.moments])
    np.testing.assert_allclose(taken, tried, atol=1e-5)
    assert method.gains.mean().item() == pytest.approx(0, abs=1e-5)
    right = np.corrcoef(method.gains, trials.shocks.sum((1, 2)))[0, 1]
    assert right > 0.1  # whoever is farther to the right is paid more
    for update in range(60):
        method.improve(update, np.random.default_rng(update))
    likelier = (trials.shocks.square() - ((trials.actions - estimated()) / how.spread).square()).sum((1, 2)) / 2
    assert np.corrcoef(method.gains, likelier)[0, 1] > 0.1


def test_a_dear_divergence_keeps_the_noise_standard(
    pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    def nats(temperature: float) -> float:
        replay = Replay(offline, dp.TrajectoryStore.create(tmp_path / str(temperature), offline.spec), 0.5, None)
        how = Learning(**SMALL | {"critic_learning_rate": 3e-3}, noise_temperature=temperature)
        method = NoiseSteering(dp.DiffusionPlanner.from_pretrained(pretrained), replay, how)
        return [method.learn(update, np.random.default_rng(update))["nats"] for update in range(25)][-1]

    assert nats(10.0) < 0.2 * nats(0.1)


def test_carts_that_learn_each_for_itself_get_better_together(tune: Callable, tmp_path: Path) -> None:
    many = {"steps": 240, "episodes": 20, "updates_per_step": 0.3, "evaluate_every": 240, "evaluation_episodes": 20}
    report = tune(tmp_path, method="critic", each=True, **many)
    assert report.best.low > report.offline.high
    planners = {name: dp.DiffusionPlanner.from_pretrained(tmp_path / "planners" / name) for name in ("a", "b")}
    learned, _ = load_checkpoint(checkpoints(tmp_path / "checkpoints")[-1])
    weight = "critics.value.critics.head.weight"
    assert not torch.equal(learned[f"a.{weight}"], learned[f"b.{weight}"])
    team = dp.TeamOfPolicies({name: QUICK["acting"].policy(planner) for name, planner in planners.items()})
    found = dp.evaluate(team, Line, episodes=20, seed=evaluation_seed(0)).summary()["return"]
    assert found.value == pytest.approx(report.best.value, abs=1e-4)


def test_everyone_in_a_team_of_policies_follows_its_own() -> None:
    class Constant:
        def __init__(self, value: float):
            self.value = value

        def reset(self, seeds: Any) -> None:
            pass

        def __call__(self, observations: Any) -> Any:
            return [seen and dict.fromkeys(seen, self.value) for seen in observations]

    policies = {"a": Constant(1.0), "b": Constant(2.0)}
    seen = [{"a": 0, "b": 0, "c": 0}, None, {"b": 0}]
    assert dp.TeamOfPolicies(policies)(seen) == [{"a": 1, "b": 2, "c": 1}, None, {"b": 2}]
    assert np.isnan(dp.TeamOfPolicies(policies).stats.milliseconds_a_plan)
    halved = dp.TeamOfPolicies(policies, lambda seen, actions: {name: one / 2 for name, one in actions.items()})
    assert halved(seen) == [{"a": 0.5, "b": 1, "c": 0.5}, None, {"b": 1}]
    with pytest.raises(ValueError, match="a team of no policies"):
        dp.TeamOfPolicies({})


def test_a_policy_that_commands_several_in_a_team_is_asked_once_a_step(pretrained: Path) -> None:
    policy = dp.RecedingHorizonPolicy(dp.DiffusionPlanner.from_pretrained(pretrained), execute_steps=2)
    observations, _ = Line().reset(seed=0)
    steps, begun, reset = [], [], policy.reset
    policy.reset = lambda seeds: (begun.append(seeds), reset(seeds))
    for one in (policy, dp.TeamOfPolicies({"a": policy, "b": policy})):
        one.reset([0])
        steps.append([one([observations])[0] for _ in range(2)])
    assert steps[0] == steps[1] and begun == [[0], [0]]


def test_policies_of_a_team_remember_what_was_really_done(offline: dp.TrajectoryDataset) -> None:
    remembering = dp.load_dataset(offline.store.path, horizon=4, history=2)
    planners = [dp.DiffusionPlanner.for_dataset(remembering, width=16, depth=1, seed=seed) for seed in (0, 1)]
    for seed, planner in enumerate(planners):
        torch.nn.init.normal_(planner.denoiser.project.weight, generator=torch.Generator().manual_seed(seed))
    policies = {name: dp.RecedingHorizonPolicy(one) for name, one in zip("ab", planners, strict=True)}
    team = dp.TeamOfPolicies(policies)
    team.reset([0])
    (done,) = team([Line().reset(seed=0)[0]])
    for policy in policies.values():
        _, remembered = policy._episodes[0].past[-1]
        assert all(np.array_equal(remembered[name], done[name]) for name in "ab")
    assert len(team.stats.plans) == 2 and len(team.plans) == 1


def test_who_learns_for_itself_learns_by_its_own_trials_only(
    pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    replay = Replay(offline, dp.TrajectoryStore.create(tmp_path, offline.spec), 0.5, None)
    begin = functools.partial(PolicyGradient, replay=replay, learning=Learning(**SMALL))
    both = CoLearners(dp.DiffusionPlanner.from_pretrained(pretrained), ["a", "b"], begin)
    recorder = EpisodeRecorder(Line(), offline.spec)
    run_batch(both.team(Acting(2), Exploration.draw(2, np.random.default_rng(0))), [recorder], [7])
    replay.store.append([recorder.trajectory({})])
    both.met(replay.windows_of(range(1)), [7])
    for place, one in enumerate(both.members()):
        assert one.acted[:, place].all() and one.acted.sum() == STEPS


def test_advantages_add_up_to_the_end_of_their_episode_and_decay() -> None:
    values, episodes = np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([0, 0, 0, 1, 1])
    assert decayed_sums(values, episodes, 0.5).tolist() == [1 + 1 + 1, 2 + 2, 4, 8 + 8, 16]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"gradient"}))  # which learns from a round of its own
def test_a_method_that_is_loaded_goes_on_to_the_bit(
    method: str, pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    replay = Replay(offline, dp.TrajectoryStore.create(tmp_path, offline.spec), 0.5, None)

    def begun() -> Any:
        return METHODS[method](dp.DiffusionPlanner.from_pretrained(pretrained), replay, Learning(**SMALL))

    def learned(one: Any, updates: range) -> dict[str, torch.Tensor]:
        for update in updates:
            one.learn(update, np.random.default_rng(update))
        return {name: tensor.clone() for name, tensor in one.tensors().items()}

    whole, resumed = begun(), begun()
    for one in (whole, resumed):
        one.refining(0.5, 0.05)
    resumed.load(learned(whole, range(2)))
    expected, found = learned(whole, range(2, 4)), learned(resumed, range(2, 4))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    before = whole.acting()
    learned(whole, range(4, 6))
    whole.go_back(before)
    assert all(torch.equal(tensor, whole.acting()[name]) for name, tensor in before.items())


@pytest.mark.parametrize(("method", "each"), [("noise", False), ("gradient", False), ("weighted", True)])
def test_a_killed_run_of_other_networks_resumes_to_the_bit_and_saves_them(
    method: str, each: bool, tune: Callable, tmp_path: Path
) -> None:
    how = Learning(**SMALL | {"critic_learning_rate": 1e-2}, policy_learning_rate=1e-3)
    brief = {"method": method, "each": each, "steps": 36, "learning": how}
    whole = tune(tmp_path / "whole", **brief)
    with killed_at("_judgement", 2):
        tune(tmp_path / "killed", **brief)
    assert timeless(tune(tmp_path / "killed", **brief, resume=True)) == timeless(whole)
    folder = "planners/b" if each else "planner"
    saved = [dp.DiffusionPlanner.from_pretrained(tmp_path / name / folder) for name in ("whole", "killed")]
    for part in ("denoiser", "noise_policy") if method == "noise" else ("denoiser",):
        assert weights_sha256(getattr(saved[0], part)) == weights_sha256(getattr(saved[1], part))
    if each:
        return
    policy = dp.RecedingHorizonPolicy(saved[0]) if method == "gradient" else QUICK["acting"].policy(saved[0])
    found = dp.evaluate(policy, Line, episodes=3, seed=evaluation_seed(0)).summary()["return"]
    assert found.value == pytest.approx(whole.best.value, abs=1e-4)


class Partner:
    """Drives cart b: as the data do, or, from its ``turn``-th batch of episodes on, always to the right."""

    def __init__(self, turn: int):
        self.turn, self.batches = turn, 0

    def reset(self, seeds: Any) -> None:
        self.batches += 1
        self.rngs = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, observations: Any) -> list:
        moves = [1.0 if self.batches > self.turn else rng.uniform(-1, 1) for rng in self.rngs]
        return [seen and {"b": np.array([move], np.float32)} for seen, move in zip(observations, moves, strict=True)]


def test_partners_that_change_raise_the_share_of_what_is_met_since(
    tune: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([3.0, 4.0, -3.0, -2.0, -1.0])  # as given, as it acts, the best anew, the newest, at the end
    monkeypatch.setattr(Run, "_score", lambda _, __, final=False: scored(0.0 if final else next(scores)))
    brief = {"steps": 4 * 20 * STEPS, "episodes": 20, "updates_per_step": 0.01, "method": "noise"}
    report = tune(
        tmp_path, **brief, evaluate_every=10**6, acting=Acting(2, refine=0.5, partners=Partner(2), watched=("b",))
    )
    rows = report.rows[1:]
    assert [row["drifted"] for row in rows] == [None, None, pytest.approx(40, abs=2), None]
    assert report.drifts == [rows[2]["drifted"]]
    assert [row["online_share"] for row in rows] == [0.5, 0.5, 0.75, 0.75]
    assert rows[2]["surprise"] > 1 > rows[1]["surprise"]
    assert [row.get("score") for row in rows] == [None, None, -2.0, -1.0]
    assert (report.best.value, report.rollbacks) == (-1.0, 0)  # what scored 4 did so beside other partners


def test_partners_are_not_commanded_and_a_run_beside_them_resumes_to_the_bit(tune: Callable, tmp_path: Path) -> None:
    brief = {
        "acting": Acting(2, refine=0.5, partners=Partner(0), watched=("b",)),
        "steps": 2 * 20 * STEPS,
        "episodes": 20,
    }
    brief |= {"updates_per_step": 0.01, "evaluate_every": 10**6}
    whole = tune(tmp_path / "whole", **brief)
    store = dp.TrajectoryStore.open(tmp_path / "whole" / "replay")
    assert (store[0].actions[:, 1] == 1).all()
    assert (store[0].actions[:, 0] != 1).any()
    with killed_at("_save", 2):
        tune(tmp_path / "killed", **brief)
    resumed = tune(tmp_path / "killed", **brief, resume=True)
    assert timeless(resumed) == timeless(whole)
    assert whole.drifts == resumed.drifts == [0]


def test_what_was_met_before_a_change_is_not_learned_from(offline: dp.TrajectoryDataset, tmp_path: Path) -> None:
    online = dp.TrajectoryStore.create(tmp_path, offline.spec)
    online.append([offline.store[index] for index in range(6)])
    replay = Replay(offline, online, 0.5, None)
    replay.changed(4, 6)
    episodes = replay.windows(replay.draw(40, np.random.default_rng(0))).episode
    assert (episodes >= 60).sum() == 30
    assert set(episodes[episodes >= 60]) == {64, 65}


def test_signs_of_collapse_are_told() -> None:
    assert signs({"overestimation": 0.2, "diversity": 0.9, "distance": 0.3}) == []
    assert signs({"overestimation": 3.0, "diversity": 0.1}) == ["overestimation", "diversity"]


def test_the_curve_of_a_run_is_drawn_with_its_intervals(
    straight: tuple[Path, FinetuningReport], tmp_path: Path
) -> None:
    out, report = straight
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == report.rows
    for source in straight:
        curve, _, dashes = plot_finetuning(source).axes[0].lines
        assert curve.get_ydata().tolist() == [row["score"] for row in rows if "score" in row]
        assert dashes.get_ydata()[0] == report.offline.value
    figure = plot_finetuning({"one": out, "two": report})
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["one", "two"]
    assert not figure.axes[0].texts
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl holds no scores; it is written by `diffplan finetune`"):
        plot_finetuning(tmp_path)


def test_a_method_of_ones_own_learns_in_place_of_ours(tune: Callable, tmp_path: Path) -> None:
    class Idle(dp.CriticMethod):
        def learn(self, update: int, rng: np.random.Generator) -> dict[str, float]:
            return {"idle": float(update)}

    report = tune(tmp_path, method=Idle)
    assert report.method == "Idle" and report.rows[-1]["idle"] > 0 and "q_loss" not in report.rows[-1]
    assert dp.DiffusionPlanner.from_pretrained(tmp_path).provenance["method"] == "Idle"
    longer = tune(tmp_path, method=Idle, resume=True, steps=BRIEF["steps"] + 1)
    assert longer.environment_steps > report.environment_steps
    with pytest.raises(ValueError, match="is of another run: {'method': 'Idle', .*} there, {'method': 'critic'"):
        tune(tmp_path, method=METHODS["critic"], resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method='magic'; choose 'auto', one of"),
        ({"score": "luck"}, "score='luck'; choose 'return' or 'success'"),
        ({"score": "success"}, r"score='success', but of success nothing was told in 3 episodes"),
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"evaluation_episodes": 1}, "evaluation_episodes=1; an interval takes 2 or more"),
        ({"priority": -1.0}, "priority=-1.0; give a number, 0 or more"),
        ({"floor": -np.inf}, "floor=-inf; give a finite score"),
        ({"online_share": 0.0}, "online_share=0.0; it is a share of a batch"),
        ({"acting": Acting(2, partners=Partner(0), watched=("c",))}, r"partners=\['c'\] are not in the plan"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: dict, message: str, tune: Callable, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tune(tmp_path, **arguments)


def test_a_run_is_neither_overwritten_nor_resumed_otherwise(
    straight: tuple[Path, FinetuningReport], tune: Callable, pretrained: Path, offline: dp.TrajectoryDataset
) -> None:
    with pytest.raises(ValueError, match="holds a run already; go on by resume=True"):
        tune(straight[0])
    with pytest.raises(ValueError, match="is of another run: {'updates_per_step': 0.2} there, {'updates_per_step': 1}"):
        tune(straight[0], resume=True, updates_per_step=1)
    whole = dp.TrajectoryDataset(offline.store, 4, normalizer=offline.normalizer, inside=True)
    with pytest.raises(ValueError, match="is of another run: {'offline_windows'"):
        planner = dp.DiffusionPlanner.from_pretrained(pretrained)
        dp.finetune(planner, Line, offline=whole, out=straight[0], resume=True, **BRIEF)


def test_episodes_of_a_run_whose_checkpoints_are_gone_are_not_taken_for_new_ones(
    straight: tuple[Path, FinetuningReport], tune: Callable, tmp_path: Path
) -> None:
    shutil.copytree(straight[0] / "replay", tmp_path / "replay")
    with pytest.raises(ValueError, match="is of a run whose checkpoints are gone"):
        tune(tmp_path)


def test_other_agents_than_those_of_the_data_are_refused(
    pretrained: Path, offline: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    planner = dp.DiffusionPlanner.from_pretrained(pretrained)
    with pytest.raises(ValueError, match="fine-tune in the environment of the data"):
        dp.finetune(planner, functools.partial(dp.make, "crossing-v0"), offline=offline, out=tmp_path, **BRIEF)


def test_fine_tuning_takes_all_parts_to_where_the_denoiser_is(
    tune: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class BegunError(Exception):
        pass

    class Begins(dp.CriticMethod):
        def __init__(self, *_: Any, **__: Any):
            raise BegunError

    moved = []
    monkeypatch.setattr(dp.ValueFunction, "to", lambda network, *where: moved.append(where))
    with pytest.raises(BegunError):
        tune(tmp_path, method=Begins)
    assert [where[0] for where in moved] == [torch.device("cpu")]
