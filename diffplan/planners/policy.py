"""Receding-horizon control: plan, execute the first steps, replan from where the world is now, warm-started."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from diffplan.planners.action_spread import openness
from diffplan.planners.components import check_value
from diffplan.planners.guidance import check_levels
from diffplan.planners.guides import Guide
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.question import Question, Sampling
from diffplan.planners.ranking import check_ranked
from diffplan.planners.refinement import CANDIDATES, PRICE, check_candidates, refine_first_actions
from diffplan.planners.safety import SafetyFilter
from diffplan.planners.sampling import noise_levels
from diffplan.spec import Actions, Observations
from diffplan.trajectory import Plan


@dataclass(repr=False)
class PlanningStats:
    """What planning cost: seconds of every planning call and plans in it, and plans that were not used and why."""

    seconds: list[float] = field(default_factory=list)
    plans: list[int] = field(default_factory=list)
    late: int = 0
    not_finite: int = 0

    def clear(self) -> None:
        """Counts anew."""
        vars(self).update(vars(type(self)()))

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={count}" for name, count in vars(self).items() if not isinstance(count, list))
        planned = f"{sum(self.plans)} plans in {len(self.seconds)} calls, {self.milliseconds_a_plan:.3g} ms a plan"
        return f"{type(self).__name__}({planned}, {told})"

    @property
    def fallbacks(self) -> int:
        return self.late + self.not_finite

    @property
    def milliseconds_a_plan(self) -> float:
        """NaN where nothing was planned."""
        return 1e3 * sum(self.seconds) / (sum(self.plans) or math.nan)


@dataclass
class _Episode:
    """What the policy remembers of one environment."""

    seed: int
    past: deque[tuple[Observations, Actions]]
    plan: Plan | None = None
    age: int = 0
    cut: bool = False  # the plan from noise ran out of time before it settled on a joint way: the next one starts anew
    steps: int = 0
    latents: np.ndarray | None = None
    seen: dict[str, np.ndarray] = field(default_factory=dict)  # of each agent, every entry when it was last known


class RecedingHorizonPolicy:
    """Acts by planning every ``execute_steps`` steps, and when an agent joins, for one environment or a batch of them.

    Args:
        planner: the planner; its spec must have the environment's agents (see ``DiffusionPlanner.for_agents``).
        execute_steps: planned steps to execute before planning anew.
        num_samples: candidates a plan; the one of highest value is executed, by all guides, the first where there are
            none. None: 1, or 8 to ``refine``.
        num_inference_steps: denoising steps of a first plan.
        warm_start_level: noise level from which later plans start, on the shifted last plan; None: always from noise.
        warm_start_steps: denoising steps of later plans. One step gives the mean of all plans near the last one, which
            keeps its joint way but not the noise that was in the data; more steps sample anew, noise and all.
        decode_actions: read actions off the planned observations, see ``DiffusionPlanner.__call__``.
        guides: what plans should be like, see ``DiffusionPlanner.__call__``.
        resample: treat the candidates as particles, see there; later plans of one step are guided without.
        target_return: see there.
        guidance_scale: see there.
        realism: see there.
        refine: how far the planner's value function may move the first action of a plan uphill, in the normaliser's
            units, standard deviations of the data's actions for a Gaussian one; less where the data leave little open,
            or candidates differ little, as particles do, and not at all where a deadline leaves one. 0 leaves it as
            planned. Wants ``execute_steps=1``.
        refine_price: share of the returns' spread that moving an action by such a unit must gain; an action stays as
            planned where it gains less.
        deadline_ms: planning makes do with this time, see there; a plan that still takes longer (all plans of a batch
            are made together) is not used: the robots follow the last one, or brake: the action nearest to 0; counted
            in ``stats``.
        partners: agents that others drive: ``refine`` leaves what is foreseen of them, ``safety`` their actions.
        safety: changes what is executed where robots would come too close, and counts that in its own ``stats``; needs
            a spec whose roles say where position and velocity are.
        memory: past steps to plan with; None: as many as the planner takes.

    Raises:
        TypeError: ``planner`` is no ``DiffusionPlanner``, but ``Futures``, say.
        ValueError: numbers out of their ranges, partners that are not in the plan, guides that move no plan, or only
            rank where there is one candidate, or ``refine`` without a value function.

    Example:
        ``policy = RecedingHorizonPolicy(planner); policy.reset([0]); actions, = policy([observations])``
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        execute_steps: int = 1,
        num_samples: int | None = None,
        num_inference_steps: int = 5,
        warm_start_level: float | None = 0.7,
        warm_start_steps: int = 1,
        decode_actions: bool = False,
        guides: Sequence[Guide] = (),
        resample: bool = False,
        target_return: float | None = None,
        guidance_scale: float = 1.0,
        realism: float = 0.0,
        refine: float = 0.0,
        refine_price: float = PRICE,
        partners: Sequence[str] = (),
        deadline_ms: float | None = None,
        safety: SafetyFilter | None = None,
        memory: int | None = None,
    ):
        if not isinstance(planner, DiffusionPlanner):
            raise TypeError(f"planner is a {type(planner).__name__}; give a DiffusionPlanner.")
        if not 1 <= execute_steps <= planner.horizon:
            raise ValueError(
                f"execute_steps={execute_steps}; the planner plans {planner.horizon} steps, execute 1 to that many."
            )
        if warm_start_level is not None and not 0 < warm_start_level <= 1:
            raise ValueError(f"warm_start_level={warm_start_level}; choose a noise level in (0, 1], or None.")
        if warm_start_steps < 1:
            raise ValueError(f"warm_start_steps={warm_start_steps}; ask for at least one.")
        if memory is not None and memory < 0:
            raise ValueError(f"memory={memory}; give a number of past steps, 0 or more.")
        if strangers := [name for name in partners if name not in planner.spec.agents]:
            raise ValueError(f"partners={strangers} are not in the plan; it has {list(planner.spec.agents)}.")
        if not 0 <= refine < float("inf"):
            raise ValueError(f"refine={refine}; give a number of standard deviations, 0 or more.")
        if not 0 <= refine_price < float("inf"):
            raise ValueError(f"refine_price={refine_price}; give a share of the returns' spread, 0 or more.")
        if refine:
            if planner.value_function is None:
                raise ValueError(f"refine={refine} needs a planner with a value function; train one with train_value.")
            check_value(planner.value_function, planner.spec)
        if num_samples is None:
            num_samples = CANDIDATES if refine else 1
        check_candidates(num_samples, refine)
        self.planner, self.execute_steps, self.deadline_ms = planner, execute_steps, deadline_ms
        self.refine, self.refine_price = float(refine), float(refine_price)
        self.warm_start_level, self.warm_start_steps = warm_start_level, warm_start_steps
        self.sampling = Sampling(
            num_samples,
            num_inference_steps,
            warm_start_level or 1.0,
            decode_actions,
            guides=tuple(guides),
            resample=resample,
            target_return=target_return,
            guidance_scale=guidance_scale,
            realism=realism,
            deadline_ms=deadline_ms,
        )
        check_ranked(self.sampling.guides, num_samples, realism)
        for steps, level in ((num_inference_steps, 1.0), (warm_start_steps, warm_start_level)):
            if level is not None:
                check_levels(self.sampling.guides, noise_levels(planner.scheduler, steps, level)[:-1])
        self.partners = tuple(partners)
        self.memory = planner.history if memory is None else min(memory, planner.history)
        self.safety, self.stats = safety, PlanningStats()
        self._episodes: list[_Episode] = []
        self._refining = 0.0  # seconds, the last time

    def reset(self, seeds: Sequence[int]) -> None:
        """Starts one episode a seed; statistics go on counting."""
        self._episodes = [_Episode(seed, deque(maxlen=max(1, self.memory))) for seed in seeds]

    def tell(self, latents: Sequence[Float[np.ndarray, "N Z"] | None]) -> None:
        """What is known of every environment's agents from now on, see ``Question.latents``."""
        for episode, known in zip(self._episodes, latents, strict=True):
            episode.latents = known

    @property
    def plans(self) -> list[Plan | None]:
        """The plan that each environment follows, from the next step on: the actions of the last call are behind it."""
        return [episode.plan and shifted(episode.plan, episode.age) for episode in self._episodes]

    def __call__(self, observations: Sequence[Observations | None]) -> list[Actions | None]:
        """Actions for every environment; None in, None out for those that have ended."""
        if isinstance(observations, Mapping):
            raise TypeError("observations are of one environment; give a list, one for each: policy([observations]).")
        if len(observations) != len(self._episodes):
            raise ValueError(
                f"{len(observations)} observations for {len(self._episodes)} episodes; call reset with a seed each."
            )
        both = zip(self._episodes, observations, strict=True)
        live = [(episode, self._recalled(episode, seen)) for episode, seen in both if seen]
        self._replan([(e, seen) for e, seen in live if e.age >= self.execute_steps or not covers(e.plan, seen)])
        actions = iter([self._act(episode, seen) for episode, seen in live])
        return [next(actions) if seen else None for seen in observations]

    def took(self, actions: Sequence[Actions | None]) -> None:
        """Corrects what is remembered of the last call where other actions were done than it returned."""
        for episode, done in zip(self._episodes, actions, strict=True):
            if done is not None and episode.past:
                seen, told = episode.past[-1]
                episode.past[-1] = (seen, told | _own({name: done[name] for name in done if name in seen}, seen))

    def _recalled(self, episode: _Episode, seen: Observations) -> Observations:
        """Observations in which static entries that were known, and are not now, are as they were.

        Not of an agent of which nothing is known now: that it had a goal says little of where it is.
        """
        spec, full = self.planner.spec, dict(seen)
        for name in full.keys() & spec.agents.keys():
            role, value = spec.role_of(name), np.asarray(full[name])
            if not role.static or value.shape != (role.observation_size,) or value.dtype.kind not in "fiu":
                continue  # nothing to recall, or no observation, which is told later
            known, static = np.isfinite(value), spec.static_mask[spec.names.index(name), : len(value)]
            recalled = np.where(known, value, episode.seen.get(name, value))
            if (known & ~static).any():
                full[name] = np.where(static, recalled, value)
            episode.seen[name] = recalled
        return full

    def _replan(self, due: list[tuple[_Episode, Observations]]) -> None:
        """Plans for those that are due: first from noise, then those that go on from their last plan."""
        follows = self.warm_start_level is not None
        warm = [follows and covers(episode.plan, seen) and not episode.cut for episode, seen in due]
        began = time.perf_counter()
        for now in (False, True):
            if group := [one for one, is_warm in zip(due, warm, strict=True) if is_warm == now]:
                self._plan(group, now, began)

    def _plan(self, group: list[tuple[_Episode, Observations]], warm: bool, began: float) -> None:
        """Plans for a group of episodes, in the time that is left since ``began``; late plans are not used."""
        questions = [
            Question(
                seen,
                tuple(episode.past) if self.memory else (),
                warm_start=shifted(episode.plan, episode.age) if warm and episode.plan else None,
                seed=int(np.random.SeedSequence([episode.seed, episode.steps]).generate_state(1)[0]),
                latents=episode.latents,
            )
            for episode, seen in group
        ]
        started = time.perf_counter()
        sampling = self._sampling(warm, started - began + self._refining)
        plans = self.make_plans(questions, sampling, [(episode.seed, episode.steps) for episode, _ in group])
        elapsed = time.perf_counter() - started
        self.stats.seconds.append(elapsed)
        self.stats.plans.append(len(plans))
        late = self.deadline_ms is not None and 1e3 * (started + elapsed - began) > self.deadline_ms
        for (episode, _), plan in zip(group, plans, strict=True):
            was_cut, episode.cut = episode.cut, False
            if late:
                self.stats.late += 1
            elif not plan.is_finite:
                self.stats.not_finite += 1
            else:
                cut = (plan.num_inference_steps or np.inf) < sampling.num_inference_steps
                episode.plan, episode.age, episode.cut = plan, 0, cut and not warm and not was_cut

    def _sampling(self, warm: bool, spent: float) -> Sampling:
        """How the next plans are sampled, when so many seconds of a deadline are spent already."""
        sampling = self.sampling
        if warm:
            resample = sampling.resample and self.warm_start_steps > 1
            sampling = dataclasses.replace(sampling, num_inference_steps=self.warm_start_steps, resample=resample)
        if self.deadline_ms is not None:
            left = max(self.deadline_ms - 1e3 * spent, self.deadline_ms / 10)
            sampling = dataclasses.replace(sampling, deadline_ms=left)
        return sampling

    def make_plans(
        self, questions: Sequence[Question], sampling: Sampling, moments: Sequence[tuple[int, int]]
    ) -> list[Plan]:
        """The plans to follow, refined where that is asked for.

        ``moments`` says of each question in which episode (by its seed) and at which step it is asked; subclasses that
        try out actions need it.
        """
        plans = self.planner.answer(questions, sampling)
        if self.refine and self.planner.value_function is not None:
            started = time.perf_counter()
            planner, value = self.planner, self.planner.value_function
            reach = self.refine * openness(planner.config["action_spread"])
            plans = refine_first_actions(plans, value, planner.normalizer, reach, self.refine_price, self.partners)
            self._refining = time.perf_counter() - started
        return plans

    def _act(self, episode: _Episode, seen: Observations) -> Actions:
        spec, plan = self.planner.spec, episode.plan
        observed, present = spec.stack_observations(seen)
        actions = spec.unstack_actions(np.zeros((spec.num_agents, spec.action_size), np.float32), present, observed)
        if plan is not None and episode.age < plan.horizon:
            planned = spec.unstack_actions(plan.best().actions[0, :, episode.age], plan.agent_mask, observed)
            actions |= {name: action for name, action in planned.items() if name in seen}
        if self.safety is not None:
            actions = self.safety.filter_actions(spec, seen, actions, self.partners)
        episode.past.append((spec.unstack_observations(observed, present), _own(actions, seen)))
        episode.age += 1
        episode.steps += 1
        return actions


def _own(actions: Actions, seen: Observations) -> Actions:
    """The actions as they are remembered: of an agent that is only watched (NaN in its observation) unknown."""
    return {
        name: np.array(action) if np.isfinite(seen[name]).all() else np.full(np.shape(action), np.nan)
        for name, action in actions.items()
    }


def covers(plan: Plan | None, seen: Collection[str]) -> bool:
    """Whether there is a plan, and one for every agent that is seen; agents that joined since have none."""
    return plan is not None and set(seen) <= set(plan.present)


def shifted(plan: Plan, steps: int) -> Plan:
    """The plan as seen ``steps`` later: its first cells are gone, its last one is held at the end."""
    index = np.minimum(np.arange(plan.horizon) + steps, plan.horizon - 1)
    return Plan(
        plan.spec,
        plan.observations[:, :, index],
        plan.actions[:, :, index],
        plan.agent_mask,
        plan.values,
        terms=plan.terms,
        belief=plan.belief,
    )
