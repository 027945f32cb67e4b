"""Facts about the skills of scripted behaviour."""

import signal

import numpy as np
import pytest

from diffplan.envs import behavior_policy, make
from diffplan.envs.behavior import SKILLS, SkilledPolicy, draw_name


def episode(env, policy, seed):
    observations, infos = env.reset(seed=seed)
    policy.reset(env, seed)
    actions, total = [], 0.0
    while env.agents:
        actions.append(policy(observations))
        observations, rewards, *_, infos = env.step(actions[-1])
        total += float(np.mean(list(rewards.values())))
    return infos["robot_0"]["success"], total, actions


@pytest.fixture(scope="module")
def env():
    return make("crossing-v0")


def test_expert_beats_medium_beats_random(env):
    outcomes = {}
    for skill in ("expert", "medium", "random"):
        policy = behavior_policy("crossing-v0", skill)
        outcomes[skill] = np.mean([episode(env, policy, seed)[:2] for seed in range(20)], axis=0)
    success, returns = np.array(list(outcomes.values())).T
    assert success[0] == 1 and 0.2 <= success[1] <= 0.8 and success[2] == 0
    assert returns[0] > returns[1] > returns[2]


def test_replay_mixes_the_three_skills_and_labels_each_episode(env):
    policy = behavior_policy("crossing-v0", "replay")
    seen = set()
    for seed in range(30):
        env.reset(seed=seed)
        policy.reset(env, seed)
        seen.add(policy.labels["skill"])
        assert (policy.labels["style"] == "none") == (policy.labels["skill"] == "random")
    assert seen == set(SKILLS[:3])


def test_the_seed_settles_the_behaviour(env):
    for skill in SKILLS:
        first, again, other = (
            np.array([list(one.values()) for one in episode(env, behavior_policy("crossing-v0", skill), seed)[2][:3]])
            for seed in (1, 1, 2)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_every_action_is_within_the_action_space(env):
    for skill in SKILLS:
        _, _, actions = episode(env, behavior_policy("crossing-v0", skill), seed=5)
        assert all(env.action_space(name).contains(action) for step in actions for name, action in step.items())


def test_noise_at_rest_scales_the_noise_of_an_idle_expert(env):
    def idle(env, style, rng):
        return lambda observations: {name: np.zeros(2, np.float32) for name in observations}

    sizes = []
    for at_rest in (1.0, 0.25):
        policy = SkilledPolicy(idle, "medium", "calm", ("calm",), noise=0.4, noise_at_rest=at_rest)
        observations, _ = env.reset(seed=0)
        policy.reset(env, 0)
        sizes.append(np.abs([list(policy(observations).values()) for _ in range(5)]))
    assert np.allclose(sizes[1], 0.25 * sizes[0]) and sizes[0].max() > 0


def test_unknown_skills_and_styles_are_named():
    with pytest.raises(ValueError, match=r"skill='superb'; choose one of"):
        behavior_policy("crossing-v0", "superb")
    with pytest.raises(ValueError, match=r"style='sideways'; choose one of .*'clockwise'"):
        behavior_policy("crossing-v0", style="sideways")
    with pytest.raises(ValueError, match="style='clockwise', but skill='random' drives in none"):
        behavior_policy("crossing-v0", skill="random", style="clockwise")


def test_a_style_of_another_layout_is_refused(env):
    policy = behavior_policy("crossing-v0", style="left_first")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"style='left_first' does not fit .*'clockwise'"):
        policy.reset(env, 0)


def test_drawing_a_name_takes_the_draw_of_choice_and_loses_no_signal():
    names, ours, theirs = ("left", "right", "wait"), np.random.default_rng(0), np.random.default_rng(0)
    assert [draw_name(names, ours) for _ in range(20)] == [str(theirs.choice(names)) for _ in range(20)]
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(30):
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            with pytest.raises(KeyboardInterrupt):
                for _ in range(1_000_000):
                    draw_name(names, ours)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
