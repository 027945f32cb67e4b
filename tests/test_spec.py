import dataclasses
import json
import re

import numpy as np
import pytest

from diffplan.spec import JointSpec, Role, sensed_by

ARM = Role(3, (-1.0, -2.0), (1.0, 2.0), position=(0, 1), static=(2,))
BASE = Role(5, (0.0,), (4.0,))
SPEC = JointSpec({"left": "arm", "base": "base", "right": "arm"}, {"arm": ARM, "base": BASE}, 0.05)


def test_narrow_agents_are_padded_and_their_padding_does_not_exist() -> None:
    assert (SPEC.observation_size, SPEC.action_size, SPEC.size) == (5, 2, 7)
    exists = [[1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1, 1]]
    assert SPEC.feature_mask.astype(int).tolist() == exists
    assert np.argwhere(SPEC.static_mask).tolist() == [[0, 2], [2, 2]]
    assert SPEC.role_index.tolist() == [0, 1, 0]


def test_stacking_and_unstacking_give_the_actions_back() -> None:
    actions = {"left": np.array([0.5, -1.5]), "base": np.array([3.0])}
    stacked, present = SPEC.stack_actions(actions)
    assert present.tolist() == [True, True, False]
    back = SPEC.unstack_actions(stacked, present)
    assert list(back) == ["left", "base"]
    assert all(np.array_equal(back[name], actions[name]) for name in actions)


def test_stacking_and_unstacking_give_the_observations_back() -> None:
    seen = {"left": np.array([0.5, -1.5, np.nan]), "base": np.arange(5.0)}
    back = SPEC.unstack_observations(*SPEC.stack_observations(seen))
    assert list(back) == ["left", "base"]
    assert all(np.array_equal(back[name], seen[name], equal_nan=True) for name in seen)


def test_actions_never_leave_their_bounds() -> None:
    wild = np.full((3, 2), 1e9, np.float32)
    bounded = SPEC.unstack_actions(wild, np.ones(3, bool))
    assert bounded["left"].tolist() == [1, 2]
    assert bounded["base"].tolist() == [4]


def test_a_spec_survives_json() -> None:
    assert JointSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


def test_a_role_of_lists_or_arrays_is_that_of_tuples() -> None:
    made = Role(3, np.array([-1, -2], np.float32), [1, 2], position=np.arange(2), static=[2])
    assert made == ARM and json.loads(json.dumps(dataclasses.asdict(made)))["position"] == [0, 1]


def test_roles_that_say_more_for_the_safety_filter_are_the_same_roles() -> None:
    told = dataclasses.replace(ARM, velocity=(1, 2), obstacles=(0, 1, 2))
    assert told == ARM
    back = JointSpec.from_dict(json.loads(json.dumps(JointSpec({"a": "arm"}, {"arm": told}).to_dict()))).roles["arm"]
    assert (back.velocity, back.obstacles) == ((1, 2), (0, 1, 2))


def test_a_spec_that_was_saved_without_velocity_and_obstacles_is_read() -> None:
    data = SPEC.to_dict()
    for role in data["roles"].values():
        del role["velocity"], role["obstacles"]
    assert JointSpec.from_dict(data) == SPEC


def test_renaming_keeps_order_and_roles() -> None:
    renamed = SPEC.rename({"base": "cart"})
    assert renamed.agents == {"left": "arm", "cart": "base", "right": "arm"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SPEC.stack_actions({"tail": [0.0]}), "actions of agents ['tail'], but the spec has"),
        (lambda: SPEC.stack_observations({"base": np.zeros(3)}), "'base' has shape (3,), expected (5,)"),
        (lambda: SPEC.rename({"tail": "x"}), "cannot rename ['tail']"),
        (lambda: SPEC.rename({"left": "right"}), "gives two agents the same name"),
        (lambda: JointSpec({}, {"arm": ARM}), "at least one agent"),
        (lambda: JointSpec({0: "arm"}, {"arm": ARM}), "agents [0], roles ['arm']; their names are words"),
        (lambda: JointSpec({"a": "leg"}, {"arm": ARM}), "roles ['leg'] that are not in roles ['arm']"),
        (lambda: JointSpec({"a": "arm"}, {"arm": ARM}, dt=0.0), "dt=0.0"),
        (lambda: JointSpec({"a": "arm"}, {"arm": ARM}, dt=np.inf), "dt=inf"),
        (lambda: JointSpec.from_dict({"agents": {}}), "not a JointSpec"),
        (lambda: Role(0, (-1.0,), (1.0,)), "observation_size=0"),
        (lambda: Role(2, (-1.0,), (1.0, 1.0)), "action_low has 1 entries, action_high 2"),
        (lambda: Role(2, (1.0,), (1.0,)), "must lie below"),
        (lambda: Role(2, (-np.inf,), (np.inf,)), "give finite bounds"),
        (lambda: Role(2, (-1.0,), (1.0,), position=(2,)), "position entries [2] are outside"),
        (lambda: Role(2, (-1.0,), (1.0,), velocity=(0, 3)), "velocity entries [3] are outside"),
        (lambda: Role(2, (-1.0,), (1.0,), obstacles=(0, 1)), "obstacles=(0, 1) are no triples"),
        (lambda: Role(2, (-1.0,), (1.0,), obstacles=(0, 1, 2)), "obstacles entries [2] are outside"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_teams_of_the_same_roles_match_whatever_their_number_and_names() -> None:
    JointSpec({"x": "arm"}, {"arm": ARM}, 0.05).check_same_roles(
        JointSpec({"y": "arm", "z": "arm"}, {"arm": ARM}, 0.05), "a", "b"
    )
    told = dataclasses.replace(ARM, velocity=(1, 0))  # what says more of the same entries is no other role
    JointSpec({"x": "arm"}, {"arm": ARM}, 0.05).check_same_roles(JointSpec({"x": "arm"}, {"arm": told}, 0.05), "a", "b")
    for other, message in (
        (JointSpec({"y": "base"}, {"base": BASE}, 0.05), "b has agents of role 'base', but a knows ['arm']"),
        (JointSpec({"y": "arm"}, {"arm": BASE}, 0.05), "role 'arm': a has {'observation_size': 3"),
        (JointSpec({"y": "arm"}, {"arm": ARM}, 0.1), "a has dt=0.05 s, but b dt=0.1 s"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            JointSpec({"x": "arm"}, {"arm": ARM}, 0.05).check_same_roles(other, "a", "b")


CHOOSER = Role(5, (0.0,) * 3, (1.0,) * 3, discrete=True, legal=(2, 3, 4))


def test_a_discrete_action_is_the_largest_legal_choice():
    spec = JointSpec({"a": "r", "b": "r"}, {"r": CHOOSER})
    actions, there = np.array([[0.9, 0.2, 0.4], [0.9, 0.2, 0.4]], np.float32), np.array([True, False])
    seen = np.array([[7, 7, 0, 1, 1], [7, 7, 1, 1, 1]], np.float32)
    assert spec.unstack_actions(actions, there)["a"].tolist() == [1, 0, 0]
    taken = spec.unstack_actions(actions, there, seen)
    assert taken["a"].tolist() == [0, 0, 1] and list(taken) == ["a"]
    nothing_known = spec.unstack_actions(actions, there, np.full((2, 5), np.nan, np.float32))
    assert nothing_known["a"].tolist() == [1, 0, 0]


def test_a_role_of_choices_survives_json():
    spec = JointSpec({"a": "r"}, {"r": CHOOSER})
    assert JointSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(("discrete", "legal"), [(True, (2, 3)), (False, (2, 3, 4))])
def test_legal_entries_are_one_for_each_choice(discrete, legal):
    with pytest.raises(ValueError, match="one entry for each choice"):
        Role(5, (0.0,) * 3, (1.0,) * 3, discrete=discrete, legal=legal)


def test_an_agent_senses_what_the_environment_tells_or_all_but_what_is_static() -> None:
    seen = {name: np.arange(width, dtype=np.float32) for name, width in (("left", 3), ("base", 5), ("right", 3))}
    others = sensed_by("left", seen, {"left": {}}, SPEC)
    assert list(others) == ["base", "right"] and np.array_equal(others["base"], seen["base"])
    assert np.array_equal(others["right"], [0, 1, np.nan], equal_nan=True) and seen["right"][2] == 2
    told = {"base": seen["base"]}
    assert sensed_by("left", seen, {"left": {"sensed": told}}, SPEC) is told
