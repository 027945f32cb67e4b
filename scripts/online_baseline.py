"""Trains SAC of d3rlpy from scratch on the joint action of simple_spread, and scores it now and then as we are scored.

    d3rlpy-env/bin/python scripts/online_baseline.py --out sac_0.json --steps 300000

The environment is that of ``offline_baselines.py``. ``benchmark_finetuning.py --scratch`` reads what comes of it.
"""

import argparse
from pathlib import Path
from typing import Any

import d3rlpy
import gymnasium
import numpy as np
from offline_baselines import OfflinePolicy, action_scaler

import diffplan as dp
from diffplan.evaluation import evaluate
from diffplan.files import write_json
from diffplan.finetuning.replay import round_seeds


class JointEnv(gymnasium.Env):
    """A team of equal roles as one agent: it sees what all see, does what all do, and gets their mean reward."""

    def __init__(self, env: Any, seed: int):
        self.env, self.spec, self._starts = env, env.joint_spec, iter(round_seeds(seed, 0, 10**6).tolist())
        role, number = self.spec.role_of(self.spec.names[0]), self.spec.num_agents
        low, high = (np.tile(np.float32(bound), number) for bound in (role.action_low, role.action_high))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (number * role.observation_size,), np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        observations, _ = self.env.reset(seed=next(self._starts))
        return self._stacked(observations), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        number = self.spec.num_agents
        actions = self.spec.unstack_actions(action.reshape(number, -1), np.ones(number, bool))
        seen, rewards, over, cut, _ = self.env.step(actions)
        return self._stacked(seen), float(np.mean(list(rewards.values()))), all(over.values()), all(cut.values()), {}

    def _stacked(self, observations: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(self.spec.stack_observations(observations)[0], np.float32).reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="mpe:simple_spread_v3")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--evaluate-every", type=int, default=10_000)
    parser.add_argument("--discount", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    d3rlpy.seed(arguments.seed)
    joint = JointEnv(dp.make(arguments.env), arguments.seed)
    scaler = action_scaler(joint.spec, joint=True)
    sac = d3rlpy.algos.SACConfig(gamma=arguments.discount, action_scaler=scaler).create(device=False)
    policy, curve = OfflinePolicy(sac, joint.spec, joint=True), []

    def score(algorithm: Any, epoch: int, step: int) -> None:
        if step % arguments.evaluate_every == 0:
            report = evaluate(policy, arguments.env, episodes=arguments.episodes, seed=1_000 + arguments.seed)
            curve.append({"steps": step, "returns": report.returns})
            write_json(arguments.out, {"curve": curve, "steps": arguments.steps, "discount": arguments.discount})
            print(step, np.mean(report.returns), flush=True)

    sac.fit_online(
        joint,
        d3rlpy.dataset.create_fifo_replay_buffer(limit=arguments.steps, env=joint),
        n_steps=arguments.steps,
        n_steps_per_epoch=arguments.evaluate_every,
        update_start_step=1_000,
        random_steps=1_000,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
        callback=score,
    )


if __name__ == "__main__":
    main()
