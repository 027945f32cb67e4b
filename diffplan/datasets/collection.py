"""Recording episodes: roll-outs in parallel processes that never load torch, appended to a store shard by shard."""

import functools
import inspect
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffplan.checks import check_counts
from diffplan.child_process import follow_parent
from diffplan.datasets.manifest import MANIFEST
from diffplan.datasets.store import TrajectoryStore, check_same_spec
from diffplan.envs import behavior_policy, make
from diffplan.envs.behavior import BehaviorPolicy
from diffplan.envs.spaces import spec_from_env
from diffplan.files import alone, plain
from diffplan.spec import Actions, JointSpec, Observations
from diffplan.trajectory import Trajectory

_LEAST_SHARD, _MOST_SHARDS = 100, 50  # episodes in a shard; shards of one collection
_AHEAD = 8  # episodes in flight for each worker


def collect_episodes(
    env: str | Callable[[], Any] | Any,
    policy: Callable[[], BehaviorPolicy] | BehaviorPolicy | None = None,
    *,
    out: str | Path,
    episodes: int,
    skill: str = "expert",
    style: str = "mixed",
    seed: int = 0,
    workers: int = 2,
    env_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TrajectoryStore:
    """Records episodes into a store until it holds ``episodes`` of them; a collection that was interrupted goes on.

    Episode i depends only on (seed, i): not on the number of workers, nor on where a collection was interrupted.

    Args:
        env: a registered id, a function that makes a ``ParallelEnv``, or (with ``workers=0``) a ``ParallelEnv``.
        policy: a function that makes the behaviour policy (with ``workers=0`` also the policy); by default the
            environment's own script, for registered ids.
        out: folder of the store, new or begun by the same call.
        episodes: how many episodes the store shall hold.
        skill: how well the script drives, see ``behavior_policy``; not beside ``policy``.
        style: in which way it drives; not beside ``policy``.
        seed: settles all episodes.
        workers: processes; 0 records in this one. Functions must then be importable, not lambdas.
        env_options: options of a registered environment, plain values.
        progress: shows a bar with the time left.

    Raises:
        ValueError: no episode, a seed below 0, arguments that do not fit each other, or a store that was begun
            differently; of functions and objects of yours only the names are known, so choose another folder where you
            have changed them.
        OSError: the disk is full or read-only; all earlier shards stay valid.
    """
    recipe = _Recipe(env, policy, skill, style, json.dumps(dict(env_options or {}), sort_keys=True, default=plain))
    recipe.check(workers)
    check_counts(seed, episodes=episodes)
    with closing(_Recorder(recipe)) as recorder:
        store = open_or_create(Path(out), recorder.spec, f"{recipe}, seed={seed}")
        shard = max(_LEAST_SHARD, -(-episodes // _MOST_SHARDS))
        with alone(store.path), _bar(progress) as bar:
            store = TrajectoryStore.open(store.path)  # as it is now that nobody else writes to it
            keys = [(seed, index) for index in range(len(store), episodes)]
            task = bar.add_task("episodes", total=episodes, completed=len(store))
            with closing(_record(recipe, recorder, workers, keys)) as stream:
                return _stored(store, stream, shard, lambda: bar.advance(task))


def _stored(
    store: TrajectoryStore, stream: Iterable[Trajectory], shard: int, on_episode: Callable[[], None]
) -> TrajectoryStore:
    """Appends episodes in shards to a store that nobody else writes to.

    Also after Ctrl-C or an error, be it amid an append, what is complete is kept.
    """
    recorded: list[Trajectory] = []
    first = len(store)  # the index of the first one in ``recorded``
    try:
        for trajectory in stream:
            recorded.append(trajectory)
            on_episode()
            if len(recorded) == shard:
                store._append(recorded)
                first, recorded = len(store), []
    finally:
        store = TrajectoryStore.open(store.path)
        if rest := recorded[len(store) - first :]:
            store._append(rest)
        if not len(store):  # nothing to go on with, and in nobody's way
            (store.path / MANIFEST).unlink(missing_ok=True)
    return store


def run_episode(env: Any, policy: BehaviorPolicy, spec: JointSpec, seed: int, max_steps: int = 100_000) -> Trajectory:
    """Drives one episode to its end. Agents may leave early or join late: who is in ``env.agents`` acts.

    Labels are the policy's, ``seed``, and ``success`` (of every agent, at its end) where the environment's infos tell.

    Args:
        env: a PettingZoo ``ParallelEnv``.
        policy: drives all agents.
        spec: the environment's agents.
        seed: settles the episode: ``env.reset(seed=seed)``, and an independent stream for the policy.
        max_steps: an episode longer than this is an error.

    Raises:
        ValueError: agents, widths or numbers that do not fit the spec, a missing action, or an episode without an end.
    """
    recorder = EpisodeRecorder(env, spec)
    present, _ = recorder.reset(seed=seed)
    policy.reset(env, policy_seed(seed))
    while env.agents:
        if len(recorder) == max_steps:
            raise ValueError(f"the episode of seed {seed} has no end after {max_steps} steps; limit its time.")
        present = {name: present[name] for name in env.agents}
        actions = _actions(policy, present, len(recorder))
        present = recorder.step(actions)[0]
    return recorder.trajectory({**getattr(policy, "labels", {}), "seed": seed})


def policy_seed(seed: int) -> int:
    """The seed of who acts in an episode, independent of the environment's, which is the episode's own."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _actions(policy: BehaviorPolicy, present: Observations, step: int) -> Actions:
    answer = policy(present)
    given = answer if isinstance(answer, Mapping) else {}
    if missing := [name for name in present if name not in given]:
        raise ValueError(f"the policy gave no action to {missing} at step {step}; it must drive {list(present)}.")
    actions = {name: np.asarray(given[name], np.float32) for name in present}
    if wrong := {name: action.tolist() for name, action in actions.items() if not np.isfinite(action).all()}:
        raise ValueError(f"the policy gave the actions {wrong} at step {step}; give finite numbers.")
    return actions


class EpisodeRecorder:
    """An environment that remembers the episode under way; everything else it leaves to the environment.

    What it remembers it copies: an environment or policy may use its arrays and dictionaries again.

    Args:
        env: a PettingZoo ``ParallelEnv``.
        spec: its agents.
    """

    def __init__(self, env: Any, spec: JointSpec):
        self.env, self.spec, self.possible_agents = env, spec, env.possible_agents

    @property
    def agents(self) -> list[str]:
        """Who is there now."""
        return list(self.env.agents)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, Any]:
        """Starts an episode, and forgets the one before."""
        seen, infos = self._parts(self.env.reset(seed=seed, options=options), "reset", "observations, infos")
        self.observations: list[Observations] = []
        self.steps: list[tuple[Actions, dict[str, float], dict[str, bool], dict[str, bool]]] = []
        self._remember(seen, self.env.agents)
        self.success: dict[str, bool] = {}
        self.infos = infos
        return seen, infos

    def step(self, actions: Actions) -> tuple[Any, ...]:
        """Steps the environment, and remembers what came of it."""
        present, taken = list(self.env.agents), {name: np.array(action) for name, action in actions.items()}
        parts = "observations, rewards, terminations, truncations, infos"
        seen, rewards, terminations, truncations, infos = self._parts(self.env.step(actions), "step", parts)
        if not rewards and self.env.agents:
            raise ValueError(
                f"{self.env} gave {present} no rewards at step {len(self)}; it must, 0 where there is none."
            )
        self.infos = infos
        self.steps.append((taken, dict(rewards), dict(terminations), dict(truncations)))
        self._remember(seen, [*present, *self.env.agents])
        told = {name: infos[name].get("success") for name in present if name in infos}
        self.success |= {name: bool(success == 1) for name, success in told.items() if success is not None}
        return seen, rewards, terminations, truncations, infos

    def _remember(self, seen: Observations, names: list[str]) -> None:
        """Those of these agents; of who is there now nobody may be left out."""
        if unseen := [name for name in self.env.agents if name not in seen]:
            raise ValueError(f"{self.env} gave {unseen} no observation before step {len(self)}, though they are there.")
        self.observations.append({name: np.array(seen[name]) for name in seen if name in names})

    def _parts(self, answer: Any, call: str, parts: str) -> Any:
        """What a call answered, if it has the parts that PettingZoo's parallel interface wants."""
        if not isinstance(answer, tuple | list) or len(answer) != len(parts.split(", ")):
            got = f"{len(answer)} parts" if isinstance(answer, tuple | list) else f"a {type(answer).__name__}"
            raise ValueError(f"{call}() of {self.env} gave {got}; a ParallelEnv gives {parts}.")
        return answer

    def __len__(self) -> int:
        return len(self.steps)

    def trajectory(self, labels: Mapping[str, str | int | float | bool]) -> Trajectory:
        """The episode so far, labelled, also with ``success`` where the environment told.

        Raises ``ValueError`` for an episode without a step.
        """
        if not self.steps:
            raise ValueError("the environment has no agents after reset; there is nothing to record.")
        actions, rewards, terminations, truncations = zip(*self.steps, strict=True)
        success = {"success": all(self.success.values())} if self.success else {}
        columns = (self.observations, actions, rewards, terminations, truncations)
        return Trajectory.from_steps(self.spec, *columns, {**labels, **success})


@dataclass(frozen=True)
class _Recipe:
    """What a process needs to build its environment and policy."""

    env: Any
    policy: Any
    skill: str
    style: str
    options: str

    def __str__(self) -> str:
        if isinstance(self.env, str):
            options = "".join(f", {key}={value!r}" for key, value in json.loads(self.options).items())
            script = f"skill={self.skill!r}, style={self.style!r}" if self.policy is None else _told(self.policy)
            return f"{self.env}{options}: {script}"
        return f"{_told(self.env)}: {_told(self.policy)}"

    def check(self, workers: int) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}; choose 0 (this process) or more.")
        for thing in (self.env, self.policy) if workers else ():
            if thing is not None and not isinstance(thing, str) and (not callable(thing) or _is_made(thing)):
                raise ValueError(
                    f"workers={workers}, but {thing} is an object of this process; "
                    "pass a function that makes it, or workers=0."
                )
            if callable(thing) and "<" in _name(thing):
                raise ValueError(f"workers cannot import {_name(thing)}; define it in a module, or use workers=0.")
        if not isinstance(self.env, str) and self.policy is None:
            raise ValueError(f"{_name(self.env)} has no script of its own; pass policy=.")
        if self.policy is not None and (self.skill, self.style) != ("expert", "mixed"):
            raise ValueError(
                f"skill={self.skill!r}, style={self.style!r} are for the environment's own script; give "
                f"{_name(self.policy)} its own when it is made."
            )
        if not isinstance(self.env, str) and self.options != "{}":
            raise ValueError(f"env_options are for registered ids; give {_name(self.env)} its options when it is made.")


def _name(thing: Any) -> str:
    thing = thing.func if isinstance(thing, functools.partial) else thing
    thing = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"


def _told(thing: Any) -> str:
    """Its name, with what a ``partial`` gives it (objects without a repr of their own say nothing)."""
    given = [*thing.args, *thing.keywords.items()] if isinstance(thing, functools.partial) else []
    texts = ", ".join(text for text in map(repr, given) if " at 0x" not in text)
    return _name(thing) + (f"({texts})" if texts else "")


def _is_made(thing: Any) -> bool:
    """Whether it is an environment or policy, rather than a function or class that makes one."""
    return hasattr(thing, "reset") and not isinstance(thing, type)


_NEEDED = "it has reset(env, seed) and is called with observations, see diffplan.envs.BehaviorPolicy."


def _made(policy: Callable[[], BehaviorPolicy]) -> BehaviorPolicy:
    try:
        inspect.signature(policy).bind()
    except TypeError as error:
        raise ValueError(f"{_name(policy)} makes no behaviour policy when called with nothing: {_NEEDED}") from error
    return policy()


class _Recorder:
    """One process's environment and policy."""

    def __init__(self, recipe: _Recipe):
        env, policy, options = recipe.env, recipe.policy, json.loads(recipe.options)
        if isinstance(env, str):
            policy = policy or functools.partial(behavior_policy, env, recipe.skill, recipe.style)
            env = functools.partial(make, env, **options)
        self.given = recipe.env
        self.policy: BehaviorPolicy = policy if _is_made(policy) else _made(policy)
        if not (_is_made(self.policy) and callable(self.policy)):
            raise ValueError(f"{_name(policy)} gives {self.policy!r}, no behaviour policy: {_NEEDED}")
        self.env = env if _is_made(env) else env()
        self.spec = spec_from_env(self.env)

    def close(self) -> None:
        """Closes the environment, unless it was given."""
        if self.env is not self.given and hasattr(self.env, "close"):
            self.env.close()

    def record(self, seed: int, index: int) -> Trajectory:
        episode_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        return run_episode(self.env, self.policy, self.spec, episode_seed)


_worker_recipe: list[_Recipe] = []  # of a worker process: what it was started with


def _start_worker(recipe: _Recipe) -> None:
    follow_parent()
    _worker_recipe.append(recipe)


@functools.cache
def _worker_recorder() -> _Recorder:
    return _Recorder(_worker_recipe[0])


def _record_in_worker(seed: int, index: int) -> Trajectory:
    return _worker_recorder().record(seed, index)


def _record(recipe: _Recipe, recorder: _Recorder, workers: int, keys: list[tuple[int, int]]) -> Generator[Trajectory]:
    """Episodes in order; a few are in flight ahead of the one that is waited for."""
    if not workers:
        yield from (recorder.record(*key) for key in keys)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (recipe,))
    waiting: deque[Future[Trajectory]] = deque()
    try:
        for key in keys:
            waiting.append(pool.submit(_record_in_worker, *key))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        remedy = "a script must start the collection under `if __name__ == '__main__':`; workers=0 shows other causes"
        raise RuntimeError(f"a worker process died; {remedy}.") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def open_or_create(path: Path, spec: JointSpec, source: str) -> TrajectoryStore:
    """The store in a folder, or a new one. Raises ``ValueError`` when it was begun with another spec or source."""
    if not (path / MANIFEST).exists():
        return TrajectoryStore.create(path, spec, source)
    store = TrajectoryStore.open(path)
    check_same_spec("the environment", spec, store)
    if store.source != source:
        raise ValueError(f"{path} was begun with {store.source!r}, not {source!r}; choose another folder to record to.")
    return store


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
