"""Teams without a head: one ``TeamMember`` per robot, and a simulated radio between them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffplan.planners.channel import Channel, Link
from diffplan.planners.guides import Guide
from diffplan.planners.manners import Manners, TeamStats
from diffplan.planners.member import TeamMember, answers
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.policy import shifted
from diffplan.planners.question import Question
from diffplan.planners.safety import SafetyFilter
from diffplan.spec import Actions, JointSpec, Observations, sensed_by
from diffplan.trajectory import Plan


class DecentralizedTeam:
    """A team of ``TeamMember``s, one per robot and episode, with a simulated radio between them; a ``Policy``.

    Every member decides by itself; only the calls of the network are put together, for speed. Who has no actions
    (a pedestrian, say) neither acts nor speaks.

    Args:
        planner: for the environment's agents (see ``DiffusionPlanner.for_agents``).
        manners: how robots plan and talk.
        link: how bad the connection between them is.
        guides: what everyone's plans should be like, see ``TeamMember``.
        safety: by which everyone changes its own action, see there; its ``stats`` count all members' calls.
        partners: robots that others drive (see ``WithPartners``): they neither act nor speak.

    Raises:
        ValueError: partners that the planner does not know, or guides that move plans at no noise level visited.

    Example:
        ``evaluate(DecentralizedTeam(planner, link=Link(loss=0.3, delay=3)), env)``
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        manners: Manners | None = None,
        link: Link | None = None,
        guides: Sequence[Guide] = (),
        safety: SafetyFilter | None = None,
        partners: Sequence[str] = (),
    ):
        if strangers := [name for name in partners if name not in planner.spec.agents]:
            raise ValueError(f"partners={strangers} are not in the team; it has {list(planner.spec.agents)}.")
        self.planner, self.manners, self.link = planner, manners or Manners(), link or Link()
        self.guides, self.safety, self.partners = tuple(guides), safety, tuple(partners)
        self.stats = TeamStats()
        self._episodes: list[_Episode] = []
        self._infos: Sequence[Mapping[str, Any] | None] = ()
        self._member(planner.spec.names[0], seed=0)  # raises where guides move no plan

    def reset(self, seeds: Sequence[int]) -> None:
        """Starts one episode a seed, each with members that know nothing yet; statistics go on counting."""
        names, self._infos = self.planner.spec.names, ()
        self._episodes = [
            _Episode({name: self._member(name, seed) for name in names}, Channel(names, self.link, seed))
            for seed in seeds
        ]

    def _member(self, name: str, seed: int) -> TeamMember:
        return TeamMember(self.planner, name, self.manners, seed, self.stats, self.guides, self.safety)

    def _acts(self, name: str) -> bool:
        return name not in self.partners and self.planner.spec.role_of(name).action_size > 0

    def sense(self, infos: Sequence[Mapping[str, Any] | None]) -> None:
        """Takes the environments' ``infos`` before the call that they belong to: ``infos[agent]["sensed"]`` is what a
        robot senses of its partners. Without it, it senses all of them but their static entries."""
        self._infos = infos

    def __call__(self, observations: Sequence[Observations | None]) -> list[Actions | None]:
        """Actions for every environment; None in, None out for those that have ended."""
        if len(observations) != len(self._episodes):
            raise ValueError(
                f"{len(observations)} observations for {len(self._episodes)} episodes; call reset with a seed each."
            )
        asked = []
        for index, (episode, seen) in enumerate(zip(self._episodes, observations, strict=True)):
            infos = self._infos[index] if self._infos else None
            if strangers := [name for name in seen or {} if name not in episode.members]:
                raise ValueError(f"observations of {strangers}; the planner knows {list(episode.members)}.")
            own = {name: row for name, row in (seen or {}).items() if self._acts(name)}
            for name, observation in own.items():
                member = episode.members[name]
                for arrived in episode.channel.deliver(name, episode.step):
                    member.receive(arrived)
                sensed = sensed_by(name, seen or {}, infos or {}, self.planner.spec)
                asked.append((episode, member, member.ask(observation, sensed, episode.step)))
        for (episode, member, _), plan in zip(asked, self._answers([one[1:] for one in asked]), strict=True):
            episode.actions[member.name], data = member.follow(plan)
            if data is not None:
                self.stats.lost += episode.channel.send(member.name, data, episode.step)
        return [
            episode.end_step(self.stats) if seen else None
            for episode, seen in zip(self._episodes, observations, strict=True)
        ]

    @property
    def plans(self) -> list[Plan | None]:
        """What the members of each environment intend, each for itself, put together; from the next step on."""
        return [episode.intentions(self.planner.spec) for episode in self._episodes]

    def _answers(self, asked: Sequence[tuple[TeamMember, Question]]) -> list[Plan]:
        """The plans of all members, and how long they took."""
        started = time.perf_counter()
        plans = answers(asked)
        self.stats.seconds.append(time.perf_counter() - started)
        self.stats.plans.append(len(asked))
        return plans


@dataclass
class _Episode:
    """The robots of one environment and what is between them."""

    members: dict[str, TeamMember]
    channel: Channel
    step: int = 0
    actions: Actions = field(default_factory=dict)
    acted: tuple[str, ...] = ()

    def end_step(self, stats: TeamStats) -> Actions:
        stats.consistency.append(consistency({name: self.members[name].plan for name in self.actions}))
        actions, self.actions, self.acted = self.actions, {}, tuple(self.actions)
        self.step += 1
        return actions

    def intentions(self, spec: JointSpec) -> Plan | None:
        plans = {name: plan for name in self.acted if (plan := self.members[name].plan) is not None}
        if not plans or len(plans) < len(self.acted):
            return None
        mine = [plans.get(name, next(iter(plans.values()))) for name in spec.names]
        there = np.array([name in plans for name in spec.names])
        observations = np.stack([plan.observations[0, i] for i, plan in enumerate(mine)]) * there[:, None, None]
        actions = np.stack([plan.actions[0, i] for i, plan in enumerate(mine)]) * there[:, None, None]
        return shifted(Plan(spec, observations[None], actions[None], there), 1)


def consistency(plans: Mapping[str, Plan | None]) -> float:
    """How far what robots plan for each other is from what these plan for themselves.

    Args:
        plans: of robots, each of the whole team, all from the same step on.

    Returns:
        The mean distance (m) over all ordered pairs of robots and all planned steps; NaN without two plans of robots
        that have positions.
    """
    known = {name: plan.best() for name, plan in plans.items() if plan is not None and plan.spec.role_of(name).position}
    gaps = [
        np.linalg.norm(mine.positions(other)[0] - theirs.positions(other)[0], axis=-1).mean()
        for name, mine in known.items()
        for other, theirs in known.items()
        if name != other
    ]
    return float(np.mean(gaps)) if gaps else float("nan")
