import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.envs.crossing_partners import STYLE_SIZE, TRAINING_FAMILIES, ScriptedPartners
from diffplan.envs.crossing_response import PartneredExpert
from diffplan.exercises import Exercises
from diffplan.partner_training import LatentSource
from diffplan.partners import TeamOfPolicies
from diffplan.planners.policy import shifted
from diffplan.questions import KINDS
from diffplan.spec import seen_by_egos

FAMILIES = tuple(TRAINING_FAMILIES)
MIX = dp.QuestionMix(partners=1.0, forgotten=0.3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dp.TrajectoryDataset:
    folder = tmp_path_factory.mktemp("partners") / "data"
    dp.collect_episodes(
        "crossing-v0", PartneredExpert, out=folder, episodes=8, workers=0, env_options={"num_robots": 3}, progress=False
    )
    return dp.load_dataset(folder, horizon=8, history=8)


@pytest.fixture(scope="module")
def planner(dataset: dp.TrajectoryDataset, randomized) -> dp.DiffusionPlanner:
    """One with an encoder and random weights, so that everything has an effect."""
    encoder = dp.PartnerEncoder.for_dataset(dataset, FAMILIES, latent_size=4)
    return randomized(dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, partner_encoder=encoder))


@pytest.fixture(scope="module")
def past() -> list[tuple[dict, dict]]:
    """What egos saw and did over a few steps, and their present last; robot_2 is a partner."""
    env = dp.make("crossing-v0", num_robots=3)
    seen, _ = env.reset(seed=7_001)
    steps = []
    for step in range(6):
        observations = seen_by_egos(seen, ("robot_2",), env.joint_spec)
        action = np.array([0.1 * step, 0.2], np.float32)
        done = {"robot_0": action, "robot_1": action, "robot_2": np.full(2, np.nan, np.float32)}
        steps.append((observations, done))
        seen = env.step(done | {"robot_2": -action})[0]
    return steps


def test_what_is_told_of_a_partner_changes_the_plan_and_nan_is_as_good_as_nothing(dataset) -> None:
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, latent_size=2)
    torch.nn.init.normal_(planner.denoiser.project.weight, std=0.1)
    torch.nn.init.normal_(planner.denoiser.modulation.weight, std=0.1)
    observations, _ = dp.make("crossing-v0", num_robots=3).reset(seed=0)
    unknown = np.full((3, 2), np.nan, np.float32)
    told = np.where([[False], [False], [True]], 1.0, unknown).astype(np.float32)
    plans = [planner(observations, latents=one, seed=0).actions for one in (None, unknown, told)]
    np.testing.assert_array_equal(plans[0], plans[1])
    assert not np.allclose(plans[0], plans[2])


def test_the_belief_is_of_the_past_and_plans_carry_it(planner, past) -> None:
    *before, (now, _) = past
    with_past, without = planner(now, past=before, seed=0), planner(now, seed=0)
    chances = with_past.belief_about("robot_2")
    assert tuple(chances) == FAMILIES
    assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    assert chances != without.belief_about("robot_2")
    assert shifted(with_past, 2).belief is with_past.belief


def test_the_encoder_reads_no_cell_that_is_unknown(planner) -> None:
    encoder = planner.partner_encoder
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(1, 3, 9, 8, generator=generator)
    known, roles = torch.rand(cells.shape, generator=generator) < 0.5, torch.zeros(3, dtype=torch.long)
    mask = torch.ones(1, 3, dtype=torch.bool)
    code = encoder(cells, known, roles, mask)
    other = encoder(torch.where(known, cells, torch.nan), known, roles, mask)
    torch.testing.assert_close(code.mean, other.mean)
    order = [2, 0, 1]
    relabelled = encoder(cells[:, order], known[:, order], roles, mask)
    torch.testing.assert_close(relabelled.mean, code.mean[:, order])


def test_the_encoder_is_shown_in_planning_what_it_was_shown_in_training(dataset, planner) -> None:
    """Here of a robot of which nothing at all is seen: it is present, and the others attend to it."""
    mix = dp.QuestionMix(**dict.fromkeys(KINDS, 0.0) | {"partial": 1.0})
    size, history = dataset.spec.observation_size, dataset.history
    exercises = Exercises(dataset.spec, history, 8, mix, latents=LatentSource(planner.partner_encoder, None, mix))
    windows, shown = dataset.batch(np.array([20])), []
    hook = planner.partner_encoder.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    for seed in range(100):
        exercises(windows, torch.Generator().manual_seed(seed))
        known = shown[-1][1][0]
        if len(missing := (~known.flatten(1).any(-1)).nonzero()) == 1:
            break
    episode = dataset.store[int(windows.episode[0])]
    rows = int(windows.step[0]) + np.arange(-history, 1)
    steps = [
        tuple(
            {name: np.where(known[i, h, entries], of[row, i], np.nan) for i, name in enumerate(dataset.spec.names)}
            for of, entries in ((episode.observations, slice(size)), (episode.actions, slice(size, None)))
        )
        for h, row in enumerate(rows)
    ]
    planner(steps[-1][0], past=steps[:-1])
    hook.remove()
    (cells, _, roles, mask), (its_cells, its_known, its_roles, its_mask) = shown[-2:]
    assert mask[0, missing].all()
    for one, other in ((known[None], its_known), (roles, its_roles), (mask, its_mask)):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(cells.where(known, 0), its_cells.where(known, 0))


def test_the_divergence_is_that_of_gaussians() -> None:
    mean, log_std = torch.tensor([[[0.3, -1.0]]]), torch.tensor([[[0.2, -0.5]]])
    code = dp.models.partner.PartnerCode(mean, log_std, torch.zeros(1, 1, 0))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(code.divergence, expected)


def fresh(dataset: dp.TrajectoryDataset) -> dp.DiffusionPlanner:
    encoder = dp.PartnerEncoder.for_dataset(dataset, FAMILIES, latent_size=4)
    return dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, partner_encoder=encoder)


def test_the_encoder_learns_with_the_denoiser_and_a_resumed_run_is_the_same(dataset, tmp_path: Path) -> None:
    options = {"batch_size": 8, "mix": MIX, "styles": dp.StyleTable.of(dataset.store, FAMILIES), "progress": False}
    whole, resumed, untrained = fresh(dataset), fresh(dataset), fresh(dataset)
    dp.train(whole, dataset, steps=4, out=tmp_path, checkpoint_every=2, **options)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    dp.train(resumed, dataset, steps=4, out=tmp_path, checkpoint_every=2, resume=True, **options)
    for name, value in whole.partner_encoder.state_dict().items():
        torch.testing.assert_close(value, resumed.partner_encoder.state_dict()[name], rtol=0, atol=0)
        assert (value != untrained.partner_encoder.state_dict()[name]).any(), name
    for other in (replace(options["styles"], vectors=1 + options["styles"].vectors), None):
        with pytest.raises(ValueError, match="is of another run: {'styles'.*there"):
            dp.train(fresh(dataset), dataset, steps=4, out=tmp_path, resume=True, **options | {"styles": other})


def test_a_saved_planner_infers_what_it_inferred_before(planner, past, tmp_path: Path) -> None:
    *before, (now, _) = past
    planner.save_pretrained(tmp_path / "planner")
    loaded = dp.DiffusionPlanner.from_pretrained(tmp_path / "planner")
    plan, again = (one(now, past=before, seed=3) for one in (planner, loaded))
    np.testing.assert_array_equal(plan.actions, again.actions)
    plan.save(tmp_path / "plan.safetensors")
    read = dp.Plan.load(tmp_path / "plan.safetensors")
    assert read.belief_about("robot_2") == plan.belief_about("robot_2")


def test_a_style_table_knows_partners_and_their_second_style(dataset) -> None:
    styles = dp.StyleTable.of(dataset.store, FAMILIES)
    for episode, labels in enumerate(dataset.store.labels):
        partner = dataset.spec.names.index(labels["partner"])
        last = int(dataset.store.lengths[episode])
        (first, then), vectors = styles.at(np.array([episode, episode]), np.array([0, last]))
        assert FAMILIES[first[partner]] == labels["family"]
        assert FAMILIES[then[partner]] == labels.get("switched_family", labels["family"])
        assert (np.delete(first, partner) == -1).all()
        assert np.isfinite(vectors[0, partner]).all()
        assert vectors.shape[-1] == STYLE_SIZE


def test_a_planner_that_is_to_be_told_styles_is_not_trained_without_them(dataset) -> None:
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, latent_size=3)
    with pytest.raises(ValueError, match="latents of 3 numbers.*styles="):
        dp.train(planner, dataset, steps=1, progress=False)


def test_a_planner_that_takes_no_latents_is_not_trained_with_styles(dataset) -> None:
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    with pytest.raises(ValueError, match="takes none.*partner_encoder=.*latent_size="):
        dp.train(planner, dataset, steps=1, styles=dp.StyleTable.of(dataset.store, FAMILIES), progress=False)


def test_an_encoder_of_another_history_does_not_fit_a_planner(dataset) -> None:
    encoder = dp.PartnerEncoder(dataset.spec.size, history=4)
    with pytest.raises(ValueError, match="reads 4 past cells.*history=8"):
        dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, partner_encoder=encoder)


class Spy:
    """A policy that keeps what it was shown and sends every robot the same way."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def reset(self, seeds) -> None: ...

    def __call__(self, observations):
        self.seen += [dict(one) for one in observations if one]
        return [one and {name: np.array([0.5, 0.0], np.float32) for name in one} for one in observations]


def test_egos_never_see_partners_goals_and_never_command_them() -> None:
    env, spy = dp.make("crossing-v0", num_robots=3, max_steps=12), Spy()
    partners = ScriptedPartners(("robot_1",), ("late",), env.joint_spec.dt)
    team = dp.WithPartners(spy, partners, ("robot_1",), env.joint_spec)
    team.reset([4])
    observations, _ = env.reset(seed=4)
    (actions,) = team([observations])
    assert np.isnan(spy.seen[0]["robot_1"][4:6]).all()
    assert np.isfinite(spy.seen[0]["robot_0"]).all()
    assert np.isfinite(observations["robot_1"]).all()
    np.testing.assert_allclose(actions["robot_1"], 0, atol=1e-6)  # late: it waits, whatever the spy says
    assert (actions["robot_0"] == [0.5, 0.0]).all()
    assert team([None]) == [None]


def test_any_policy_can_drive_the_partners() -> None:
    env, spy = dp.make("crossing-v0", num_robots=3, max_steps=3), Spy()
    report = dp.evaluate(
        dp.WithPartners(Spy(), spy, ("robot_0", "robot_2"), env.joint_spec), env, episodes=2, batch_size=2
    )
    assert report.steps == [3, 3]
    assert np.isfinite(spy.seen[0]["robot_0"]).all()


def test_a_planner_acts_beside_partners_and_remembers_none_of_their_actions(planner) -> None:
    env = dp.make("crossing-v0", num_robots=3, max_steps=6)
    policy = dp.RecedingHorizonPolicy(planner)
    partners = ScriptedPartners(("robot_2",), ("bold",), env.joint_spec.dt)
    report = dp.evaluate(dp.WithPartners(policy, partners, ("robot_2",), env.joint_spec), env, episodes=1)
    assert report.fallbacks == 0
    remembered = [done for _, done in policy._episodes[0].past]
    assert all(np.isnan(done["robot_2"]).all() and np.isfinite(done["robot_0"]).all() for done in remembered)


def test_partners_actions_in_whole_numbers_are_as_unknown_to_egos(planner) -> None:
    class Whole(Spy):
        def __call__(self, observations):
            return [one and dict.fromkeys(one, np.array([1, 0])) for one in observations]

    env, spec = dp.make("crossing-v0", num_robots=3), dp.make("crossing-v0", num_robots=3).joint_spec
    ego = dp.RecedingHorizonPolicy(planner)
    for policy in (ego, dp.TeamOfPolicies({"robot_0": ego, "robot_1": Whole()})):
        team = dp.WithPartners(policy, Whole(), ("robot_2",), spec)
        team.reset([0])
        team([env.reset(seed=0)[0]])
        ((_, done),) = ego._episodes[0].past
        assert np.isnan(done["robot_2"]).all()
    ego.reset([0])
    seen = seen_by_egos(env.reset(seed=0)[0], ("robot_2",), spec)
    ego([seen])
    ego.took([dict.fromkeys(spec.names, np.array([1, 0]))])
    ((_, done),) = ego._episodes[0].past
    assert np.isnan(done["robot_2"]).all() and done["robot_0"].tolist() == [1, 0]


def test_a_safety_filter_counts_on_no_partner_that_it_does_not_command(planner) -> None:
    """One robot drives at the other: as a partner it goes on, and the ego makes good what it would have given way."""
    env = dp.make("crossing-v0", num_robots=3)
    spec, safety = env.joint_spec, dp.SafetyFilter(**env.robot_limits)
    seen = {name: np.zeros(spec.observation_size, np.float32) for name in spec.names}
    for name, place in zip(spec.names, (-0.15, 0.15, 0.9), strict=True):
        seen[name][0] = place
    wanted = {name: np.array([speed, 0], np.float32) for name, speed in zip(spec.names, (0.8, -0.8, 0), strict=True)}
    alone = {name: action for name, action in wanted.items() if name != "robot_1"}
    found = safety.filter_actions(spec, seen, wanted, partners=("robot_1",))
    assert list(found) == list(wanted) and np.array_equal(found["robot_1"], wanted["robot_1"])
    without = safety.filter_actions(spec, seen, alone)
    assert all(np.array_equal(found[name], action) for name, action in without.items())
    assert found["robot_0"][0] < safety.filter_actions(spec, seen, wanted)["robot_0"][0]
    policy, partners = dp.RecedingHorizonPolicy(planner, safety=safety), ScriptedPartners(("robot_1",), ("bold",), 0.1)
    for one in (policy, TeamOfPolicies({"robot_0": Spy(), "robot_2": policy})):
        with pytest.raises(ValueError, match=r"speaks for \['robot_1'\], too, whom it does not"):
            dp.WithPartners(one, partners, ("robot_1",), spec)


@pytest.mark.parametrize("wrapped", ["beside partners", "in a team of policies"])
def test_a_wrapped_policy_is_told_what_its_robots_sense(wrapped: str) -> None:
    class Listener(Spy):
        told: list[dict]

        def sense(self, infos) -> None:
            self.told = list(infos)

    env, listener = dp.make("crossing-v0", num_robots=3, max_steps=2, sensing_radius=0.5), Listener()
    policy = (
        dp.WithPartners(listener, Spy(), ("robot_2",), env.joint_spec)
        if wrapped == "beside partners"
        else TeamOfPolicies({"robot_0": listener})
    )
    dp.evaluate(policy, env, episodes=1)
    assert "sensed" in listener.told[0]["robot_0"]


def test_a_team_of_partners_alone_is_refused() -> None:
    spec = dp.make("crossing-v0", num_robots=2).joint_spec
    with pytest.raises(ValueError, match="some, not all"):
        dp.WithPartners(Spy(), Spy(), ("robot_0", "robot_1"), spec)


def test_a_watched_partner_gives_one_plan_a_step_and_its_belief_is_drawn_to_the_last(planner) -> None:
    env = dp.make("crossing-v0", num_robots=3, max_steps=8)
    episode, plans = dp.watch_partner(planner, env, "robot_1", ("bold",), seed=7_002, num_samples=3)
    assert len(plans) == len(episode) == 8
    assert (episode.labels["partner"], episode.labels["family"]) == ("robot_1", "bold")
    figure = dp.plot_belief(plans, episode, "robot_1", moments=(0, 5, 100))
    fans, bands = figure.axes[:-1], figure.axes[-1]
    assert [axes.get_title() for axes in fans] == ["0.0 s", "0.5 s"]
    assert len(bands.collections) >= len(FAMILIES)
    top = max(float(band.get_paths()[0].vertices[:, 1].max()) for band in bands.collections[: len(FAMILIES)])
    assert top == pytest.approx(1, abs=1e-5)


def test_a_picture_of_a_belief_needs_one(planner, dataset) -> None:
    plan = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)(
        dp.make("crossing-v0", num_robots=3).reset(seed=0)[0]
    )
    with pytest.raises(ValueError, match="no belief.*partner_encoder"):
        dp.plot_belief([plan], dataset.store[0], "robot_1")


def test_nobody_remembers_what_it_only_planned_for_others(planner) -> None:
    """Roles without static entries: nothing in the observations says who is only watched."""
    env, spec = dp.make("crossing-v0", num_robots=3), dp.make("crossing-v0", num_robots=3).joint_spec
    bare = replace(spec, roles={name: replace(role, static=()) for name, role in spec.roles.items()})
    ego, other = dp.RecedingHorizonPolicy(planner), dp.RecedingHorizonPolicy(planner, num_inference_steps=2)
    for first in (ego, dp.TeamOfPolicies({"robot_0": ego, "robot_1": dp.RecedingHorizonPolicy(planner)})):
        team = dp.WithPartners(first, other, ("robot_2",), bare)
        team.reset([0])
        (done,) = team([env.reset(seed=0)[0]])
        ((_, mine),), ((_, theirs),) = ego._episodes[0].past, other._episodes[0].past
        assert np.isnan(mine["robot_2"]).all() and np.array_equal(mine["robot_0"], done["robot_0"])
        assert all(np.array_equal(theirs[name], done[name]) for name in spec.names)
