"""Forecasts real people: trains on recorded walkers and basketball players, writes docs/results/real.json.

    python scripts/benchmark_real.py --data DIR --rows zara1 nba --seeds 3

DIR holds ``eth_ucy`` (``splits.json`` and the text files it names) and ``nba_sportvu`` (``rebound_{train,test}.npz``,
``score_train.npz``). Of every window of 20 frames 8 are observed and 12 forecast; 20 futures are compared with what
people did: *marginal* are 20 futures of each person by itself, *joint* 20 whole scenes. Walkers' are means of clusters
of 50 to 1,000 joint samples, fewer in large crowds; joint ones are moved clear of each other. Basketball players' are
drawn by networks that were taught to have one of 20 right (``Futures``), with means of clusters beside them, by which
agent attention is judged. Players know who is in their team, and where the hoops are.
``collisions``: the share of people in joint futures who come closer than 0.2 m to anybody, also between two frames.
``region_80``: how often people are within the distance of the samples' mean that holds 80 % of these. Settings are
chosen on validation files, one excepted: jitter, by planners that learned from neither of two scenes, on training files
of all five, parts of which are other folds' tests. What eth and hotel are without it stands beside. Planners and scores
lie below runs/real.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basketball import players
from figures import RESULTS, Figure, one_thread, record

import diffplan as dp
from diffplan.child_process import follow_parent
from diffplan.datasets.importers import EthUcy
from diffplan.evaluation import ratio_interval
from diffplan.files import claim, read_json, write_json
from diffplan.forecasting import RecordedWindow, measured, recorded_windows

FOLDER = Path("runs/real")
OBSERVED, FORECAST, FUTURES = 8, 12, 20
FORECASTS = dp.QuestionMix(1, 0, 0, 0, 0, 0, 0, 0, independent_levels=0)
FOLDS = {"eth": (70, 181), "hotel": (301, 1_053), "univ": (947, 24_334), "zara1": (602, 2_253), "zara2": (921, 5_833)}
TOUCH = 0.2  # m: who comes closer collides
CLEAR = dp.ConstraintGuide.separation(0.25, between_steps=True)  # m; chosen on zara1's validation files
DENOISING_STEPS = 8
FUTURES_OF = {"joint": "clusters of samples", "alone": "no agent attention", "exact": "no jitter"}
VARIANTS = {"alone": ("zara1", "nba"), "exact": ("eth", "hotel")}
LAYOUT: dict[str, Any] = {"horizon": FORECAST + 1, "history": OBSERVED - 1, "inside": True}
FEET = 3.28084
MEASURES = ("marginal_ade", "marginal_fde", "joint_ade", "joint_fde", "collisions", "real_collisions")


@dataclass(frozen=True)
class Kind:
    """How a kind of people is learned, forecast and judged."""

    crowd: int | None  # places of a training window
    neighbours: int
    width: int
    steps: int
    augmentation: dp.Augmentation
    samples: int  # of a window, for all its agents together
    touch: float  # who comes closer collides, in the data's units
    futures_steps: int  # 0: none are taught
    roles: tuple[str, ...] | None  # who is forecast
    clear: dp.ConstraintGuide | None = None  # what joint futures are moved to fulfil


WALKERS = Kind(16, 8, 96, 2_000, dp.Augmentation(mirror=True, scale=1.3, jitter=0.15), 12_000, TOUCH, 0, None, CLEAR)
PLAYERS = Kind(None, 12, 160, 30_000, dp.Augmentation(mirror=True), 2_000, TOUCH * FEET, 3_000, ("home", "away"))


def kind_of(name: str) -> Kind:
    return PLAYERS if name == "nba" else WALKERS


@dataclass(frozen=True)
class Scores:
    """One number of each measure for every window, how many people it had, and which block of windows it is of.

    Blocks share frames with their neighbours alone: as if they shared none.
    """

    people: np.ndarray
    block: np.ndarray
    measures: dict[str, np.ndarray]
    seeds: int

    @property
    def windows(self) -> int:
        return int((self.people > 1).sum())

    def mean(self, name: str, by_person: bool = True) -> dp.Interval:
        """Over windows of two and more people, weighted by people; or over all windows alike."""
        weights = self.people * (self.people >= 2.0) if by_person else np.ones(len(self.people))
        return ratio_interval(weights * self.measures[name], weights, self.block)

    def gain(self, other: "Scores", name: str) -> dp.Interval:
        """The share of another's error that this one saves, over the windows of the other's seeds."""
        first, weights = len(other.people), other.people * (other.people >= 2.0)
        ours, theirs = (one.measures[name][:first] * weights for one in (self, other))
        left = ratio_interval(ours, theirs, other.block)
        return dp.Interval(1 - left.value, 1 - left.high, 1 - left.low)


# --- data


def walkers(data: Path, files: list[str], name: str) -> dp.TrajectoryStore:
    """All windows of 20 frames of these files, with the people who are there in every one of them."""
    out, source = FOLDER / "data" / name, FOLDER / "source" / name
    if not (out / "manifest.json").exists():
        source.mkdir(parents=True, exist_ok=True)
        for file in files:
            (source / Path(file).name).write_bytes((data / "eth_ucy" / file).read_bytes())
        dp.import_episodes(EthUcy(source, frames=OBSERVED + FORECAST, stride=1, complete=True), out)
    return dp.TrajectoryStore.open(out)


def stores(data: Path, name: str) -> list[dp.TrajectoryStore]:
    """What a fold (or basketball) is learned from, and what it is tested on; imported at the first call."""
    if name == "nba":
        return [players(data, part, FOLDER / "data" / f"nba_{part}") for part in ("train", "test")]
    files = read_json(data / "eth_ucy" / "splits.json")[name]
    return [walkers(data, files[part], f"{name}_{part}") for part in ("train", "test")]


# --- planners


def train(name: str, store: dp.TrajectoryStore, seed: int, variant: str) -> dp.DiffusionPlanner:
    """A planner for windows of this store, one of ``FUTURES_OF``; one that is there already is read."""
    out = FOLDER / f"{name}_{variant}_{seed}"
    if (out / "planner").exists():
        return dp.DiffusionPlanner.from_pretrained(out)
    kind = kind_of(name)
    dataset = dp.load_dataset(store.path, **LAYOUT, normalizer="motion", crowd=kind.crowd)
    whole = OBSERVED + FORECAST  # one token a person
    options = {"patch_size": whole, "frames": True, "pace": True, "neighbours": kind.neighbours, "width": kind.width}
    planner = dp.DiffusionPlanner.for_dataset(dataset, **options, agent_attention=variant != "alone", seed=seed)
    augmentation = replace(kind.augmentation, jitter=0.0) if variant == "exact" else kind.augmentation
    dp.train(
        planner, dataset, steps=kind.steps, batch_size=64, mix=FORECASTS, start_share=0.0,
        augmentation=augmentation, seed=seed, out=out, resume=True, progress=False,
    )  # fmt: skip
    return planner


def teach(name: str, store: dp.TrajectoryStore, seed: int, per_agent: bool) -> dp.Futures:
    """Twenty futures from a planner's weights; those that are there already are read."""
    out = FOLDER / f"{name}_{'agents' if per_agent else 'scenes'}_{seed}"
    if (out / "planner").exists():
        return dp.Futures.from_pretrained(out)
    planner, kind = train(name, store, seed, "joint"), kind_of(name)
    futures = dp.Futures.of(planner, FUTURES, per_agent=per_agent, seed=seed)
    dataset = dp.load_dataset(store.path, **LAYOUT, normalizer=planner.normalizer, crowd=kind.crowd)
    dp.train_futures(
        futures, dataset, steps=kind.futures_steps, mix=FORECASTS, roles=kind.roles,
        augmentation=kind.augmentation, seed=seed, out=out, resume=True, progress=False,
    )  # fmt: skip
    return futures


# --- forecasts and their scores


def asked(store: dp.TrajectoryStore) -> Iterator[RecordedWindow]:
    """All windows of a store; people have no actions that could be known."""
    windows = dp.TrajectoryDataset(store, **LAYOUT)
    return recorded_windows(windows, np.arange(len(windows)))


def sampled(planner: dp.DiffusionPlanner, window: RecordedWindow, kind: Kind) -> dp.Plan:
    samples = int(np.clip(kind.samples // window.spec.num_agents, 50, 1_000))
    return planner.for_agents(window.spec).answer([window.question], dp.Sampling(samples, DENOISING_STEPS))[0]


def score(
    alone: dp.Plan, together: dp.Plan, window: RecordedWindow, kind: Kind, samples: dp.Plan | None = None
) -> tuple[int, dict[str, float]]:
    """How many people, and each measure of the best of 20 futures; only people's forecasts are scored."""
    people = window.scored([role for role in window.spec.roles if role not in ("ball", "hoop")])
    if kind.clear is not None and len(people) > 1:
        together = dp.projected(together, kind.clear)
    found = measured(alone, together, samples, window, people, kind.touch)
    return len(people), found


def run(data: Path, name: str, seed: int, variant: str) -> dict[str, Any]:
    """Trains on a fold (or on basketball) and scores clusters of samples; what is there already is read."""
    path = FOLDER / f"{name}_{variant}_{seed}.json"
    if path.exists() and {*MEASURES, "region_80"} <= set(found := read_json(path)):
        return found
    known, unseen = stores(data, name)
    planner, kind, scores = train(name, known, seed, variant), kind_of(name), []
    for window in asked(unseen):
        plan = sampled(planner, window, kind)
        alone, together = (dp.representatives(plan, FUTURES, per_agent=per_agent) for per_agent in (True, False))
        scores.append(score(alone, together, window, kind, plan))
    return written(path, name, scores)


def run_futures(data: Path, name: str, seed: int) -> dict[str, Any]:
    """The same of futures that were taught."""
    path = FOLDER / f"{name}_futures_{seed}.json"
    if path.exists() and set(MEASURES) <= set(found := read_json(path)):
        return found
    known, unseen = stores(data, name)
    taught, scores = [teach(name, known, seed, per_agent) for per_agent in (True, False)], []
    for window in asked(unseen):
        alone, together = (one.for_agents(window.spec).answer([window.question])[0] for one in taught)
        scores.append(score(alone, together, window, kind_of(name)))
    return written(path, name, scores)


def written(path: Path, name: str, scores: list[tuple[int, dict[str, float]]]) -> dict[str, Any]:
    people = np.array([number for number, _ in scores])
    if name in FOLDS and (counted := (int((people > 1).sum()), int(people[people > 1].sum()))) != FOLDS[name]:
        raise ValueError(f"{name} has {counted} windows and people in them, the published protocol {FOLDS[name]}.")
    result = {"people": people.tolist()} | {m: [float(one[m]) for _, one in scores] for m in scores[0][1]}
    write_json(path, result)
    return result


def merged(results: list[dict[str, Any]], name: str) -> Scores:
    """The scores of several seeds; windows of people who walk begin at every frame, clips of players stand alone."""

    def together(key: str) -> np.ndarray:
        return np.concatenate([np.array(one[key]) for one in results])

    block = np.concatenate([np.arange(len(one["people"])) for one in results])
    block //= 1 if name == "nba" else OBSERVED + FORECAST
    measures = [measure for measure in (*MEASURES, "region_80") if measure in results[0]]
    return Scores(together("people"), block, {measure: together(measure) for measure in measures}, len(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=[*FOLDS, "nba"], default=[*FOLDS, "nba"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--picture", type=Path, help="also draw the forecast of a crowd of zara1's here")
    arguments = parser.parse_args()
    for row in arguments.rows:
        claim(FOLDER / row, asdict(replace(kind_of(row), clear=None)))  # what is there may be of other settings
        stores(arguments.data, row)  # not by two workers at once
    jobs = [(arguments.data, row, seed, "joint") for seed in range(arguments.seeds) for row in arguments.rows]
    taught = [job[:3] for job in jobs if kind_of(job[1]).futures_steps]
    for variant, rows in VARIANTS.items():
        for row in (row for row in arguments.rows if row in rows):  # basketball takes long: one training
            jobs += [(arguments.data, row, seed, variant) for seed in range(arguments.seeds if row in FOLDS else 1)]
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), follow_parent) as pool:
        clusters = dict(zip(jobs, pool.map(run, *zip(*jobs, strict=True)), strict=True))
        futures = {job: pool.submit(run_futures, *job) for job in taught}
    command = f"python scripts/benchmark_real.py --data DIR --rows {' '.join(arguments.rows)} --seeds {arguments.seeds}"
    scores = {}
    for row, variant in dict.fromkeys(job[1::2] for job in jobs):
        trainings = [one for job, one in clusters.items() if job[1::2] == (row, variant)]
        scores[row, FUTURES_OF[variant]] = merged(trainings, row)
    for row in dict.fromkeys(job[1] for job in taught):
        scores[row, "taught"] = merged([one.result() for job, one in futures.items() if job[1] == row], row)
    found = all_figures(scores, command)
    if "nba" in arguments.rows:
        found.append(latency(arguments.data, command))
    record(RESULTS / "real.json", found)
    if arguments.picture:
        draw(arguments.data, arguments.picture)


def draw(data: Path, path: Path, people: int = 6) -> None:
    """Draws twenty futures of the first window of zara1 with so many people, over what they did."""
    store = walkers(data, read_json(data / "eth_ucy" / "splits.json")["zara1"]["test"], "zara1_test")
    planner = dp.DiffusionPlanner.from_pretrained(FOLDER / "zara1_joint_0")
    window = next(one for one in asked(store) if one.spec.num_agents == people)
    plan = dp.projected(dp.representatives(sampled(planner, window, WALKERS), FUTURES), CLEAR)
    dp.plot_plan(plan, window.happened).savefig(path)


def latency(data: Path, command: str, calls: int = 100) -> Figure:
    """How long 20 joint futures of a ball, ten players and two hoops take, on one core: samples, and taught ones."""
    torch.set_num_threads(1)
    question = next(asked(stores(data, "nba")[1])).question
    planner = dp.DiffusionPlanner.from_pretrained(FOLDER / "nba_joint_0")
    futures = dp.Futures.from_pretrained(FOLDER / "nba_scenes_0")

    def timed(answer: Callable[[dp.Question], Any]) -> tuple[float, float, float]:
        times = []
        for seed in range(calls + 5):
            started = time.perf_counter()
            answer(replace(question, seed=seed))
            times.append(1_000 * (time.perf_counter() - started))
        low, high = np.quantile(times[5:], (0.025, 0.975))
        return float(np.median(times[5:])), float(low), float(high)

    taught = Figure("", *timed(lambda one: futures.answer([one])), "ms", 1, calls, "")
    samples = timed(lambda one: planner.answer([one], dp.Sampling(FUTURES)))
    return Figure("real_latency_20_ms", *samples, "ms", 1, calls, command, {"taught": taught})


def all_figures(scores: dict[tuple[str, str], Scores], command: str) -> list[Figure]:
    def figure(
        label: str, mean: dp.Interval, unit: str, seeds: int, windows: int, beside: dict[str, Figure] | None = None
    ) -> Figure:
        return Figure(label, mean.value, mean.low, mean.high, unit, seeds, windows, command, beside or {})

    def measured_for(row: str, way: str, measure: str, label: str, unit: str) -> Figure:
        """A measure of these futures, beside what it is of others."""
        one = scores[row, way]
        others = {
            other: figure("", two.mean(measure), unit, two.seeds, two.windows)
            for (of, other), two in scores.items()
            if of == row and other not in (way, "taught") and measure in two.measures
        }
        if measure == "collisions":
            real = figure("", one.mean("real_collisions"), unit, one.seeds, one.windows)
            others = {"real people": real} | others
        return figure(label, one.mean(measure), unit, one.seeds, one.windows, others)

    clusters, alone, exact = FUTURES_OF.values()
    found = []
    for row in dict.fromkeys(row for row, _ in scores):
        best = "taught" if (row, "taught") in scores else clusters
        unit, name = ("feet", "nba_rebound") if row == "nba" else ("m", row)
        found += [measured_for(row, best, measure, f"{name}_{measure}", unit) for measure in MEASURES[:4]]
        found.append(measured_for(row, best, "collisions", f"collisions_{row}", "share"))
        found.append(measured_for(row, clusters, "region_80", f"region_80_{row}", "share"))
        if (row, alone) in scores:
            other = scores[row, alone]
            saved = scores[row, clusters].gain(other, "joint_ade")
            found.append(figure(f"joint_gain_{row}", saved, "share", other.seeds, other.windows))
    if all((fold, clusters) in scores for fold in FOLDS):
        folds = [scores[fold, clusters] for fold in FOLDS]
        without = [scores.get((fold, exact), scores[fold, clusters]) for fold in FOLDS]
        seeds, windows = folds[0].seeds, sum(one.windows for one in folds)
        for measure in MEASURES[:4]:
            beside = {f"eth and hotel: {exact}": figure("", mean_of(without, measure), "m", seeds, windows)}
            found.append(figure(f"eth_ucy_{measure}", mean_of(folds, measure), "m", seeds, windows, beside))
        eth, other = scores["eth", clusters], scores["eth", exact]
        for end in ("joint_ade", "joint_fde"):
            mean, without_mean = (one.mean(end, by_person=False) for one in (eth, other))
            beside = {exact: figure("", without_mean, "m", other.seeds, len(other.people))}
            label = f"eth_joint_published_{end[-3:]}"
            found.append(figure(label, mean, "m", eth.seeds, len(eth.people), beside))
    return found


def mean_of(folds: list[Scores], measure: str) -> dp.Interval:
    """Over folds, which are independent of each other."""
    means = [one.mean(measure) for one in folds]
    half = np.sqrt(np.sum([((mean.high - mean.low) / 2) ** 2 for mean in means])) / len(folds)
    value = float(np.mean([mean.value for mean in means]))
    return dp.Interval(value, value - half, value + half)


if __name__ == "__main__":
    one_thread()
    main()
