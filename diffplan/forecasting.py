"""How far forecasts are from what was recorded.

Of K futures the nearest one counts: *marginal* errors choose it for each agent by itself (minADE and minFDE, arXiv
1803.10892), *joint* ones for all agents of a scene together (minJADE and minJFDE, arXiv 2305.06292).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.progress import Progress

from diffplan.checks import check_counts
from diffplan.datasets.windows import TrajectoryDataset, check_horizon, check_windows
from diffplan.evaluation import Interval, ratio_interval
from diffplan.planners.futures import Futures
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.question import Question, Sampling
from diffplan.planners.representatives import representatives
from diffplan.spec import Actions, JointSpec
from diffplan.trajectory import Cells, Plan, Trajectory


@dataclass(frozen=True, repr=False)
class ForecastReport:
    """What forecasts of recorded windows were worth, in the data's units; ``summary`` gives means with intervals.

    Args:
        agents: how many were scored in each window.
        episodes: which episode of the store each window is of.
        measures: a number for each window, the mean over its agents. ``marginal_ade``, ``joint_ade``: distance of the
            best future from what happened, mean over steps; ``marginal_fde``, ``joint_fde``: where agents were recorded
            last; ``region_80``: how often agents were within the distance of the samples' mean that holds 80 % of
            these; ``collisions`` (only with ``touch``): share of agents in joint futures that come too close to
            another scored one, ``real_collisions``: of those recorded.
    """

    agents: list[int]
    episodes: list[int]
    measures: dict[str, list[float]]

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {interval}" for name, interval in self.summary().items())
        return f"ForecastReport({len(self.agents)} windows: {found})"

    def summary(self) -> dict[str, Interval]:
        """Each measure's mean over agents. Windows of an episode are resampled together, for they share steps."""
        weights = np.array(self.agents, float)
        return {
            name: ratio_interval(weights * values, weights, np.array(self.episodes))
            for name, values in self.measures.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the summary and the windows."""
        return {"summary": {name: asdict(value) for name, value in self.summary().items()}, **asdict(self)}


def evaluate_forecasts(
    planner: DiffusionPlanner | Futures,
    dataset: TrajectoryDataset,
    *,
    futures: int = 20,
    num_samples: int = 200,
    num_inference_steps: int = 5,
    windows: int | None = 500,
    actions: bool = True,
    roles: Sequence[str] | None = None,
    touch: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ForecastReport:
    """Forecasts recorded windows and compares with what happened, for every agent that has a position.

    Args:
        planner: or ``Futures``, which are as many as they are, whatever ``futures``, ``num_samples`` and the steps.
        dataset: windows that the planner did not learn from, of its history and horizon, however normalised.
        futures: K, how many futures of a window may be right; more samples are reduced to them (``representatives``).
        num_samples: of each window.
        num_inference_steps: denoising steps of each sample.
        windows: so many, evenly spread over the dataset; None: all.
        actions: forecast under the recorded actions, where agents have any; False: they are foreseen, too.
        roles: who is scored; all by default.
        touch: who comes closer to another who is scored collides, also between two steps; None: not counted.
        seed: of the samples' noise.
        progress: show a bar with the time left.

    Raises:
        TypeError: no planner, or a store in place of its windows.
        ValueError: windows of another horizon, history or roles, fewer samples than futures, nobody to score, or
            ``touch`` of roles whose positions have different widths.
        FloatingPointError: the planner's forecasts are not finite.

    Example:
        ``held_out = load_dataset("data/test", horizon=13, history=7, inside=True)``
        ``print(evaluate_forecasts(planner, held_out).summary())``
    """
    check_counts(seed, futures=futures, num_samples=num_samples, windows=1 if windows is None else windows)
    if futures > num_samples and not isinstance(planner, Futures):
        raise ValueError(f"futures={futures} of num_samples={num_samples}; sample ten times as many, say.")
    if touch is not None and not 0 < touch < float("inf"):
        raise ValueError(f"touch={touch}; give a distance above 0, or None.")
    _check_fits(planner, dataset)
    scored = _scored_roles(dataset.spec, roles, touch)
    chosen = np.arange(len(dataset)) if windows is None else np.linspace(0, len(dataset) - 1, windows).astype(int)
    chosen, sampling = np.unique(chosen), Sampling(num_samples, num_inference_steps)
    agents, episodes, rows = [], [], []
    with Progress(disable=not progress) as bar:
        for window in bar.track(
            recorded_windows(dataset, chosen, actions, seed), len(chosen), description="forecasting"
        ):
            if who := window.scored(scored):
                rows.append(measured(*_drawn(planner, window, futures, sampling), window, who, touch))
                agents.append(len(who))
                episodes.append(window.episode)
    if not rows:
        raise ValueError(f"nobody of {scored} is there after a window's present in {dataset.store.path}.")
    told = [name for name in rows[0] if name.startswith("marginal") or not getattr(planner, "per_agent", False)]
    return ForecastReport(agents, episodes, {name: [row[name] for row in rows] for name in told})


def _check_fits(planner: DiffusionPlanner | Futures, dataset: TrajectoryDataset) -> None:
    """Raises where these are no windows of the planner's horizon and history."""
    sampler = planner.planner if isinstance(planner, Futures) else planner
    if not isinstance(sampler, DiffusionPlanner):
        raise TypeError(f"planner is a {type(planner).__name__}; give a DiffusionPlanner or Futures.")
    check_windows(dataset)
    check_horizon(dataset, sampler.horizon, sampler.history)


def _scored_roles(spec: JointSpec, roles: Sequence[str] | None, touch: float | None) -> list[str]:
    """The roles to score: all that have a position, or those asked for, if they are among these."""
    placed = [name for name, role in spec.roles.items() if role.position]
    scored = placed if roles is None else [*roles]
    if isinstance(roles, str) or not scored or set(scored) - set(placed):
        raise ValueError(f"roles={roles!r} are not some of those that have a position, {placed}.")
    widths = {name: len(spec.roles[name].position) for name in scored if name in spec.agents.values()}
    if touch is not None and len(set(widths.values())) > 1:
        raise ValueError(f"touch={touch}, but positions have {widths} entries; score roles= of one width, or no touch.")
    return scored


def _drawn(
    planner: DiffusionPlanner | Futures, window: "RecordedWindow", futures: int, sampling: Sampling
) -> tuple[Plan, Plan, Plan | None]:
    """Futures for each agent by itself, futures for all together, and the samples that they stand for, if any."""
    own = planner.for_agents(window.spec)
    if isinstance(own, Futures):
        plan = own.answer([window.question])[0]
        return plan, plan, None
    plan = own.answer([window.question], sampling)[0]
    if not plan.is_finite:
        raise FloatingPointError("forecasts are not finite: the planner did not learn, or is damaged; train it anew.")
    if futures == plan.num_samples:
        return plan, plan, plan
    return representatives(plan, futures, per_agent=True), representatives(plan, futures), plan


@dataclass(frozen=True)
class RecordedWindow:
    """A question about a recorded step, and what happened from there on.

    Args:
        question: what is known at that step.
        happened: from that step on, as far as is asked, of those who are there at it.
        episode: of the store.
    """

    question: Question
    happened: Trajectory
    episode: int

    @property
    def spec(self) -> JointSpec:
        """Of those who are there."""
        return self.happened.spec

    def scored(self, roles: Sequence[str]) -> list[str]:
        """Who is of these roles and still there after the present."""
        stay = np.flatnonzero(self.happened.agent_mask[1:].any(0))
        return [name for name in (self.spec.names[at] for at in stay) if self.spec.agents[name] in roles]

    def positions(self, who: Sequence[str]) -> tuple[Float[np.ndarray, "N T P"], Bool[np.ndarray, "N T"]]:
        """Where they were at the steps after the present, and at which of these they were there."""
        index = [self.spec.names.index(name) for name in who]
        places = [
            self.happened.observations[1:, at][:, list(self.spec.role_of(name).position)]
            for name, at in zip(who, index, strict=True)
        ]
        return _stacked(places), self.happened.agent_mask[1:, index].T


def recorded_windows(
    dataset: TrajectoryDataset, chosen: Int[np.ndarray, "K"], actions: bool = True, seed: int = 0
) -> Iterator[RecordedWindow]:
    """Windows of these indices as questions, of those who are there at the present; see ``recorded_question``.

    Windows in which nobody is are left out.
    """
    for index, number, step in zip(chosen, *dataset.locate(chosen), strict=True):
        first = max(0, int(step) - dataset.history)
        now = int(step) - first
        window = dataset.store[int(number)].after(first, now + dataset.horizon)
        if not (there := window.agent_mask[now]).any():
            continue
        present = np.flatnonzero(there)
        team = window.spec.among([window.spec.names[at] for at in present])
        window = window.among(team, present)
        question = recorded_question(window, now, dataset.history, dataset.horizon, actions=actions)
        question = dataclasses.replace(question, seed=seed + int(index))
        yield RecordedWindow(question, window.after(now), int(number))


def recorded_question(episode: Trajectory, step: int, history: int, horizon: int, *, actions: bool = True) -> Question:
    """What is known at a step of an episode: the present, the ``history`` before it, and what will be done.

    Args:
        episode: as it was recorded.
        step: the present, an observation of the episode.
        history: steps before it, fewer where the episode began later.
        horizon: steps from it on.
        actions: whether later actions are known.
    """
    spec, there = episode.spec, episode.agent_mask

    def acted(at: int) -> Actions:  # as recorded, also beyond the bounds that unstack_actions keeps
        rows = zip(spec.names, episode.actions[at], there[at], strict=True)
        return {name: row[: spec.role_of(name).action_size] for name, row, here in rows if here}

    before = range(max(0, step - history), step)
    past = [(spec.unstack_observations(episode.observations[at], there[at]), acted(at)) for at in before]
    given = None
    if actions and spec.action_size:
        given = Cells.unknown(spec, horizon)
        rest = slice(step, min(step + horizon, len(episode.actions)))
        known = there[rest] & there[rest.start + 1 : rest.stop + 1] & there[step]
        done = np.where(known[..., None], episode.actions[rest], np.nan).swapaxes(0, 1)
        given.actions[:, : done.shape[1]] = done
    return Question(spec.unstack_observations(episode.observations[step], there[step]), past, given)


# --- measures


def measured(
    alone: Plan,
    together: Plan,
    samples: Plan | None,
    window: RecordedWindow,
    who: Sequence[str],
    touch: float | None = None,
) -> dict[str, float]:
    """Each measure of one window, see ``ForecastReport``; ``region_80`` only where there are samples.

    Args:
        alone: futures among which every agent has one of its own that is nearest.
        together: futures of the whole scene.
        samples: what these stand for.
        window: what happened.
        who: whose forecasts count.
        touch: see ``evaluate_forecasts``.
    """
    real, there = window.positions(who)
    found = scene_errors(later_positions(alone, who), later_positions(together, who), real, there, touch)
    if samples is not None:
        found["region_80"] = inside(later_positions(samples, who), real, there, 0.8)
    return found


def later_positions(plan: Plan, who: Sequence[str]) -> Float[np.ndarray, "K N H P"]:
    """Where they are in each of a plan's candidates at the steps after the present."""
    return _stacked([plan.positions(name)[:, 1:] for name in who], axis=1)


def _stacked(places: Sequence[Float[np.ndarray, "..."]], axis: int = 0) -> Float[np.ndarray, "..."]:
    """Positions of several agents, of one width: zeros, which no distance counts, follow the narrower ones."""
    widest = max(place.shape[-1] for place in places)
    wide = [np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, widest - one.shape[-1])]) for one in places]
    return np.stack(wide, axis=axis)


def scene_errors(
    alone: Float[np.ndarray, "K N H P"],
    together: Float[np.ndarray, "K N H P"],
    real: Float[np.ndarray, "N T P"],
    there: Bool[np.ndarray, "N T"],
    touch: float | None = None,
) -> dict[str, float]:
    """``measured`` of positions; what happened was recorded for T steps of H, and only where agents were ``there``."""
    T = real.shape[1]
    last = T - 1 - there[:, ::-1].argmax(1)
    off, off_together = (np.linalg.norm(one[:, :, :T] - real, axis=-1) for one in (alone, together))
    mean, mean_together = ((one * there).sum(-1) / there.sum(-1) for one in (off, off_together))
    end, end_together = (one[:, np.arange(len(real)), last] for one in (off, off_together))
    found = {
        "marginal_ade": mean.min(0).mean(),
        "marginal_fde": end.min(0).mean(),
        "joint_ade": mean_together.mean(1).min(),
        "joint_fde": end_together.mean(1).min(),
    }
    if touch is not None:
        found["collisions"] = colliding(together[:, :, :T], there, touch).mean()
        found["real_collisions"] = colliding(real[None], there, touch).mean()
    return {name: float(value) for name, value in found.items()}


def inside(
    futures: Float[np.ndarray, "K N H P"],
    real: Float[np.ndarray, "N T P"],
    there: Bool[np.ndarray, "N T"],
    share: float,
) -> float:
    """How often agents are within the distance of the futures' mean that holds this share of the futures."""
    futures = futures[:, :, : real.shape[1]]
    middle = futures.mean(0)
    spread, error = (np.linalg.norm(one - middle, axis=-1) for one in (futures, real))
    return float((error <= np.quantile(spread, share, axis=0))[there].mean())


def colliding(
    futures: Float[np.ndarray, "K N T P"], there: Bool[np.ndarray, "N T"], touch: float
) -> Bool[np.ndarray, "K N"]:
    """Who comes closer than ``touch`` to anybody, also between two steps, while both are there."""
    apart = futures[:, :, None] - futures[:, None]
    start, move = apart[..., :-1, :], np.diff(apart, axis=-2)
    share = -(start * move).sum(-1) / np.maximum((move * move).sum(-1), 1e-9)
    closest = np.linalg.norm(start + share.clip(0, 1)[..., None] * move, axis=-1)
    stay = there[:, :-1] & there[:, 1:]
    passing = (closest < touch) & stay[:, None] & stay
    touching = (np.linalg.norm(apart, axis=-1) < touch) & there[:, None] & there
    met = (passing.any(-1) | touching.any(-1)) & ~np.eye(len(there), dtype=bool)
    return np.asarray(met.any(-1))
