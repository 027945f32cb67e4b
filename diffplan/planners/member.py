"""One robot of a team: it plans the whole team by itself, from what it sees and hears, and does its own part.

One network, no retraining: what a robot knows is a mask of known cells. Its own cells it knows; of a partner it knows
what it senses now (not its goal), and what that partner told: cells with a noise level that grows with their age. Out
of sight, a partner that told something lately is taken to be where it said that it would be by now. Three ways to
agree on one of several joint ways: hoping (private seeds), drawing the same noise (a shared seed), or talking.
The same noise leads to the same plan only where the same is known. So with a shared seed goals are first supposed from
what everybody knows, and a first plan is made for these; both are the same for all to the bit. Each robot then goes on
from there with what it knows.

Whoever talks can contradict. The order of the robots in the spec is their right of way: a robot plans around what
earlier ones told, and plans anew where that is not the way it expected; the plans of later ones it leaves to them, for
these will give way (were all to plan around all, everybody would keep to a plan that is too close to somebody's). Of a
later robot it plans around what that told only while it cannot see it. So a team of N agrees after N messages.
"""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from diffplan.planners.guidance import check_levels
from diffplan.planners.guides import Guide
from diffplan.planners.manners import Manners, TeamStats
from diffplan.planners.messages import Message
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.policy import covers, shifted
from diffplan.planners.question import Question, Sampling
from diffplan.planners.ranking import check_ranked
from diffplan.planners.safety import SafetyFilter
from diffplan.planners.sampling import noise_levels
from diffplan.spec import Actions, Observations
from diffplan.trajectory import Cells, Plan

SUPPOSITIONS = 16  # plans of which the one in the middle tells where others are going


class TeamMember:
    """One robot: its planner, its random stream, what it saw and what it heard.

    Args:
        planner: of the team; its spec lists all robots. Members may share one planner.
        name: which robot this is.
        manners: how it plans and talks.
        seed: of the episode; the same for all members (``manners`` say whether they draw the same noise).
        stats: where to count; its own if None.
        guides: what its plans should be like, see ``DiffusionPlanner.__call__``; they also move what it plans for
            others, but not what these have told.
        safety: changes its own action where it would come too close to what it sees or was told; the others are taken
            to do the same, but one that only goes on is avoided, too.

    Raises:
        ValueError: the spec has no robot of this name, or a guide moves plans at no noise level that is visited, or
            only ranks: a member makes one plan.
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        name: str,
        manners: Manners | None = None,
        seed: int = 0,
        stats: TeamStats | None = None,
        guides: Sequence[Guide] = (),
        safety: SafetyFilter | None = None,
    ):
        if name not in planner.spec.agents:
            raise ValueError(f"no robot {name!r} in the team; the planner's spec has {list(planner.spec.agents)}.")
        self.planner, self.name, self.manners, self.seed = planner, name, manners or Manners(), seed
        self.stats = TeamStats() if stats is None else stats
        self.guides, self.safety = tuple(guides), safety
        check_ranked(self.guides, 1)
        if self.guides:  # a team has new members for every episode
            for steps, level in ((self.manners.num_inference_steps, 1.0), (1, self.manners.warm_start_level)):
                check_levels(self.guides, noise_levels(planner.scheduler, steps, level)[:-1])
        self.index = planner.spec.names.index(name)
        self.step = -1
        self.plan: Plan | None = None
        self.told: Message | None = None
        self.heard: dict[str, Message] = {}
        self.supposed: dict[str, np.ndarray] = {}  # static entries of others, as it took them to be
        self._gap = 1
        self._past: deque[tuple[Observations, Actions]] = deque(maxlen=max(1, planner.history))
        self._credit = self.manners.bytes_per_second or 0.0

    def receive(self, data: bytes) -> None:
        """Takes in what another robot sent; what is malformed, foreign, too old or known is dropped and counted."""
        horizon = self.planner.horizon
        try:
            message = Message.from_bytes(data, self.planner.spec, self.planner.normalizer)
        except ValueError:
            self.stats.refused += 1
            return
        before = self.heard.get(message.sender)
        future = 0 <= self.step < message.step - horizon  # before its first step it does not know the time
        if message.sender == self.name or message.horizon != horizon or future:
            self.stats.refused += 1
        elif before is not None and message.step == before.step:
            self.stats.duplicates += 1
        elif (before is not None and message.step < before.step) or message.step + horizon <= self.step + 1:
            self.stats.stale += 1
        else:
            self.heard[message.sender] = message

    def act(
        self, observation: np.ndarray, sensed: Mapping[str, np.ndarray], step: int
    ) -> tuple[np.ndarray, bytes | None]:
        """Plans and acts: what to do now, and what to tell the others, if speaking pays.

        Args:
            observation: its own.
            sensed: {partner: its observation} of those it senses; NaN entries are unknown.
            step: environment step, the same for all.
        """
        (plan,) = answers([(self, self.ask(observation, sensed, step))])
        return self.follow(plan)

    def ask(self, observation: np.ndarray, sensed: Mapping[str, np.ndarray], step: int) -> Question:
        """The first half of ``act``: what to ask the planner."""
        sensed = {name: row for name, row in sensed.items() if np.isfinite(row).any()}
        last = self._begin_step(sensed, step)
        heard = self._believed(sensed)
        # whose ways are not those that it expected:
        strange = {name for name in heard if last and self._apart(name, heard[name], last) > self.manners.surprise}
        earlier = set(self.planner.spec.names[: self.index])
        if strange & earlier:
            last = None
            self.stats.gave_way += 1
        self._seen = self._world(observation, sensed)
        self._near = {
            name: _filled(row, heard[name][0, : len(row)]) if name in heard else row for name, row in self._seen.items()
        }
        around = {n: path for n, path in heard.items() if n in earlier or not (n in sensed or n in strange)}
        given = self._given(around)
        stream = [self.seed, 0 if self.manners.shared_seed else self.index + 1, step]  # of noise
        seed = int(np.random.SeedSequence(stream).generate_state(1)[0])
        present = self._seen | {name: self._near[name] for name in heard if name not in sensed and self._lately(name)}
        return Question(present, tuple(self._past) if self.planner.history else (), given, last, seed)

    def _begin_step(self, sensed: Mapping[str, np.ndarray], step: int) -> Plan | None:
        """Drops messages that do not count now, notes missed steps as unknown, and returns the last plan as seen from
        this step; None where it lacks somebody who is sensed."""
        if self.step < 0:  # of another episode is what was heard before, if it is from later
            self.heard = {name: message for name, message in self.heard.items() if message.step <= step}
        if self.manners.senses_all:
            self.heard = {name: message for name, message in self.heard.items() if name in sensed}
        self._gap = step - self.step  # more than one, if it was too slow for some
        self.step = step
        if self._past:
            for _ in range(min(self._gap - 1, self.planner.history)):
                self._past.append(self._unknown())
        return shifted(self.plan, self._gap) if self.plan and covers(self.plan, sensed) else None

    def common(self, question: Question) -> Question | None:
        """The part of a first question that all others ask, too, if they sense the same; None where there is none."""
        private = {name: list(self.planner.spec.role_of(name).static) for name in question.observations}
        if question.warm_start is not None or self.heard or not self.manners.shared_seed or not any(private.values()):
            return None
        rows = {name: np.array(row, np.float32) for name, row in question.observations.items()}
        for name, entries in private.items():
            rows[name][entries] = np.nan
        return Question(rows, seed=question.seed)

    def suppose(self, question: Question, plan: Plan) -> Question:
        """A question without static entries that are not known, of those who are seen: as in the plan's candidate that
        is nearest to all others. From now on, the robot takes its partners' to be so."""
        world, spec = {**question.observations}, self.planner.spec
        for index, name in ((spec.names.index(name), name) for name in question.observations):
            row, static = np.array(world[name], np.float32), list(spec.role_of(name).static)
            if np.isnan(row[static]).any() and np.isfinite(np.delete(row, static)).all():
                drawn = plan.observations[:, index, 0, static]
                scaled = drawn / drawn.std(axis=0).clip(1e-6)
                middle = np.linalg.norm(scaled[:, None] - scaled, axis=-1).sum(axis=1).argmin()
                if name != self.name:
                    self.supposed[name] = drawn[middle]
                row[static] = _filled(row[static], drawn[middle])
                world[name] = row
        return dataclasses.replace(question, observations=world)

    def sampling(self, question: Question) -> Sampling:
        """How to answer a question of ``ask``: in one step where there is a last plan."""
        steps = self.manners.num_inference_steps if question.warm_start is None else 1
        level = self.manners.warm_start_level
        return Sampling(num_inference_steps=steps, warm_start_level=level, guides=self.guides)

    def follow(self, plan: Plan) -> tuple[np.ndarray, bytes | None]:
        """The second half of ``act``: does its part of the plan, or, if that is not finite, of the last, or brakes."""
        finite = plan.is_finite
        self.stats.not_finite += not finite
        if finite:
            self.plan = plan
            self.suppose(Question(self._seen), plan)  # for what it remembers of others
        elif self.plan is not None:
            self.plan = shifted(self.plan, self._gap)
        spec = self.planner.spec
        planned = self.plan.actions[0, :, 0] if self.plan else np.zeros((spec.num_agents, spec.action_size), np.float32)
        seen, me = spec.stack_observations({self.name: self._seen[self.name]})
        action = spec.unstack_actions(planned, me, seen)[self.name]
        if self.safety is not None:
            action = self.safety.filter_actions(spec, self._near, {self.name: action})[self.name]
        self._past.append((self._seen, self._unknown()[1] | {self.name: action}))
        return action, self._speak() if self.manners.speak and self.plan else None

    def _unknown(self) -> tuple[Observations, Actions]:
        """A step of which nothing is known."""
        roles = {name: self.planner.spec.role_of(name) for name in self.planner.spec.names}
        observations = {name: np.full(role.observation_size, np.nan) for name, role in roles.items()}
        return observations, {name: np.full(role.action_size, np.nan) for name, role in roles.items()}

    def _lately(self, name: str) -> bool:
        """Whether a robot spoke so lately that it would have spoken again, had it changed its mind; one word may be
        lost."""
        return self.step - self.heard[name].step <= 2 * self.manners.repeat_every

    def _believed(self, sensed: Mapping[str, np.ndarray]) -> dict[str, Float[np.ndarray, "H D"]]:
        """What was told and is still to come, but not by those who are seen elsewhere than they told."""
        spec, believed = self.planner.spec, {}
        for name, message in self.heard.items():
            path, width = message.path(self.step), spec.role_of(name).observation_size
            seen = path[:1].copy()
            if name in sensed:
                seen[0, :width] = _filled(sensed[name], seen[0, :width])
            if self._gaps(spec.names.index(name), path[:1], seen)[0] <= self.manners.surprise:  # NaN where all is past
                believed[name] = path
        return believed

    def _world(self, observation: np.ndarray, sensed: Mapping[str, np.ndarray]) -> Observations:
        """The present: its own observation, what it senses of others, and what they told, or what it once took, of
        what stays the same."""
        world = {}
        for name in self.planner.spec.names:
            if self.manners.senses_all and name not in sensed:
                continue
            role = self.planner.spec.role_of(name)
            row = np.array(sensed.get(name, np.full(role.observation_size, np.nan)), np.float32)
            static = list(role.static)
            if name in self.heard:
                row[static] = _filled(row[static], self.heard[name].cells[0, static])
            if name in self.supposed:
                row[static] = _filled(row[static], self.supposed[name])
            world[name] = row
        return world | {self.name: np.asarray(observation, np.float32)}

    def _given(self, paths: Mapping[str, Float[np.ndarray, "H D"]]) -> Cells:
        """What was told, as cells that are known the less well the longer ago that was."""
        spec = self.planner.spec
        cells = Cells.unknown(spec, self.planner.horizon)
        level = np.zeros(cells.actions.shape[:2], np.float32)
        for name, path in paths.items():
            row, age = spec.names.index(name), self.step - self.heard[name].step
            std = self.manners.told_std + self.manners.aging_std * max(0, age)
            cells.observations[row], cells.actions[row] = np.split(path, [spec.observation_size], axis=1)
            level[row] = std / (1 + std)
        return Cells(cells.observations, cells.actions, level)

    def _speak(self) -> bytes | None:
        """A message, if what it now intends is not what it told, or that was long ago, and it can afford to."""
        manners, plan, told = self.manners, self.plan, self.told
        assert plan is not None
        if manners.bytes_per_second is not None:
            self._credit += manners.bytes_per_second * self.planner.spec.dt * self._gap
        if (
            told is not None
            and self.step - told.step < manners.repeat_every
            and self._apart(self.name, told.path(self.step), plan) <= manners.tolerance
        ):
            return None
        message = Message.from_plan(plan, self.name, self.step, manners.stride)
        data = message.to_bytes(self.planner.spec, self.planner.normalizer, manners.bits)
        if manners.bytes_per_second is not None:
            self._credit = min(self._credit, max(manners.bytes_per_second, len(data)))
            if len(data) > self._credit:
                self.stats.unaffordable += 1
                return None
            self._credit -= len(data)
        self.told = message
        self.stats.sent += 1
        self.stats.bytes_sent += len(data)
        return data

    def _apart(self, name: str, path: Float[np.ndarray, "H D"], plan: Plan) -> float:
        """How far what a robot told is from what a plan says of it, at most; inf if all of it is past."""
        index = self.planner.spec.names.index(name)
        gaps = self._gaps(index, path, plan.grid[0, index])
        return float(np.nanmax(gaps)) if np.isfinite(gaps).any() else np.inf

    def _gaps(
        self, index: int, one: Float[np.ndarray, "K D"], other: Float[np.ndarray, "K D"]
    ) -> Float[np.ndarray, "K"]:
        """How far an agent's cells are apart, in the normaliser's units; of its position, where its role has one."""
        role = self.planner.spec.role_of(self.planner.spec.names[index])
        entries = list(role.position) or [i for i in range(role.observation_size) if i not in role.static]
        roles = self.planner.spec.role_index[[index, index]]
        mine, its = self.planner.normalizer.normalize(np.stack((one, other)), roles)[..., entries]
        return np.asarray(np.sqrt(np.square(mine - its).mean(-1)))


def _filled(row: np.ndarray, known: np.ndarray) -> np.ndarray:
    """A row with what is known of its NaN entries from elsewhere."""
    return np.where(np.isnan(row), known, row)


def answers(asked: Sequence[tuple[TeamMember, Question]]) -> list[Plan]:
    """The plans of members (of one planner), in one call for all that can be asked together.

    What members have in common is asked first, once, for goals and then for a plan, which is then their last;
    ``common`` says what that is.
    """
    questions = [question for _, question in asked]
    shared = {index: one for index, (member, own) in enumerate(asked) if (one := member.common(own)) is not None}
    drawn = _answered_once(asked, shared, SUPPOSITIONS)
    shared = {index: asked[index][0].suppose(shared[index], plan) for index, plan in drawn.items()}
    for index, plan in _answered_once(asked, shared).items():
        questions[index] = dataclasses.replace(asked[index][0].suppose(questions[index], plan), warm_start=plan)
    plans: dict[int, Plan] = {}
    for warm in (False, True):
        group = {i: one for i, one in enumerate(questions) if (one.warm_start is not None) == warm}
        plans |= _answered(asked, group)
    return [plans[index] for index in range(len(asked))]


def _answered_once(
    asked: Sequence[tuple[TeamMember, Question]], questions: Mapping[int, Question], num_samples: int = 1
) -> dict[int, Plan]:
    """{place: plan} of questions that are observations and a seed alone; equal ones are asked once."""
    keys = {i: (one.seed, *((n, row.tobytes()) for n, row in one.observations.items())) for i, one in questions.items()}
    asker = {key: i for i, key in keys.items()}
    plans = _answered(asked, {i: questions[i] for i in asker.values()}, num_samples)
    return {i: plans[asker[key]] for i, key in keys.items()}


def _answered(
    asked: Sequence[tuple[TeamMember, Question]], questions: Mapping[int, Question], num_samples: int = 1
) -> dict[int, Plan]:
    """{place: plan} of questions that all have a warm start, or none of them."""
    if not questions:
        return {}
    member, first = asked[0][0], next(iter(questions.values()))
    sampling = dataclasses.replace(member.sampling(first), num_samples=num_samples)
    return dict(zip(questions, member.planner.answer([*questions.values()], sampling), strict=True))
