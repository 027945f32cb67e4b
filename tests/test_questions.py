from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.exercises import Exercises
from diffplan.questions import KINDS, QuestionMix, draw_known, draw_levels, held_beyond_the_end

B, N, W, O, D, HISTORY = 64, 3, 8, 4, 6, 2


def only(kind: str) -> QuestionMix:
    return QuestionMix(**{name: float(name == kind) for name in KINDS})


def draw(kind: str, static: tuple[int, ...] = ()) -> torch.Tensor:
    entries = torch.zeros(N, D, dtype=torch.bool)
    entries[:, list(static)] = True
    exists = torch.ones(B, N, W, D, dtype=torch.bool)
    return draw_known(only(kind), exists, entries, HISTORY, O, torch.Generator().manual_seed(0))


def test_a_plan_starts_from_the_history_and_the_present_observation() -> None:
    known = draw("plan")
    assert known[:, :, :HISTORY].all()
    assert known[:, :, HISTORY, :O].all()
    assert not known[:, :, HISTORY, O:].any()
    assert not known[:, :, HISTORY + 1 :].any()


def test_static_entries_are_known_in_every_cell() -> None:
    known = draw("plan", static=(1,))
    assert known[..., 1].all()
    assert not known[:, :, HISTORY + 1 :, 0].any()


def test_an_announcement_covers_the_whole_future_of_some_agents() -> None:
    future = draw("announced")[:, :, HISTORY + 1 :, :O]
    told = future.all(dim=(2, 3))
    assert (told | ~future.any(dim=2).any(-1)).all()
    assert 0.2 < told.float().mean() < 0.8


def test_forecasts_know_all_actions_and_inverse_dynamics_all_observations() -> None:
    assert draw("forecast")[..., O:].all()
    assert not draw("forecast")[:, :, HISTORY + 1 :, :O].any()
    assert draw("inverse")[..., :O].all()
    assert not draw("inverse")[:, :, HISTORY:, O:].any()


def test_under_partial_observability_others_are_seen_without_what_is_private_or_not_at_all() -> None:
    seen = draw("partial", static=(1,))[:, :, :HISTORY]
    private, sensed = seen[..., 1].all(2), seen[..., [0, 2, 3, 4, 5]].all((2, 3))
    assert (seen[..., 1].any(2) == private).all() and (seen[..., [0, 2, 3, 4, 5]].any((2, 3)) == sensed).all()
    assert not (private & ~sensed).any()
    for share in (private, sensed & ~private, ~sensed):
        assert 0.1 < share.float().mean() < 0.8


def test_waypoints_are_a_few_steps_of_what_some_agents_will_see() -> None:
    future = draw("waypoints")[:, :, HISTORY + 1 :]
    assert not future[..., O:].any() and (future[..., :O].all(-1) == future[..., :O].any(-1)).all()
    assert 0.05 < future[..., 0].float().mean() < 0.3
    assert 0.2 < future[..., 0].any((1, 2)).float().mean() < 0.9


def test_nothing_is_known_to_the_unconditional_model() -> None:
    assert not draw("nothing", static=(1,)).any()


def test_cells_that_do_not_exist_are_never_known() -> None:
    exists = torch.rand(B, N, W, D, generator=torch.Generator().manual_seed(1)) < 0.5
    static = torch.ones(N, D, dtype=torch.bool)
    known = draw_known(QuestionMix(), exists, static, HISTORY, O, torch.Generator().manual_seed(0))
    assert not (known & ~exists).any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_levels_are_shared_by_a_window_or_apart_for_every_patch(share: float) -> None:
    mix = QuestionMix(independent_levels=share)
    unknown = torch.ones(B, N, W, dtype=torch.bool)
    unknown[:, :, 0] = False
    levels = draw_levels(mix, unknown, 4, torch.Generator().manual_seed(0))
    assert (levels[:, :, 0] == 0).all()
    assert ((levels[:, :, 1:] > 0) & (levels[:, :, 1:] <= 1)).all()
    assert torch.equal(levels[:, :, 1], levels[:, :, 3])
    assert torch.equal(levels[:, 0, 4], levels[:, 1, 7]) == (share == 0)


def test_beyond_the_end_the_network_is_shown_that_the_last_observation_holds() -> None:
    cells = torch.randn(1, 2, W, D, generator=torch.Generator().manual_seed(0))
    exists = torch.ones(1, 2, W, D, dtype=torch.bool)
    exists[0, 0, 5:] = False  # this agent's episode ends
    exists[0, 0, 4, O:] = False  # its final observation has no action
    exists[0, 1, : HISTORY + 2] = False  # this one joins later: no planner can know it yet
    cells = cells * exists
    features = torch.ones(2, D, dtype=torch.bool)
    held, shown = held_beyond_the_end(cells, exists, features, HISTORY, O)
    assert shown[0, 0].all()
    assert not shown[0, 1].any()
    assert torch.equal(held[0, 0, :5], cells[0, 0, :5])
    assert torch.equal(held[0, 0, 5:, :O], cells[0, 0, 4, :O].expand(W - 5, O))
    assert (held[0, 0, 5:, O:] == 0).all()
    assert (held[0, 1] == 0).all()


def test_before_the_start_nothing_is_shown() -> None:
    exists = torch.ones(1, 1, W, D, dtype=torch.bool)
    exists[:, :, :HISTORY] = False
    _, shown = held_beyond_the_end(torch.zeros(1, 1, W, D), exists, torch.ones(1, D, dtype=torch.bool), HISTORY, O)
    assert torch.equal(shown, exists)


def test_a_level_shift_asks_more_often_at_high_noise_and_keeps_what_is_known() -> None:
    unknown_cell = torch.rand(B, N, W, generator=torch.Generator().manual_seed(2)) < 0.7
    alike, shifted = (
        draw_levels(QuestionMix(level_shift=shift), unknown_cell, 2, torch.Generator().manual_seed(0))
        for shift in (1.0, 3.0)
    )
    torch.testing.assert_close(shifted, 3 * alike / (1 + 2 * alike))
    assert (shifted[~unknown_cell] == 0).all() and (shifted[unknown_cell] > alike[unknown_cell] - 1e-6).all()


def test_who_is_watched_is_the_partner_of_every_exercise(crossing_store: Path) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=6, history=2)
    watched = torch.tensor([False, True])
    exercises = Exercises(dataset.spec, 2, 2, only("partners"), watched=watched)
    known = exercises(dataset.sample(32, np.random.default_rng(0)), torch.Generator().manual_seed(0)).known
    O, static = dataset.spec.observation_size, torch.from_numpy(dataset.spec.static_mask)[1]
    assert static.any()
    assert not known[:, 1, :, O:].any() and not known[:, 1, :, static].any()
    assert known[:, 1, 2, ~static].any() and known[:, 0, :2, O:].any()


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        ({"plan": -1}, "plan=-1"),
        ({"independent_levels": 1.5}, "independent_levels=1.5"),
        ({"level_shift": 0}, "level_shift"),
        (dict.fromkeys(KINDS, 0), "must be asked"),
    ],
)
def test_a_mix_that_cannot_be_drawn_is_refused(shares: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        QuestionMix(**shares)
