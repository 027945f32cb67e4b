"""Records episodes of policies that SAC of d3rlpy learned here, for tasks that have no script.

    d3rlpy-env/bin/pip install -e ".[mamujoco]"  # into the environment that offline_baselines.py describes
    d3rlpy-env/bin/python scripts/learned_data.py --env mamujoco:HalfCheetah-2x3 --out runs/ladder/halfcheetah_2x3

The policy is kept every 5,000 steps. ``expert`` data are of the one that scores best, ``medium`` data of the one whose
score is nearest to half of that; both act as they explored. What was learned already is not learned again, and what was
recorded goes on. ``benchmark_ladder.py`` calls this file.
"""

import argparse
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
from offline_baselines import OfflinePolicy, action_scaler
from online_baseline import JointEnv

import diffplan as dp
from diffplan.files import read_json, write_json
from diffplan.spec import Actions, Observations

KEPT_EVERY = 5_000
CHOSEN = "policies.json"
TRIALS = 5  # episodes by which a policy is judged


class Exploring:
    """Acts with a sample of a d3rlpy policy's actions; episodes are labelled with its steps of training."""

    def __init__(self, algorithm: d3rlpy.algos.QLearningAlgoBase, spec: dp.JointSpec, steps: int):
        self.algorithm, self.spec, self.labels = algorithm, spec, {"steps": steps}

    def reset(self, env: Any, seed: int) -> None:
        d3rlpy.seed(seed)

    def __call__(self, observations: Observations) -> Actions:
        values, mask = self.spec.stack_observations(observations)
        actions = self.algorithm.sample_action(values.reshape(1, -1).astype(np.float32))
        return self.spec.unstack_actions(actions.reshape(len(mask), -1), mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    d3rlpy.seed(arguments.seed)
    env = dp.make(arguments.env)
    joint = JointEnv(env, arguments.seed)
    sac = d3rlpy.algos.SACConfig(action_scaler=action_scaler(joint.spec, joint=True)).create(device=False)
    if not (arguments.out / CHOSEN).exists():
        write_json(arguments.out / CHOSEN, learn(sac, joint, arguments))
    sac.build_with_env(joint)
    for skill, step in read_json(arguments.out / CHOSEN).items():
        sac.load_model(arguments.out / f"policy_{step}.pt")
        exploring, out = Exploring(sac, joint.spec, step), arguments.out / skill / "data"
        dp.collect_episodes(
            env, exploring, out=out, episodes=arguments.episodes, seed=arguments.seed, workers=0, progress=False
        )


def learn(sac: d3rlpy.algos.SAC, joint: JointEnv, arguments: argparse.Namespace) -> dict[str, int]:
    """Trains, keeps policies on the way, and says after how many steps there was which."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    policy, scores = OfflinePolicy(sac, joint.spec, joint=True), {}

    def keep(algorithm: Any, epoch: int, step: int) -> None:
        if step % KEPT_EVERY == 0:
            algorithm.save_model(arguments.out / f"policy_{step}.pt")
            scores[step] = float(np.mean(dp.evaluate(policy, arguments.env, episodes=TRIALS, seed=5_000).returns))
            print(step, scores[step], flush=True)

    sac.fit_online(
        joint,
        d3rlpy.dataset.create_fifo_replay_buffer(limit=arguments.steps, env=joint),
        n_steps=arguments.steps,
        n_steps_per_epoch=KEPT_EVERY,
        update_start_step=1_000,
        random_steps=1_000,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
        callback=keep,
    )
    best = max(scores, key=scores.__getitem__)
    return {"expert": best, "medium": min(scores, key=lambda step: abs(scores[step] - scores[best] / 2))}


if __name__ == "__main__":
    main()
