import dataclasses

import numpy as np
import pytest

import diffplan as dp
from diffplan.datasets import run_episode
from diffplan.envs.crossing_layouts import RADIUS
from diffplan.envs.crossing_partners import (
    FAMILIES,
    HELDOUT_FAMILIES,
    SWITCH_TIME,
    TRAINING_FAMILIES,
    ScriptedPartners,
    Style,
    Walker,
    draw_style,
    draw_switch,
)
from diffplan.envs.crossing_response import LOOK, PartneredExpert, respond

START, GOAL = np.array([0.95, 0.0]), np.array([-0.95, 0.0])
NOBODY = np.zeros((1, 0, 2))


def walked(style: Style, steps: int = 60, others: np.ndarray = NOBODY) -> np.ndarray:
    walker = Walker(START, GOAL, style, 0.1)
    path = []
    for _ in range(steps):
        path.append(walker.points[0])
        walker.advance(others)
    return np.array(path)


def test_there_are_six_training_families_and_no_data_show_the_held_out_ones() -> None:
    assert len(TRAINING_FAMILIES) >= 6
    assert not set(TRAINING_FAMILIES) & set(HELDOUT_FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_partner_of_every_family_reaches_its_goal_where_nobody_is_in_its_way(family: str) -> None:
    style = draw_style(family, np.random.default_rng(0))
    assert np.linalg.norm(walked(style, 90)[-1] - GOAL) < 0.03


def test_the_sign_of_the_arc_says_which_way_round() -> None:
    assert walked(Style("any", 0.3, 0.6))[20, 1] > 0.1
    assert walked(Style("any", -0.3, 0.6))[20, 1] < -0.1


def test_who_yields_waits_for_a_robot_before_it_and_who_insists_does_not() -> None:
    blocker = np.array([[[0.0, 0.3]]])
    insists = walked(Style("any", 0.3, 0.5), others=blocker)
    yields = walked(Style("any", 0.3, 0.5, yields=0.5), others=blocker)
    assert np.linalg.norm(insists[-1] - GOAL) < 0.03
    assert np.linalg.norm(yields - blocker[0], axis=1).min() > 2 * RADIUS


def test_yielding_cannot_be_told_from_position_and_velocity_before_robots_meet() -> None:
    insists, yields = Style("any", 0.3, 0.5), Style("any", 0.3, 0.5, yields=0.5)
    np.testing.assert_array_equal(walked(insists), walked(yields))


def test_stop_and_go_repeats_with_its_period() -> None:
    steps = np.diff(walked(Style("any", 0.3, 0.7, period=1.0, duty=0.5), 30), axis=0)
    moving = np.linalg.norm(steps, axis=1) > 1e-3
    assert 0 < moving[:10].sum() < 10
    np.testing.assert_array_equal(moving[5:15], moving[15:25])


def test_a_switch_changes_the_tempo_and_keeps_the_path() -> None:
    rng = np.random.default_rng(1)
    first = draw_style("bold", rng)
    time, second = draw_switch(first, rng)
    assert SWITCH_TIME[0] <= time <= SWITCH_TIME[1]
    assert second.family != "bold"
    assert second.arc == first.arc
    walker = Walker(START, GOAL, first, 0.1, switch=(0.2, second))
    for family in ("bold", "bold", second.family):
        assert walker.style.family == family
        walker.advance(NOBODY)


def test_labels_hold_the_whole_style() -> None:
    style = draw_style("hesitant", np.random.default_rng(0))
    assert Style.of_labels(style.labels()) == style


def test_egos_that_know_the_style_keep_clear_of_every_family() -> None:
    env = dp.make("crossing-v0", num_robots=3)
    for seed, family in enumerate(TRAINING_FAMILIES):
        episode = run_episode(env, PartneredExpert((family,), switch_share=0.0), env.joint_spec, 7_000 + seed)
        assert episode.labels["success"], family
        assert episode.labels["family"] == family


def test_egos_look_for_a_second_before_they_set_out() -> None:
    env = dp.make("crossing-v0", num_robots=3)
    episode = run_episode(env, PartneredExpert(), env.joint_spec, 7_000)
    egos = [i for i, name in enumerate(env.possible_agents) if name != episode.labels["partner"]]
    moved = np.linalg.norm(episode.observations[LOOK, egos, :2] - episode.observations[0, egos, :2], axis=1)
    assert moved.max() < 0.02


def test_the_best_response_depends_on_the_style_and_not_only_on_the_scene() -> None:
    env = dp.make("crossing-v0", num_robots=3)
    env.reset(seed=3)
    bold = Style("bold", 0.3, 0.5)
    late = dataclasses.replace(bold, family="late", delay=2.0)
    ways = [respond(env.starts, env.goals, 0, style, None, 0.85, 0.1) for style in (bold, late)]
    assert not np.allclose(*ways)


def test_scripted_partners_are_the_same_for_the_same_seed_and_differ_between_episodes() -> None:
    partners = ScriptedPartners(("robot_2",), tuple(TRAINING_FAMILIES), 0.1)
    partners.reset([1, 2, 1])
    first, second, third = (one["robot_2"] for one in partners.styles)
    assert first == third != second


def test_an_unknown_family_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="family='rude'.*bold"):
        draw_style("rude", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "doorway"}, "does not know layout='doorway'; make the environment with layout='open'"),
        ({"layout": "obstacles"}, "does not know layout='obstacles'"),
        ({"turnover": 2.0}, "does not know an open team"),
        ({"num_robots": 6}, r"num_robots=6 have 4 x 6\^5 choices to search; PartneredExpert is for 5 at most"),
    ],
)
def test_teams_that_the_responding_expert_cannot_foresee_are_refused(options: dict, message: str) -> None:
    env = dp.make("crossing-v0", **options)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        PartneredExpert().reset(env, 0)
