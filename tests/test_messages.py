"""What robots tell each other survives the wire, in few bytes; everything else is refused."""

import dataclasses
import itertools

import numpy as np
import pytest

import diffplan as dp
from diffplan.planners.channel import Channel, Link
from diffplan.planners.messages import DOUBLINGS, HEADER, RANGE, Message
from diffplan.trajectory import Plan

HORIZON = 32
SPEC = dp.make("crossing-v0", num_robots=4).joint_spec
NORMALIZER = dp.Normalizer("gaussian", [[0.1] * 8], [[0.6] * 8])


@pytest.fixture
def plan() -> Plan:
    rng = np.random.default_rng(0)
    cells = rng.uniform(-1, 1, (1, 4, 2, 8)).astype(np.float32)
    line = cells[:, :, :1] + np.linspace(0, 1, HORIZON, dtype=np.float32)[:, None] * cells[:, :, 1:]
    line[..., 4:6] = line[:, :, :1, 4:6]  # goals stay
    return Plan(SPEC, line[..., :6], line[..., 6:], np.ones(4, bool))


@pytest.mark.parametrize(("bits", "error"), [(8, 0.0096), (16, 4e-5)])
def test_a_message_survives_the_wire_up_to_its_quantisation(plan: Plan, bits: int, error: float) -> None:
    message = Message.from_plan(plan, "robot_2", step=70_000)
    data = message.to_bytes(SPEC, NORMALIZER, bits)
    assert len(data) == HEADER.size + bits // 8 * (2 + 9 * 6) <= 200
    again = Message.from_bytes(data, SPEC, NORMALIZER)
    assert vars(again) | {"cells": 0} == vars(message) | {"cells": 0}
    np.testing.assert_allclose(again.cells, message.cells, atol=error)


def test_told_cells_are_interpolated_to_every_step_and_end_where_the_plan_ends(plan: Plan) -> None:
    path = Message.from_plan(plan, "robot_1", step=5, stride=6).path(now=15)
    whole = np.concatenate((plan.observations[0, 1], plan.actions[0, 1]), -1)
    np.testing.assert_allclose(path[: HORIZON - 10], whole[10:], atol=1e-5)  # the plan is straight
    assert np.isnan(path[HORIZON - 10 :]).all()


@pytest.mark.parametrize("away", [5, 100, 250])
def test_a_message_of_larger_numbers_is_coarser_but_whole(plan: Plan, away: float) -> None:
    message = Message.from_plan(dataclasses.replace(plan, observations=plan.observations + away), "robot_0", 0)
    again = Message.from_bytes(message.to_bytes(SPEC, NORMALIZER), SPEC, NORMALIZER)
    np.testing.assert_allclose(again.cells, message.cells, atol=2 * away / 2**16)


def test_numbers_beyond_all_ranges_are_cut_off(plan: Plan) -> None:
    far = dataclasses.replace(plan, observations=plan.observations + 1e6)
    again = Message.from_bytes(Message.from_plan(far, "robot_0", 0).to_bytes(SPEC, NORMALIZER), SPEC, NORMALIZER)
    np.testing.assert_allclose(again.cells[:, :6], 0.1 + 0.6 * RANGE * 2**DOUBLINGS, rtol=1e-5)


def test_one_damaged_bit_anywhere_is_noticed(plan: Plan) -> None:
    data = Message.from_plan(plan, "robot_0", 3).to_bytes(SPEC, NORMALIZER)
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="message"):
            Message.from_bytes(bytes(damaged), SPEC, NORMALIZER)


def test_whatever_is_no_message_of_this_team_is_refused(plan: Plan) -> None:
    data = Message.from_plan(plan, "robot_3", 3).to_bytes(SPEC, NORMALIZER)
    rng = np.random.default_rng(0)
    for garbage in (
        b"",
        b"DP1",
        data[:-1],
        data + b"\0",
        *(rng.bytes(n) for n in range(0, 300, 7)),
        b"DP1" + rng.bytes(99),
    ):
        with pytest.raises(ValueError, match="message"):
            Message.from_bytes(garbage, SPEC, NORMALIZER)
    fewer = dp.make("crossing-v0", num_robots=3).joint_spec
    for spec, normalizer in ((fewer, NORMALIZER), (SPEC, dp.Normalizer("gaussian", [[0.0] * 8], [[0.6] * 8]))):
        with pytest.raises(ValueError, match="damaged, or of a team with another spec or normaliser"):
            Message.from_bytes(data, spec, normalizer)


@pytest.mark.parametrize("fields", [(0, 32, 9, 4, 16), (0, 0, 1, 4, 16), (0, 32, 1, 0, 16), (0, 32, 1, 4, 32)])
def test_fields_out_of_range_are_refused_even_with_a_right_check_sum(fields: tuple[int, ...]) -> None:
    from diffplan.planners.messages import MAGIC, _checksum

    body = b"\0" * 112
    with pytest.raises(ValueError, match="out of range"):
        Message.from_bytes(
            HEADER.pack(MAGIC, _checksum(SPEC, NORMALIZER, fields, body), *fields) + body, SPEC, NORMALIZER
        )


def test_a_stride_or_number_of_bits_that_makes_no_sense_is_refused(plan: Plan) -> None:
    with pytest.raises(ValueError, match="stride=0"):
        Message.from_plan(plan, "robot_0", 0, stride=0)
    with pytest.raises(ValueError, match="bits=12; quantise to 8 or 16"):
        Message.from_plan(plan, "robot_0", 0).to_bytes(SPEC, NORMALIZER, bits=12)


def arrivals(link: Link, steps: int = 400) -> list[list[int]]:
    """At every step, which of the messages sent at every step from a to b arrive."""
    channel, there = Channel(("a", "b"), link, seed=1), []
    for step in range(steps):
        channel.send("a", step.to_bytes(2), step)
        assert channel.deliver("a", step + 1) == []
        there.append([int.from_bytes(data) for data in channel.deliver("b", step + 1)])
    return there


def test_over_a_good_link_every_message_arrives_at_the_next_step_once() -> None:
    assert arrivals(Link()) == [[step] for step in range(400)]


def test_a_bad_link_loses_delays_reorders_and_doubles() -> None:
    link = Link(loss=0.3, delay=3, duplicates=0.2)
    there = arrivals(link)
    found = [sent for now in there for sent in now]
    assert len(set(found)) / 400 == pytest.approx(0.7, abs=0.06)
    assert len(found) / len(set(found)) == pytest.approx(1.2, abs=0.06)
    late = [step - sent for step, now in enumerate(there) for sent in now]
    assert min(late) == 0 and max(late) == 3
    assert any(a > b for a, b in itertools.pairwise(found))
    assert arrivals(link) == there
    with pytest.raises(ValueError, match="loss=2; give a share"):
        Link(loss=2)
    with pytest.raises(ValueError, match="delay=-1; give a number of steps"):
        Link(delay=-1)
