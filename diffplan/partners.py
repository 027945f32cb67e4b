"""Teams of which some robots are commanded (egos) and some only watched (partners), whoever drives these."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from diffplan.datasets.collection import run_episode
from diffplan.envs.crossing_partners import ScriptedPartners
from diffplan.envs.spaces import spec_from_env
from diffplan.evaluation import Policy, SensingPolicy
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.policy import PlanningStats, RecedingHorizonPolicy
from diffplan.planners.team import DecentralizedTeam
from diffplan.spec import Actions, JointSpec, Observations, seen_by_egos
from diffplan.trajectory import Plan, Trajectory


def watch_partner(
    planner: DiffusionPlanner,
    env: Any,
    partner: str,
    families: Sequence[str],
    seed: int = 0,
    num_samples: int = 32,
    switch: bool = False,
) -> tuple[Trajectory, list[Plan]]:
    """Drives one episode of ``crossing-v0`` in which one robot is a scripted partner; returns it and every plan made.

    The plans are sampled anew at every step, so that their candidates show all that the partner might do. Labels tell
    the partner's style.

    Args:
        planner: drives the others.
        env: with the planner's agents.
        partner: the scripted robot.
        families: what it may be.
        seed: of the episode and its style.
        num_samples: candidates a plan.
        switch: it changes its style in mid-episode.
    """
    spec = spec_from_env(env)
    partners = ScriptedPartners((partner,), families, spec.dt, switch)
    policy = RecedingHorizonPolicy(planner, num_samples=num_samples, warm_start_level=None)
    watching = _Watching(policy, partners, WithPartners(policy, partners, (partner,), spec))
    return run_episode(env, watching, spec, seed), watching.plans


class _Watching:
    """Drives one environment by a team with one partner, and keeps the plans made and what the partner was."""

    def __init__(self, policy: RecedingHorizonPolicy, partners: ScriptedPartners, team: "WithPartners"):
        self.policy, self.partners, self.team = policy, partners, team
        self.plans: list[Plan] = []
        self.labels: dict[str, str | int | float | bool] = {}

    def reset(self, env: Any, seed: int) -> None:
        self.team.reset([seed])

    def __call__(self, observations: Observations) -> Actions:
        (actions,) = self.team([observations])
        ((name, style),) = self.partners.styles[0].items()
        if not self.plans:
            self.labels = {"partner": name, **style.labels()}
        elif style.family != self.labels["family"] and "switch_time" not in self.labels:
            self.labels |= {"switch_time": len(self.plans) * self.team.spec.dt, **style.labels("switched_")}
        self.plans += [plan for plan in self.policy.plans if plan is not None]
        return actions or {}


class WithPartners:
    """A policy for all robots made of one for the egos and one for the partners, for ``evaluate``.

    The egos' policy plans for everybody, but only the egos' actions are executed; it never sees the partners' static
    entries (their goals). The partners' policy sees everything: scripted (``ScriptedPartners``), a planner in a
    ``RecedingHorizonPolicy``, or any other.

    Args:
        policy: drives the egos.
        partners: drives the robots ``names``.
        names: the partners.
        spec: of the environment.

    Raises:
        ValueError: a partner that the environment does not have, or nobody left to command; a team, or a policy with a
            safety filter or refinement, that does not know its ``partners``.
    """

    def __init__(self, policy: Policy, partners: Policy, names: Sequence[str], spec: JointSpec):
        unknown = [name for name in names if name not in spec.agents]
        if unknown or len(set(names)) >= spec.num_agents:
            raise ValueError(f"partners {list(names)} must be some, not all, of {list(spec.names)}.")
        for one in policy.policies.values() if isinstance(policy, TeamOfPolicies) else (policy,):
            if (
                isinstance(one, DecentralizedTeam | RecedingHorizonPolicy)
                and (isinstance(one, DecentralizedTeam) or one.safety is not None or one.refine)
                and not set(names) <= set(one.partners)
            ):
                raise ValueError(
                    f"the policy filters, refines or speaks for {list(names)}, too, whom it does not command; make it "
                    f"with partners={list(names)}."
                )
        self.policy, self.partners, self.names, self.spec = policy, partners, tuple(names), spec

    @property
    def stats(self) -> Any:
        """What planning for the egos cost."""
        return getattr(self.policy, "stats", None)

    @property
    def plans(self) -> list[Plan | None]:
        """The plans that the egos follow."""
        return list(getattr(self.policy, "plans", []))

    def reset(self, seeds: Sequence[int]) -> None:
        """Starts one episode a seed."""
        self.policy.reset(seeds)
        self.partners.reset(seeds)

    def sense(self, infos: Sequence[Mapping[str, Any] | None]) -> None:
        """Tells policies that want to know it the environments' ``infos``."""
        _sense((self.policy, self.partners), infos)

    def __call__(self, observations: Sequence[Observations | None]) -> list[Actions | None]:
        """Everybody's actions."""
        ours = self.policy([seen and seen_by_egos(seen, self.names, self.spec) for seen in observations])
        theirs = self.partners(observations)
        together: list[Actions | None] = [
            None
            if seen is None
            else {**(mine or {}), **{name: (other or {})[name] for name in self.names if name in seen}}
            for seen, mine, other in zip(observations, ours, theirs, strict=True)
        ]
        _tell(self.policy, [done and self._unseen(done) for done in together])
        _tell(self.partners, together)
        return together

    def _unseen(self, actions: Actions) -> Actions:
        """The actions as the egos know them: partners' are not seen."""
        return {
            name: np.full(np.shape(action), np.nan) if name in self.names else action
            for name, action in actions.items()
        }


class TeamOfPolicies:
    """A policy for all robots in which each follows one of its own, which may plan for everybody.

    Args:
        policies: by the name of whom they command, one perhaps several; who has none follows the first. What planning
            cost those that are a ``RecedingHorizonPolicy`` is counted in ``stats``.
        filtered: what becomes of everybody's actions together, e.g. ``partial(safety.filter_actions, spec)``.

    Example:
        ``TeamOfPolicies({name: RecedingHorizonPolicy(planner) for name, planner in planners.items()})``
    """

    def __init__(
        self, policies: Mapping[str, Policy], filtered: Callable[[Observations, Actions], Actions] | None = None
    ):
        if not policies:
            raise ValueError("a team of no policies; give one for every agent.")
        self.policies, self.filtered, self.stats = dict(policies), filtered, PlanningStats()
        for policy in self._distinct:
            if isinstance(policy, RecedingHorizonPolicy):
                policy.stats = self.stats

    @property
    def _distinct(self) -> list[Policy]:
        """Each policy once, however many it commands."""
        return list({id(policy): policy for policy in self.policies.values()}.values())

    @property
    def plans(self) -> list[Plan | None]:
        """The first policy's plans."""
        return list(getattr(next(iter(self.policies.values())), "plans", []))

    def reset(self, seeds: Sequence[int]) -> None:
        """Starts one episode a seed."""
        for policy in self._distinct:
            policy.reset(seeds)

    def sense(self, infos: Sequence[Mapping[str, Any] | None]) -> None:
        """Tells policies that want to know it the environments' ``infos``."""
        _sense(self._distinct, infos)

    def __call__(self, observations: Sequence[Observations | None]) -> list[Actions | None]:
        """Everybody's actions."""
        said = {id(policy): policy(observations) for policy in self._distinct}
        found = {name: said[id(policy)] for name, policy in self.policies.items()}
        together: list[Actions | None] = list(next(iter(found.values())))
        for place, (seen, actions) in enumerate(zip(observations, together, strict=True)):
            if seen and actions:
                own = {name: theirs[place] or {} for name, theirs in found.items()}
                actions = actions | {name: one[name] for name, one in own.items() if name in one}
                together[place] = actions if self.filtered is None else self.filtered(seen, actions)
        self.took(together)
        return together

    def took(self, actions: Sequence[Actions | None]) -> None:
        """What was done instead of the actions of the last call: planners remember it so."""
        for policy in self._distinct:
            _tell(policy, actions)


def _sense(policies: Iterable[Policy], infos: Sequence[Mapping[str, Any] | None]) -> None:
    for policy in policies:
        if isinstance(policy, SensingPolicy):
            policy.sense(infos)


def _tell(policy: Policy, actions: Sequence[Actions | None]) -> None:
    """Lets a policy that remembers what was done know of it; others do not ask."""
    if isinstance(policy, RecedingHorizonPolicy | TeamOfPolicies):
        policy.took(actions)
