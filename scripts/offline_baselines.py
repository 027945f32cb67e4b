"""Trains IQL and TD3+BC of d3rlpy on a store, on the joint action or per agent, and evaluates them as our policies are.

    python -m venv d3rlpy-env && d3rlpy-env/bin/pip install d3rlpy==2.8.1 && d3rlpy-env/bin/pip install -e . mpe2
    d3rlpy-env/bin/python scripts/offline_baselines.py STORE --algorithm iql --out iql_0.json

d3rlpy pins gymnasium 1.0 and needs an environment of its own. ``benchmark_ladder.py`` calls this file with it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import d3rlpy
import numpy as np

import diffplan as dp
from diffplan.evaluation import evaluate
from diffplan.files import write_json
from diffplan.spec import Actions, JointSpec, Observations

ALGORITHMS = {"iql": d3rlpy.algos.IQLConfig, "td3bc": d3rlpy.algos.TD3PlusBCConfig}


class OfflinePolicy:
    """Acts with a d3rlpy algorithm on all agents' observations at once, or on each agent's own."""

    def __init__(self, algorithm: d3rlpy.algos.QLearningAlgoBase, spec: JointSpec, joint: bool):
        self.algorithm, self.spec, self.joint = algorithm, spec, joint

    def reset(self, seeds: Sequence[int]) -> None:
        """Remembers nothing between episodes."""

    def __call__(self, observations: Sequence[Observations | None]) -> list[Actions | None]:
        live = [self.spec.stack_observations(seen) for seen in observations if seen]
        if not live:
            return [None] * len(observations)
        inputs = np.stack([values for values, _ in live])
        inputs = inputs.reshape(len(live) if self.joint else -1, -1 if self.joint else inputs.shape[-1])
        outputs = self.algorithm.predict(inputs).reshape(len(live), self.spec.num_agents, -1)
        actions = iter([self.spec.unstack_actions(one, mask) for one, (_, mask) in zip(outputs, live, strict=True)])
        return [next(actions) if seen else None for seen in observations]


def transitions(store: dp.TrajectoryStore, joint: bool) -> d3rlpy.dataset.MDPDataset:
    """The store's steps: of the team with its mean reward, or of every agent apart with its own."""
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    for first, length in zip(store.first_rows, store.lengths, strict=True):
        rows = first + np.arange(length)[None]
        seen, done, rewards, ended = (
            array[0] for array in store.take(rows, "observations", "actions", "rewards", "terminations")
        )
        last = np.arange(length) == length - 1
        if joint:
            over = ended[:, 0] & last
            parts = [(seen.reshape(length, -1), done.reshape(length, -1), rewards.mean(1), over)]
        else:
            parts = [(seen[:, i], done[:, i], rewards[:, i], ended[:, i] & last) for i in range(seen.shape[1])]
        for one, action, reward, over in parts:
            for column, values in zip(columns, (one, action, reward, over, last & ~over), strict=True):
                column.append(np.asarray(values, np.float32))
    return d3rlpy.dataset.MDPDataset(*(np.concatenate(column) for column in columns))


def action_scaler(spec: JointSpec, joint: bool) -> d3rlpy.preprocessing.MinMaxActionScaler:
    """From the agents' own limits, not the data's: good data may hold an entry still."""
    low, high = (bounds.ravel() if joint else bounds[0] for bounds in spec.action_bounds)
    return d3rlpy.preprocessing.MinMaxActionScaler(minimum=low, maximum=high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), required=True)
    parser.add_argument("--per-agent", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    d3rlpy.seed(arguments.seed)
    store, joint = dp.TrajectoryStore.open(arguments.store), not arguments.per_agent
    algorithm = ALGORITHMS[arguments.algorithm](
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
        action_scaler=action_scaler(store.spec, joint),
        reward_scaler=d3rlpy.preprocessing.StandardRewardScaler(),
    ).create(device=False)
    algorithm.fit(
        transitions(store, joint),
        n_steps=arguments.steps,
        n_steps_per_epoch=arguments.steps,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    env = dp.make(store.spec.env_id, **store.spec.env_options)
    policy = OfflinePolicy(algorithm, env.joint_spec, joint)
    report = evaluate(policy, env, episodes=arguments.episodes, seed=1_000 + arguments.seed)
    write_json(arguments.out, report.to_dict())


if __name__ == "__main__":
    main()
