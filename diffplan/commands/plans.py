"""Making plans: for the whole team, round what robots are told to do, or of the world under given actions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplan.commands.output import check_ending, save_figure, show
from diffplan.commands.worlds import Options, Run, Scheduler, load, parse_guides

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diffplan.planners import DiffusionPlanner
    from diffplan.spec import Observations
    from diffplan.trajectory import Cells, Plan, Trajectory

COURSES = ("straight", "stay")


@dataclass
class MakePlan:
    """Samples joint plans from the first observations of an episode.

    With --given, some robots' futures are known and the others plan around them: the
    picture shows both, what the team would do and what it does then. With --forecast,
    all actions are known, and the plan is what the network expects of the world.

    For example:
      diffplan plan runs/crossing --plot plan.png
      diffplan plan runs/crossing --seed 3 --num-samples 64 --scheduler dpm
      diffplan plan runs/crossing --guide value=0.5 --guide separation:0.2=10 --deadline-ms 50
      diffplan plan runs/crossing --option num_robots=6 --out plan.safetensors
      diffplan plan runs/crossing --given robot_0=straight --plot what_if.png
      diffplan plan runs/crossing --given robot_0=plan.safetensors --given robot_1=stay
      diffplan plan runs/crossing --forecast plan.safetensors --plot forecast.png
      diffplan plan runs/crossing --forecast data/crossing:7 --plot forecast.png

    Args:
        path: folder of a run or of a planner.
        env: environment to plan in; by default the one that the data are from.
        option: an option of the environment as NAME=VALUE; repeat it for more.
        seed: of the episode and of the plan's noise.
        num_samples: how many candidate plans.
        num_inference_steps: denoising steps.
        scheduler: flow (Euler), ddim or dpm (DPM-Solver++ 2M); by default the planner's own.
        given: what a robot will do, as ROBOT=straight (to its goal), ROBOT=stay or ROBOT=FILE, a plan
            that --out wrote; repeat it for more.
        forecast: forecast under the actions of FILE, a plan that --out wrote, or of STORE:EPISODE, from its
            first step on.
        guide: what plans should be like, as NAME=WEIGHT: value, value:AGENT, rank (by value), separation:METRES
            (separation alone: the robots' diameter), clearance:METRES, speed:LIMIT.
        resample: resample the candidates as particles while they are denoised; needs --guide.
        target_return: rank of the return to plan for, 0 (worst of the data) to 1 (best).
        guidance_scale: how far to go for that; above 1 exaggerates it.
        deadline_ms: be done by then, with fewer candidates and steps.
        decode_actions: read actions off the planned observations (inverse dynamics).
        plot: picture to write (.png, .svg or .pdf).
        out: file for the plan itself (.safetensors; read it with Plan.load).
        json: print the plan's first actions as JSON.
    """

    path: Run
    env: str | None = None
    option: Options = field(default_factory=list)
    seed: int = 0
    num_samples: int = 16
    num_inference_steps: int = 5
    scheduler: Scheduler | None = None
    given: Options = field(default_factory=list)
    forecast: str | None = None
    guide: Options = field(default_factory=list)
    resample: bool = False
    target_return: float | None = None
    guidance_scale: float = 1.0
    deadline_ms: float | None = None
    decode_actions: bool = False
    plot: Path | None = None
    out: Path | None = None
    json: bool = False

    def run(self) -> None:
        if self.plot:
            check_ending("--plot", self.plot)
        if self.out:
            check_ending("--out", self.out, (".safetensors",))
        if self.forecast and self.given:
            raise ValueError("--forecast gives all robots' actions already; leave --given out.")
        planner, env = load(self.path, self.scheduler, self.env, self.option)
        cells: Cells | None
        happened = None
        if self.forecast:
            observations, cells, happened = parse_forecast(self.forecast, planner)
        else:
            observations, _ = env.reset(seed=self.seed)
            cells = parse_given(self.given, planner, observations)
        plan = self._sample(planner, observations, cells)
        if self.out:
            plan.save(self.out)
        if self.plot:
            free = self._sample(planner, observations, None) if self.given else None
            save_figure(self._figure(plan, free, happened), self.plot)
        first = {name: action.tolist() for name, action in plan.actions_at(0).items()}
        written = {name: str(path) for name, path in (("plot", self.plot), ("out", self.out)) if path}
        show({"plan": str(plan), "actions_at_0": first, **written}, self.json)

    def _sample(self, planner: "DiffusionPlanner", observations: "Observations", given: "Cells | None") -> "Plan":
        return planner(
            observations,
            given=given,
            num_samples=self.num_samples,
            num_inference_steps=self.num_inference_steps,
            guides=parse_guides(self.guide, planner),
            resample=self.resample,
            target_return=self.target_return,
            guidance_scale=self.guidance_scale,
            deadline_ms=self.deadline_ms,
            seed=self.seed,
            decode_actions=self.decode_actions,
        )

    def _figure(self, plan: "Plan", free: "Plan | None", happened: "Trajectory | None") -> "Figure":
        from diffplan.plotting import plot_plan, plot_what_if

        if free is not None:
            told = {word.partition("=")[0]: _in_words(word.partition("=")[2]) for word in self.given}
            return plot_what_if(free, plan, told)
        return plot_plan(plan, executed=happened)


def parse_given(words: list[str], planner: "DiffusionPlanner", observations: "Observations") -> "Cells | None":
    """``["robot_0=straight", "robot_1=plan.safetensors"]`` -> what these robots will do; None for no words.

    Raises:
        ValueError: a robot that is not there, or that is told something else than these, or no such plan.
    """
    from diffplan.planners.intentions import stay, straight

    cells = None
    for word in words:
        agent, equals, what = word.partition("=")
        if not (equals and what) or agent not in observations:
            there = f"the robots are {list(observations)}"
            raise ValueError(f"--given {word!r} is not ROBOT=straight, ROBOT=stay or ROBOT=FILE; {there}.")
        if what not in COURSES and not Path(what).is_file():
            raise ValueError(f"--given {word!r}: {what} is neither straight nor stay, nor a file that --out wrote.")
        if what in COURSES:
            course = straight if what == "straight" else stay
            told = course(planner.spec, agent, observations, planner.horizon)
        else:
            told = _present_left_open(_load_plan(Path(what), planner).cells(agent))
        cells = told if cells is None else cells.merge(told)
    return cells


def parse_forecast(word: str, planner: "DiffusionPlanner") -> tuple["Observations", "Cells", "Trajectory | None"]:
    """Where a plan or a recorded episode begins, all its actions, and what happened, where that is known.

    Raises:
        ValueError: no such plan or episode, or one of other agents.
    """
    from diffplan.datasets import TrajectoryStore
    from diffplan.trajectory import Cells

    spec, cells = planner.spec, Cells.unknown(planner.spec, planner.horizon)
    store, colon, number = word.rpartition(":")
    if colon and number.isdigit():
        recorded = TrajectoryStore.open(store)
        if int(number) >= len(recorded):
            raise ValueError(f"--forecast {word}: the store has the episodes 0 to {len(recorded) - 1}.")
        episode = recorded[int(number)]
        if episode.spec.names != spec.names:
            raise ValueError(f"{word} is of agents {list(episode.spec.names)}, the planner of {list(spec.names)}.")
        present, there = episode.observations[0], episode.agent_mask[0]
        actions = episode.actions[: planner.horizon].swapaxes(0, 1)
        cells.actions[there, : actions.shape[1]] = actions[there]
        return _named(spec, present, there), cells, episode
    if not Path(word).is_file():
        raise ValueError(f"--forecast {word}: give a file that --out wrote, or STORE:EPISODE, e.g. data/crossing:7.")
    plan = _load_plan(Path(word), planner).best()
    cells.actions[plan.agent_mask] = plan.actions[0, plan.agent_mask]
    return _named(spec, plan.observations[0, :, 0], plan.agent_mask), cells, None


def _named(spec: Any, present: Any, there: Any) -> "Observations":
    """{agent: its observation} of those that are there."""
    rows = zip(spec.names, present, there, strict=True)
    return {name: row[: spec.role_of(name).observation_size] for name, row, here in rows if here}


def _load_plan(path: Path, planner: "DiffusionPlanner") -> "Plan":
    from diffplan.trajectory import Plan

    plan = Plan.load(path)
    if plan.spec.names != planner.spec.names or plan.horizon != planner.horizon:
        theirs = f"{list(plan.spec.names)}, {plan.horizon} steps"
        raise ValueError(
            f"{path} is a plan of {theirs}, but this is one of {list(planner.spec.names)}, {planner.horizon} steps; "
            "give the same --option as for that plan."
        )
    return plan


def _present_left_open(cells: "Cells") -> "Cells":
    """What is announced of the present gives way to what is seen of it."""
    cells.observations[:, 0] = float("nan")
    return cells


def _in_words(what: str) -> str:
    return {"straight": "goes straight", "stay": "stays"}.get(what, "does as planned")
