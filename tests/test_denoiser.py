import pytest
import torch

from diffplan.models import JointDenoiser
from diffplan.models.denoiser import _relations


def make_denoiser(seed: int = 0, **options: object) -> JointDenoiser:
    torch.manual_seed(seed)
    denoiser = JointDenoiser(**{"size": 5, "window": 8, "width": 32, "depth": 2, **options}).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return denoiser


def make_inputs(agents: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(2, agents, 8, 5, generator=generator) < 0.3
    return {
        "sample": torch.randn(2, agents, 8, 5, generator=generator),
        "noise_level": torch.rand(2, agents, 8, generator=generator),
        "known": known,
        "roles": torch.zeros(agents, dtype=torch.long),
    }


def test_relabelling_agents_relabels_the_plan() -> None:
    denoiser, inputs = make_denoiser(), make_inputs()
    order = torch.tensor([2, 0, 1])
    relabelled = {name: value[order] if name == "roles" else value[:, order] for name, value in inputs.items()}
    torch.testing.assert_close(denoiser(**relabelled), denoiser(**inputs)[:, order])


def test_an_agent_plans_with_its_partners_only_when_it_attends_to_them() -> None:
    inputs = make_inputs()
    moved = {**inputs, "sample": inputs["sample"].clone()}
    moved["sample"][:, 1] += 1
    for attends in (True, False):
        denoiser = make_denoiser(agent_attention=attends)
        change = (denoiser(**moved) - denoiser(**inputs))[:, 0].abs().max()
        assert (change > 1e-4) == attends


def test_absent_agents_and_cells_outside_the_episode_change_nothing() -> None:
    denoiser, inputs = make_denoiser(), make_inputs()
    mask = torch.ones(2, 3, 8, dtype=torch.bool)
    mask[:, 2] = False
    mask[:, :, 4:] = False
    filled = {**inputs, "sample": torch.where(mask[..., None], inputs["sample"], 100.0)}
    seen, same = denoiser(**inputs, mask=mask), denoiser(**filled, mask=mask)
    torch.testing.assert_close(seen[:, :2, :4], same[:, :2, :4])
    assert torch.isfinite(same).all()


def test_conditions_of_a_batch_of_one_serve_the_whole_batch() -> None:
    denoiser, inputs = make_denoiser(), make_inputs()
    shared = {**inputs, "noise_level": inputs["noise_level"][:1], "known": inputs["known"][:1]}
    repeated = {
        **shared,
        "noise_level": shared["noise_level"].expand(2, -1, -1),
        "known": shared["known"].expand(2, -1, -1, -1),
    }
    torch.testing.assert_close(denoiser(**shared), denoiser(**repeated))


@pytest.mark.parametrize("options", [{}, {"from_present": True, "history": 2, "changes": (0, 1)}, {"latent_size": 3}])
def test_what_is_settled_with_one_sample_serves_every_other_of_the_question(options: dict[str, object]) -> None:
    denoiser, inputs = make_denoiser(**options), make_inputs()
    latents = torch.randn(2, 3, 3) if "latent_size" in options else None
    later = torch.where(inputs["known"], inputs["sample"], torch.randn(2, 3, 8, 5))
    settled = denoiser.settle(inputs["sample"], inputs["known"], inputs["roles"], latents=latents)
    asked = {**inputs, "sample": later, "noise_level": inputs["noise_level"] / 2, "latents": latents}
    torch.testing.assert_close(denoiser(**asked, settled=settled), denoiser(**asked))


def test_velocity_prediction_returns_the_sample_itself_where_there_is_no_noise() -> None:
    denoiser, inputs = make_denoiser(prediction="velocity"), make_inputs()
    clean = {**inputs, "noise_level": torch.zeros_like(inputs["noise_level"])}
    torch.testing.assert_close(denoiser(**clean), inputs["sample"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 30}, "history \\+ horizon = 30 is not a multiple of patch_size=4; use 28 or 32"),
        ({"width": 30}, "width=30 is not a multiple of num_heads=4; use 28"),
        ({"width": 2}, "width=2 is not a multiple of num_heads=4; use 4"),
        ({"prediction": "noise"}, "choose 'sample' or 'velocity'"),
        ({"patch_size": 0}, "'patch_size': 0.*: every one must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_a_remedy(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_denoiser(**options)


def test_a_denoiser_that_has_planned_can_still_be_trained():
    denoiser = JointDenoiser(size=3, window=8, patch_size=4, width=12, depth=1, num_heads=3)
    arguments = (
        torch.randn(2, 5, 8, 3),
        torch.rand(2, 5, 8),
        torch.zeros(2, 5, 8, 3, dtype=torch.bool),
        torch.zeros(5).int(),
    )
    _relations.cache_clear()
    with torch.inference_mode():
        denoiser(*arguments)
    denoiser(*arguments).sum().backward()
    assert denoiser.relation_bias.grad is not None


def test_what_is_known_of_an_agents_present_goes_straight_to_its_tokens_and_its_estimate() -> None:
    inputs = make_inputs()
    inputs["known"][:, :, 2] = torch.tensor([True, False, True])[:, None]
    changed = {**inputs, "sample": inputs["sample"].clone()}
    changed["sample"][:, :2, 2] += 1

    def later_effect(carried: float, embedded: float, **options: object) -> list[bool]:
        """Of which agents the last token's estimate changes, where tokens hear nothing of each other."""
        denoiser = make_denoiser(history=2, patch_size=4, **options)
        for block in denoiser.blocks:
            torch.nn.init.zeros_(block.mix.weight)
        if denoiser.config.from_present:
            denoiser.carry_present.weight.data *= carried
            denoiser.embed_present.weight.data *= embedded
        difference = denoiser(**changed) - denoiser(**inputs)
        return (difference[:, :, 4:].abs().amax((0, 2, 3)) > 1e-4).tolist()

    assert later_effect(0, 0) == [False, False, False]
    assert later_effect(1, 0, from_present=True) == [True, False, False]
    assert later_effect(0, 1, from_present=True) == [True, False, False]
    inputs["mask"] = changed["mask"] = torch.tensor([True, True, False])[:, None].expand(2, 3, 8).clone()
    inputs["mask"][:, 0, 2] = False
    assert later_effect(1, 1, from_present=True) == [False, False, False]


def test_what_changes_starts_from_the_present_where_that_is_known() -> None:
    inputs = make_inputs()
    inputs["known"][:] = False
    inputs["known"][:, 0, 2] = True
    plain, changing = (make_denoiser(history=2, from_present=True, changes=entries) for entries in ((), (1, 3)))
    difference = changing(**inputs) - plain(**inputs)
    expected = torch.zeros_like(difference)
    expected[:, 0, :, [1, 3]] = inputs["sample"][:, 0, 2, None, [1, 3]]
    torch.testing.assert_close(difference, expected)
    for wrong in ({"changes": [5]}, {"from_present": False}, {"prediction": "velocity"}):
        with pytest.raises(ValueError, match="changes"):
            make_denoiser(**{"from_present": True, "changes": [1], **wrong})
