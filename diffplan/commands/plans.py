"""Making plans: for the whole team, round what robots are told to do, or of the world under given actions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplan.commands.output import check_ending, show
from diffplan.commands.worlds import Options, Run, Scheduler, check_ranks, load, load_planner, parse_guides

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diffplan.planners import DiffusionPlanner
    from diffplan.spec import Actions, Observations
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
      diffplan plan runs/walkers --forecast data/walkers:3@12 --num-samples 200 --representatives 20 --plot walk.png

    Args:
        path: folder of a run or of a planner.
        env: environment to plan in; by default the one that the data are from.
        option: an option of the environment as NAME=VALUE; repeat it for more.
        seed: of the episode and of the plan's noise.
        num_samples: how many candidate plans.
        representatives: reduce the candidates to so many that stand for all of them, means of clusters.
        num_inference_steps: denoising steps.
        scheduler: flow (Euler), ddim or dpm (DPM-Solver++ 2M); by default the planner's own.
        given: what a robot will do, as ROBOT=straight (to its goal), ROBOT=stay or ROBOT=FILE, a plan
            that --out wrote; repeat it for more.
        forecast: forecast under the actions of FILE, a plan that --out wrote, or of STORE:EPISODE[@STEP]: from
            that step on, by default from the first one that has all the past that the planner takes, and agents.
            Where agents have no actions, as people in recordings, it is a forecast of what they do.
        guide: what plans should be like, as NAME=WEIGHT: value, value:AGENT, rank (by value), separation:METRES
            (separation alone: the robots' diameter), clearance:METRES, speed:LIMIT.
        resample: resample the candidates as particles while they are denoised; needs --guide.
        target_return: rank of the return to plan for, 0 (worst of the data) to 1 (best).
        guidance_scale: how far to go for that; above 1 exaggerates it.
        deadline_ms: be done by then, with fewer candidates and steps: half denoised, where time is short.
        decode_actions: read actions off the planned observations (inverse dynamics); mostly worse, for small errors of
            planned positions become actions.
        plot: picture to write (.png, .svg or .pdf).
        out: file for the plan itself (.safetensors; read it with Plan.load).
        json: print the plan's first actions as JSON.
    """

    path: Run
    env: str | None = None
    option: Options = field(default_factory=list)
    seed: int = 0
    num_samples: int = 16
    representatives: int | None = None
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
        self._check()
        asked = self._asked()
        plan = self._sample(asked, asked.given)
        if self.plot:  # first: what cannot be drawn leaves nothing written
            from diffplan.plotting import save_figure

            free = self._sample(asked, None) if self.given else None
            save_figure(self._figure(plan, free, asked.happened), self.plot)
        if self.out:
            plan.save(self.out)
        driven = {word.partition("=")[0] for word in self.given}  # of these the course is given, not how they keep it
        actions = {
            name: action.tolist() for name, action in plan.actions_at(0).items() if action.size and name not in driven
        }
        first = {"actions_at_0": actions} if actions else {}  # people have none
        done, steps = plan.num_inference_steps or 0, self.num_inference_steps
        cut = f", denoised in {done} of {steps} steps for the deadline" * (done < steps)
        written = {name: str(path) for name, path in (("plot", self.plot), ("out", self.out)) if path}
        show({"plan": f"{plan}{cut}", **first, **written}, self.json)

    def _check(self) -> None:
        """Raises ``ValueError`` where options do not go together."""
        if self.plot:
            check_ending("--plot", self.plot)
        if self.out:
            check_ending("--out", self.out, (".safetensors",))
        if self.num_samples == 1:
            check_ranks(self.guide)
        if self.representatives is not None and any(word.startswith("rank") for word in self.guide):
            raise ValueError("--guide rank ranks candidates, of which --representatives makes means; leave one out.")
        if self.representatives is not None and not 1 <= self.representatives <= self.num_samples:
            told = f"--representatives {self.representatives} of --num-samples {self.num_samples}"
            raise ValueError(f"{told}; ask for 1 or more, and for at least as many samples, e.g. ten times as many.")
        if self.forecast and (self.given or self.env or self.option):
            raise ValueError(
                "--forecast says who is there, and gives all their actions; leave --given, --env and --option out."
            )

    def _asked(self) -> "Asked":
        if self.forecast:
            return parse_forecast(self.forecast, load_planner(self.path, self.scheduler))
        planner, env = load(self.path, self.scheduler, self.env, self.option)
        observations, _ = env.reset(seed=self.seed)
        return Asked(planner, observations, parse_given(self.given, planner, observations))

    def _sample(self, asked: "Asked", given: "Cells | None") -> "Plan":
        from diffplan.planners import representatives

        plan = asked.planner(
            asked.observations,
            past=asked.past,
            given=given,
            num_samples=self.num_samples,
            num_inference_steps=self.num_inference_steps,
            guides=parse_guides(self.guide, asked.planner),
            resample=self.resample,
            target_return=self.target_return,
            guidance_scale=self.guidance_scale,
            deadline_ms=self.deadline_ms,
            seed=self.seed,
            decode_actions=self.decode_actions,
        )
        if not plan.is_finite:
            raise FloatingPointError(
                f"the plan is not finite: {self.path} did not learn, or is damaged; train it anew."
            )
        few = self.representatives  # a deadline may have left fewer candidates
        return plan if few is None else representatives(plan, min(few, plan.num_samples))

    def _figure(self, plan: "Plan", free: "Plan | None", happened: "Trajectory | None") -> "Figure":
        from diffplan.plotting import plot_plan, plot_what_if

        if free is not None:
            told = {word.partition("=")[0]: _in_words(word.partition("=")[2]) for word in self.given}
            return plot_what_if(free, plan, told)
        return plot_plan(plan, executed=happened)


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for: by which planner, what its agents see, what is known of later, what was before, and
    what happened then, where that is recorded."""

    planner: "DiffusionPlanner"
    observations: Mapping[str, Any]
    given: "Cells | None"
    past: "Sequence[tuple[Observations, Actions]]" = ()
    happened: "Trajectory | None" = None


def parse_given(words: list[str], planner: "DiffusionPlanner", observations: "Observations") -> "Cells | None":
    """``["robot_0=straight", "robot_1=plan.safetensors"]`` -> what these robots will do; None for no words.

    Raises:
        ValueError: a robot that is not there, or that is told something else than these, or no such plan.
    """
    from diffplan.planners.intentions import stay, straight
    from diffplan.trajectory import Plan

    cells, agents = None, [word.partition("=")[0] for word in words]
    for word in words:
        agent, equals, what = word.partition("=")
        if not (equals and what) or agent not in observations:
            there = f"the robots are {list(observations)}"
            raise ValueError(f"--given {word!r} is not ROBOT=straight, ROBOT=stay or ROBOT=FILE; {there}.")
        if agents.count(agent) > 1:
            raise ValueError(f"--given tells {agent} {agents.count(agent)} things; give one for each robot.")
        if what not in COURSES and not Path(what).is_file():
            raise ValueError(f"--given {word!r}: {what} is neither straight nor stay, nor a file that --out wrote.")
        if what in COURSES:
            course = straight if what == "straight" else stay
            told = course(planner.spec, agent, observations, planner.horizon)
        else:
            plan = Plan.load(what)
            _check_plan(what, plan, planner)
            told = plan.cells(agent)
            told.observations[:, 0] = float("nan")  # what was planned for the present gives way to what is seen of it
        cells = told if cells is None else cells.merge(told)
    return cells


def parse_forecast(word: str, planner: "DiffusionPlanner") -> Asked:
    """What ``--forecast`` names, a plan or a recorded step: the planner is for its agents, and all actions are given.

    Raises:
        ValueError: no such plan, episode or step, or one of other agents than the planner knows.
    """
    from diffplan.forecasting import recorded_question
    from diffplan.trajectory import Cells, Plan

    store, colon, where = word.rpartition(":")
    number, _, at = where.partition("@")
    if colon and number.isdigit() and (at.isdigit() or (at == "" and "@" not in where)):
        episode = _episode(word, store, int(number))
        planner = planner.for_agents(episode.spec)
        inhabited = (one for one in range(planner.history, len(episode)) if episode.agent_mask[one].any())
        step = int(at) if at else next(inhabited, min(planner.history, len(episode) - 1))
        if step >= len(episode):
            raise ValueError(f"--forecast {word}: the episode has the steps 0 to {len(episode) - 1}.")
        asked = recorded_question(episode, step, planner.history, planner.horizon)
        return Asked(planner, asked.observations, asked.given, asked.past, episode.after(step))
    if not Path(word).is_file():
        raise ValueError(f"--forecast {word}: give a file that --out wrote, or STORE:EPISODE[@STEP], as data/store:7.")
    plan = Plan.load(word).best()
    planner = planner.for_agents(plan.spec)
    _check_plan(word, plan, planner)
    cells = Cells.unknown(planner.spec, planner.horizon)
    cells.actions[plan.agent_mask] = plan.actions[0, plan.agent_mask]
    seen = plan.spec.unstack_observations(plan.observations[0, :, 0], plan.agent_mask)
    return Asked(planner, seen, cells)


def _episode(word: str, store: str, number: int) -> "Trajectory":
    from diffplan.datasets import TrajectoryStore

    recorded = TrajectoryStore.open(store)
    if number >= len(recorded):
        raise ValueError(f"--forecast {word}: the store has the episodes 0 to {len(recorded) - 1}.")
    return recorded[number]


def _check_plan(path: str, plan: "Plan", planner: "DiffusionPlanner") -> None:
    if not plan.is_finite:
        raise ValueError(f"{path} is a plan of numbers that are not finite; make another one.")
    if plan.spec.names != planner.spec.names or plan.horizon != planner.horizon:
        theirs = f"{list(plan.spec.names)}, {plan.horizon} steps"
        raise ValueError(
            f"{path} is a plan of {theirs}, but this is one of {list(planner.spec.names)}, {planner.horizon} steps; "
            "give the same --option as for that plan."
        )


def _in_words(what: str) -> str:
    return {"straight": "goes straight", "stay": "stays"}.get(what, "does as planned")
