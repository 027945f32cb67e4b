from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.exercises import Exercise, Exercises
from diffplan.questions import QuestionMix


def exercise_of(store: Path, change_weight: float) -> Exercise:
    dataset = dp.load_dataset(store, horizon=8, normalizer="gaussian")
    exercises = Exercises(dataset.spec, 0, 2, QuestionMix(), change_weight=change_weight)
    return exercises(dataset.sample(16, np.random.default_rng(0)), torch.Generator().manual_seed(0))


def test_plans_that_jump_are_worse_than_plans_that_are_as_far_off_but_smooth(crossing_store: Path) -> None:
    exercise, plain = exercise_of(crossing_store, 0.25), exercise_of(crossing_store, 0.0)
    steps = torch.arange(exercise.clean.shape[2])[:, None]
    smooth, jumping = (exercise.clean + 0.1 * sign for sign in (torch.ones_like(steps), (-1.0) ** steps))
    assert plain.error(smooth, plain.clean) == pytest.approx(0.01, rel=1e-4)
    assert plain.error(jumping, plain.clean) == pytest.approx(0.01, rel=1e-4)
    assert exercise.error(jumping, exercise.clean) > 2 * exercise.error(smooth, exercise.clean) > 0.02
    assert exercise.error(exercise.clean, exercise.clean) == 0


def test_what_is_not_to_be_estimated_costs_nothing(crossing_store: Path) -> None:
    exercise = exercise_of(crossing_store, 0.25)
    wrong = exercise.clean + ~exercise.learned
    assert (wrong != exercise.clean).any()
    assert exercise.error(wrong, exercise.clean) == 0


def test_errors_of_actions_count_as_often_as_asked(crossing_store: Path) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=8)
    size = dataset.spec.observation_size
    windows = dataset.sample(16, np.random.default_rng(0))
    mix = QuestionMix(0, 0, 0, 0, 0, 0, 0, nothing=1, independent_levels=0)  # every entry is to be estimated
    found = {}
    for weight in (0.0, 1.0, 5.0):
        exercises = Exercises(dataset.spec, 0, 2, mix, change_weight=0.0, action_weight=weight)
        exercise = exercises(windows, torch.Generator().manual_seed(0))
        action = torch.arange(dataset.spec.size) >= size
        found[weight] = [
            float(exercise.error(exercise.clean + 1.0 * part, exercise.clean)) for part in (action, ~action)
        ]
    share = found[1.0][0]  # of all that counts
    assert found[0.0] == pytest.approx([0, 1], abs=1e-6)
    assert found[5.0] == pytest.approx([5 * share / (1 + 4 * share), (1 - share) / (1 + 4 * share)], rel=1e-4)


def test_where_agents_have_frames_nothing_is_learned_of_those_whose_place_nobody_knows(crossing_store: Path) -> None:
    dataset = dp.load_dataset(crossing_store, horizon=8, history=2)
    windows = dataset.sample(64, np.random.default_rng(0))
    mix = QuestionMix(plan=0.5, partial=0.5, nothing=0.5)
    role = next(iter(dataset.spec.roles.values()))
    plain, framed = (
        Exercises(dataset.spec, 2, 2, mix, position=position)(windows, torch.Generator().manual_seed(0))
        for position in ((), role.position)
    )
    placed = framed.known[:, :, :3, list(role.position)].all(-1).any(-1)
    assert placed.any() and not placed.all()
    assert torch.equal(framed.learned, plain.learned & placed[..., None, None])


@pytest.mark.parametrize(
    "options",
    [{}, {"return_conditioning": True}, {"latent_size": 3}, {"frames": True, "neighbours": 2}],
    ids=["plain", "returns", "latents", "frames"],
)
def test_a_training_step_happens_on_one_device(crossing_store: Path, options: dict) -> None:
    """On ``meta``, where nothing is computed and, as on a GPU, nothing can be mixed with what is elsewhere."""
    normalizer = "motion" if "frames" in options else "gaussian"
    dataset = dp.load_dataset(crossing_store, horizon=8, history=4, normalizer=normalizer)
    denoiser = dp.DiffusionPlanner.for_dataset(dataset, width=8, depth=1, **options).denoiser.to("meta")
    ranks = torch.from_numpy(dataset.return_ranks) if "return_conditioning" in options else None
    layout = (dataset.spec, dataset.history, denoiser.config.patch_size, QuestionMix(), ranks)
    exercises = Exercises(*layout, device="meta", position=denoiser.config.position)
    exercise = exercises(dataset.sample(4, np.random.default_rng(0)), torch.Generator().manual_seed(0))
    loss = exercise.error(exercise.estimate(denoiser), exercise.clean) + exercise.extra
    loss.backward()
    assert loss.is_meta
    assert all(one.grad is None or one.grad.is_meta for one in denoiser.parameters())
