import dataclasses
import re

import numpy as np
import pytest

from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Cells, Plan, Trajectory

ROLE = Role(3, (-1.0,), (1.0,), position=(0, 1))
SPEC = JointSpec({"a": "robot", "b": "robot"}, {"robot": ROLE}, 0.1)


def make_trajectory(**changes) -> Trajectory:
    parts = {
        "observations": [{"a": [0, 0, 1], "b": [1, 1, 1]}, {"a": [0, 1, 1], "b": [1, 0, 1]}, {"a": [0, 2, 1]}],
        "actions": [{"a": [0.5], "b": [-0.5]}, {"a": [0.1], "b": [0.2]}],
        "rewards": [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}],
        "terminations": [{"a": False, "b": False}, {"a": True, "b": True}],
        "truncations": [{"a": False, "b": False}] * 2,
        **changes,
    }
    return Trajectory.from_steps(SPEC, **parts)


def make_plan(values: list[float] | None = None) -> Plan:
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(3, 2, 4, 3)), rng.normal(size=(3, 2, 4, 1))
    ranked = None if values is None else np.array(values, np.float32)
    return Plan(SPEC, observations.astype(np.float32), actions.astype(np.float32), np.ones(2, bool), ranked)


def test_a_rollout_stacks_into_one_more_observation_than_actions() -> None:
    trajectory = make_trajectory()
    assert trajectory.observations.shape == (3, 2, 3)
    assert trajectory.actions.shape == (2, 2, 1)
    assert trajectory.returns.tolist() == [4, 6]
    assert trajectory.agent_mask.tolist() == [[True, True], [True, True], [True, False]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": [{"a": [0.5]}]}, "3 observations for 1 actions; expected one more"),
        ({"rewards": [{"a": 1.0}, {"A": 1.0}]}, "rewards of agents ['A'], but the spec has ['a', 'b']"),
        ({"terminations": [{}, {"A": True}]}, "terminations of agents ['A'], but the spec has ['a', 'b']"),
        ({"rewards": [{"a": 1.0}]}, "rewards has shape (1, 2), expected (2, 2)"),
        ({"actions": [{"a": [0.5]}, {"a": [np.nan]}]}, "actions is not finite at step 1, agent 'a' (1 such numbers)"),
    ],
)
def test_rollouts_with_holes_are_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trajectory(**changes)


def test_masks_of_ones_and_zeros_are_truth_values_and_other_kinds_of_arrays_are_refused() -> None:
    made = make_trajectory()
    whole = dataclasses.replace(made, agent_mask=made.agent_mask.astype(np.int64))
    assert whole.agent_mask.dtype == bool and np.array_equal(whole.agent_mask, made.agent_mask)
    with pytest.raises(ValueError, match="agent_mask holds other values than true and false"):
        dataclasses.replace(made, agent_mask=made.agent_mask * 2)
    for kind in (complex, str):
        with pytest.raises(ValueError, match=r"rewards is an array of .*, expected numbers"):
            dataclasses.replace(made, rewards=made.rewards.astype(kind))


def test_the_best_candidate_is_the_one_of_highest_value() -> None:
    plan = make_plan([0.0, 2.0, 1.0])
    assert np.array_equal(plan.best().actions, plan.actions[1:2])
    assert np.array_equal(make_plan().best().actions, plan.actions[:1])
    assert np.array_equal(plan.sample(-1).actions, plan.actions[2:])
    expected = np.clip(plan.actions[1, 0, 2], -1, 1)
    assert np.array_equal(plan.actions_at(2)["a"], expected)


def test_a_further_term_counts_beside_what_a_plan_is_worth_already() -> None:
    plan = make_plan([3.0, 1.0, 2.0]).with_term("mine", np.array([0.0, 3.0, 0.0]))
    assert plan.values.tolist() == [3, 4, 2]
    assert plan.with_term("mine", np.zeros(3)).values.tolist() == [3, 1, 2]


def test_positions_are_the_entries_that_the_role_names() -> None:
    plan = make_plan()
    assert np.array_equal(plan.positions("b"), plan.observations[:, 1, :, :2])


def test_an_announcement_holds_one_agents_cells_and_nothing_else() -> None:
    plan = make_plan()
    cells = plan.cells("b")
    assert np.array_equal(cells.actions[1], plan.actions[0, 1])
    assert np.isnan(cells.observations[0]).all()
    merged = cells.merge(plan.sample(1).cells("a"))
    assert np.array_equal(merged.actions[0], plan.actions[1, 0])
    assert np.array_equal(merged.actions[1], plan.actions[0, 1])
    assert np.isnan(Cells.unknown(SPEC, 4).observations).all()


def test_a_step_outside_the_plan_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("step=4 is outside the plan of 4 steps (0..3)")):
        make_plan().actions_at(4)


def test_what_a_plan_does_not_hold_is_refused_and_named() -> None:
    plan = make_plan()
    alone = dataclasses.replace(plan, agent_mask=np.array([True, False]))
    with pytest.raises(IndexError, match="sample 3 of a plan of 3"):
        plan.sample(3)
    for ask in (plan.cells, plan.positions):
        with pytest.raises(ValueError, match=re.escape("the plan has no agents ['c']; it has ['a', 'b']")):
            ask("c")
    with pytest.raises(ValueError, match=re.escape("agents ['b'] are absent from the plan")):
        alone.cells("b")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("observations", (3, 2, 4, 5)),
        ("actions", (3, 2, 5, 1)),
        ("agent_mask", (3,)),
        ("values", (4,)),
        ("chain", (2, 3, 2, 4, 3)),
    ],
)
def test_a_plan_of_another_shape_is_refused_also_from_a_file(name: str, shape: tuple[int, ...], tmp_path) -> None:
    plan, path = make_plan([0.0, 2.0, 1.0]), tmp_path / "plan.safetensors"
    with pytest.raises(ValueError, match=re.escape(f"{name} of the plan: shape {shape}, expected")):
        dataclasses.replace(plan, **{name: np.zeros(shape, bool if name == "agent_mask" else np.float32)})
    object.__setattr__(plan, name, np.zeros(shape, bool if name == "agent_mask" else np.float32))
    plan.save(path)
    with pytest.raises(ValueError, match=f"plan.safetensors is not a saved plan \\({name} of the plan"):
        Plan.load(path)


def test_a_plan_survives_saving_and_a_damaged_file_is_named(tmp_path) -> None:
    plan, path = make_plan([0.0, 2.0, 1.0]), tmp_path / "plan.safetensors"
    plan.save(path)
    loaded = Plan.load(path)
    assert np.array_equal(loaded.observations, plan.observations)
    assert np.array_equal(loaded.values, plan.values)
    assert repr(loaded) == "Plan(S=3 samples, N=2 agents (2 present), H=4 steps of 0.1 s, values 0.00..2.00)"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="plan.safetensors is not a saved plan"):
        Plan.load(path)
