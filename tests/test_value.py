"""What values are: numbers per agent that add up, follow the agents' labels, and are right where they can be computed.

The world: two carts on a line of four places step left or right at random; a cart is paid for how far right it stands,
the less the farther right the other does.
"""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.datasets.transitions import take_transitions
from diffplan.files import sha256
from diffplan.models.value import lower_twin, uphill
from diffplan.planners.saving import load_components
from diffplan.value_calibration import Calibration, calibration
from diffplan.value_training import ValueLearner

PLACES, DISCOUNT = 4, 0.6
LINE = dp.JointSpec({"a": "cart", "b": "cart"}, {"cart": dp.Role(1, (-1.0,), (1.0,))})
STATES = np.array(list(itertools.product(range(PLACES), repeat=2)))
ACTIONS = np.array(list(itertools.product((-1, 1), repeat=2)))
SMALL = {"width": 32, "depth": 1}


def move(places: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the carts stand next, and what they are paid."""
    then = np.clip(places + actions, 0, PLACES - 1)
    return then, then / 3.0 * (1 - then[..., ::-1] / 4.0)


def episode(start: np.ndarray, actions: np.ndarray, spec: dp.JointSpec = LINE) -> dp.Trajectory:
    """The carts follow these actions; then the recording is truncated."""
    places, rewards = [start], []
    for action in actions:
        then, reward = move(places[-1], action)
        places.append(then)
        rewards.append(reward)
    flags = np.zeros((len(actions), 2), bool)
    ends = flags.copy()
    ends[-1] = True
    seen, there = np.array(places, np.float32)[..., None], np.ones((len(places), 2), bool)
    did = np.asarray(actions, np.float32)[..., None]
    return dp.Trajectory(spec, seen, did, np.array(rewards, np.float32), flags, ends, there)


def stored(folder: Path, episodes: list[dp.Trajectory], spec: dp.JointSpec = LINE) -> dp.TrajectoryDataset:
    dp.TrajectoryStore.create(folder, spec).append(episodes)
    return dp.load_dataset(folder, horizon=1)


def exact_values(expectile: float) -> tuple[np.ndarray, np.ndarray]:
    """V [16 states, 2 agents] and Q [16, 4 joint actions, 2] by iteration, all joint actions equally likely."""
    then, rewards = move(STATES[:, None], ACTIONS)
    follows = then[..., 0] * PLACES + then[..., 1]
    values = np.zeros((len(STATES), 2))
    for _ in range(200):
        action_values = rewards + DISCOUNT * values[follows]
        for _ in range(20):
            better = (action_values - values[:, None]).sum(-1) > 0
            weight = np.where(better, expectile, 1 - expectile)[..., None]
            values = (weight * action_values).sum(1) / weight.sum(1)
    return values, action_values


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dp.TrajectoryDataset:
    """Every joint action in every state once."""
    episodes = [episode(start, [action]) for start in STATES for action in ACTIONS]
    return stored(tmp_path_factory.mktemp("line"), episodes)


def best_values() -> np.ndarray:
    """The team's value [16] where it does the best that can be done."""
    then, rewards = move(STATES[:, None], ACTIONS)
    follows, values = then[..., 0] * PLACES + then[..., 1], np.zeros(len(STATES))
    for _ in range(200):
        values = (rewards.sum(-1) + DISCOUNT * values[follows]).max(1)
    return values


def trained(line: dp.TrajectoryDataset, expectile: float, reach: float = 0.0) -> dp.ValueFunction:
    value = dp.ValueFunction.for_dataset(line, **SMALL, discount=DISCOUNT)
    rates = {"learning_rate": 1e-2, "target_rate": 0.1, "expectile": expectile, "reach": reach}
    dp.train_value(value, line, steps=250, batch_size=64, **rates, progress=False)
    return value


@pytest.fixture(scope="module")
def average(line: dp.TrajectoryDataset) -> dp.ValueFunction:
    return trained(line, 0.5)


def normalised(line: dp.TrajectoryDataset, places: np.ndarray, actions: np.ndarray) -> tuple[torch.Tensor, ...]:
    cells = np.stack([places, actions], -1).astype(np.float32)[..., None, :]
    cells = torch.from_numpy(line.normalizer.normalize(cells, LINE.role_index)[..., 0, :])
    return cells[..., :1], cells[..., 1:], torch.from_numpy(LINE.role_index), torch.ones(cells.shape[:-1], dtype=bool)


def random_team(B: int = 5, N: int = 4, H: int | None = None) -> tuple[torch.Tensor, ...]:
    """Observations, actions, roles and mask of a team of two roles, for ``random_value``."""
    generator = torch.Generator().manual_seed(0)
    steps = () if H is None else (H,)
    observations, actions = (torch.randn(B, N, *steps, size, generator=generator) for size in (6, 2))
    return observations, actions, torch.arange(N) % 2, torch.ones(B, N, dtype=torch.bool)


@pytest.fixture
def random_value() -> dp.ValueFunction:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value = dp.ValueFunction(6, 2, num_roles=2, **SMALL, reward_scale=3.0, reward_mean=0.5)
        for network in (value.critics, value.states, value.steps):
            torch.nn.init.normal_(network.head.weight)
            torch.nn.init.normal_(network.head.bias)
    return value.eval()


def everything(value: dp.ValueFunction, observations, actions, roles, mask) -> list[torch.Tensor]:
    """All that a value function says, agents last."""
    one_step = observations[:, :, None], actions[:, :, None]
    return [
        value.action_values(observations, actions, roles, mask),
        value.state_values(observations, roles, mask),
        value.rewards(observations, actions, roles, mask),
        value.plan_values(*one_step, roles, mask),
    ]


def test_relabelling_agents_relabels_their_values(random_value) -> None:
    observations, actions, roles, mask = random_team()
    mask[0, 1] = False
    order = torch.tensor([2, 0, 3, 1])
    before = everything(random_value, observations, actions, roles, mask)
    after = everything(random_value, observations[:, order], actions[:, order], roles[order], mask[:, order])
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one[..., order], other)


def test_rewards_between_two_looks_are_those_of_the_first(random_value) -> None:
    observations, actions, roles, mask = random_team()
    still = [cells[:, :, None].expand(-1, -1, 7, -1) for cells in (observations, actions)]
    changed = [cells.clone() for cells in still]
    for cells in changed:
        cells[:, :, [1, 2, 4, 5]] += 1  # looks are at 0, 3 and 6
    ahead = lower_twin(random_value.action_values(observations, actions, roles, mask))
    reward = random_value.rewards(observations, actions, roles, mask)
    looks = [reward * sum(0.99**t for t in range(n)) + 0.99**n * ahead for n in (0, 3, 6)]
    expected = 3.0 * soft_minimum(looks)
    for plan in (still, changed):
        torch.testing.assert_close(random_value.plan_values(*plan, roles, mask, looks=3), expected)


def soft_minimum(looks: list[torch.Tensor]) -> torch.Tensor:
    weights = torch.stack([-look.sum(-1) for look in looks]).softmax(0)
    return (weights[..., None] * torch.stack(looks)).sum(0)


def test_absent_agents_are_worth_nothing_and_change_nobody(random_value) -> None:
    observations, actions, roles, mask = random_team()
    mask[:, 2] = False
    observations[:, 2], actions[:, 2] = torch.nan, torch.nan
    there = torch.tensor([0, 1, 3])
    smaller = everything(random_value, observations[:, there], actions[:, there], roles[there], mask[:, there])
    for one, other in zip(everything(random_value, observations, actions, roles, mask), smaller, strict=True):
        assert (one[..., 2] == 0).all()
        torch.testing.assert_close(one[..., there], other)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e20])
def test_a_team_whose_numbers_are_broken_spoils_no_other_team(random_value, broken: float) -> None:
    observations, actions, roles, mask = random_team()
    observations, actions, mask = observations.repeat(3, 1, 1), actions.repeat(3, 1, 1), mask.repeat(3, 1)
    whole = everything(random_value, observations, actions, roles, mask)
    observations[1, 0, 0] = broken
    variable = actions.requires_grad_()
    values = everything(random_value, observations, variable, roles, mask)
    others = torch.arange(len(mask)) != 1
    for one, before in zip(values, whole, strict=True):
        torch.testing.assert_close(one[..., others, :], before[..., others, :])
        assert one[..., 1, mask[1]].isnan().all() and not one[..., 1, ~mask[1]].any()
    (gradient,) = torch.autograd.grad(values[0][:, others].sum(), variable)
    assert gradient.isfinite().all() and gradient[others].any()


@pytest.mark.parametrize("N", [1, 2, 7])
def test_any_number_of_agents_works_and_agents_matter_to_each_other(random_value, N: int) -> None:
    observations, actions, roles, mask = random_team(N=N)
    before = everything(random_value, observations, actions, roles, mask)
    assert all(values.shape[-1] == N for values in before)
    if N > 1:
        observations[:, -1] += 1
        changed = everything(random_value, observations, actions, roles, mask)
        assert all(not torch.allclose(one[..., 0], two[..., 0]) for one, two in zip(before, changed, strict=True))


def test_the_lower_twin_is_one_critic_whose_agents_add_up_to_its_team_value(random_value) -> None:
    twins = random_value.action_values(*random_team(B=50))
    lower = lower_twin(twins)
    torch.testing.assert_close(lower.sum(-1), twins.sum(-1).amin(0))


def test_a_plan_is_worth_the_least_that_its_rewards_and_what_follows_come_to_from_any_look(random_value) -> None:
    H = 4  # as many as there are looks
    observations, actions, roles, mask = random_team(H=H)
    mask[1, 0] = False
    gained, looks = torch.zeros(mask.shape), []
    for t in range(H):
        step = observations[:, :, t], actions[:, :, t], roles, mask
        looks.append(gained + 0.99**t * lower_twin(random_value.action_values(*step)))
        gained = gained + 0.99**t * random_value.rewards(*step)
    plan = observations.requires_grad_(), actions.requires_grad_()
    values = random_value.plan_values(*plan, roles, mask)
    torch.testing.assert_close(values, 3.0 * soft_minimum(looks))
    teams = torch.stack([3.0 * look.sum(-1) for look in looks])
    assert (values.sum(-1) >= teams.amin(0) - 1e-4).all() and (values.sum(-1) <= teams.mean(0) + 1e-4).all()
    for gradient in torch.autograd.grad(values.sum(), plan):
        moved = gradient.abs().sum(-1).gt(0)
        assert moved[2:].all() and moved[1, 1:].all() and not moved[1, 0].any()


@pytest.mark.parametrize(("lean", "moves"), [(0.9, False), (1.1, True)])
def test_an_action_moves_uphill_only_where_that_gains_more_than_its_price(lean: float, moves: bool) -> None:
    def critics(inputs: torch.Tensor, roles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (lean * inputs[..., 2:3]).expand(2, -1, -1, -1)  # only the first action's entry counts

    actions, limits = torch.zeros(5, 3, 2), torch.full((3, 2), 0.5)
    limits[2] = 0
    bounds = torch.stack((torch.full((3, 2), -1.0), torch.full((3, 2), 1.0)))
    roles, mask = torch.zeros(3, dtype=torch.long), torch.ones(5, 3, dtype=torch.bool)
    moved = uphill(critics, torch.zeros(5, 3, 2), actions, roles, mask, limits, bounds, steps=5, price=1.0)
    assert (moved[:, :2, 0] > 0.4).all() == moves
    assert (moved[:, 2] == 0).all() and (moves or (moved == 0).all())


def test_an_action_stays_where_the_twins_want_different_things() -> None:
    def critics(inputs: torch.Tensor, roles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        first, second = inputs[..., :1, 2:], inputs[..., 1:, 2:]  # of the second agent one wants x, the other y
        return torch.stack([torch.cat((first.sum(-1, True), second[..., [i]]), -2) for i in (0, 1)])

    roles, mask = torch.zeros(2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
    bounds = torch.stack((torch.full((2, 2), -1.0), torch.full((2, 2), 1.0)))
    question = critics, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), roles, mask, torch.full((2, 2), 0.5), bounds, 5
    assert (uphill(*question).norm(dim=-1) > 0.2).all()
    moved = uphill(*question, agreement=0.8)
    assert (moved[0, 0] > 0.4).all() and (moved[0, 1] == 0).all()


def test_an_entry_with_a_small_limit_does_not_take_the_reach_of_another() -> None:
    def critics(inputs: torch.Tensor, roles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (inputs[..., 2:3] + inputs[..., 3:4]).expand(2, -1, -1, -1)

    bounds, roles = torch.tensor([[[-9.0, -9.0]], [[9.0, 9.0]]]), torch.zeros(1, dtype=torch.long)
    for small in (0.1, 1e-4, 1e-14, 0.0):
        limits, zeros = torch.tensor([[1.0, small]]), torch.zeros(1, 1, 2)
        moved = uphill(critics, zeros, zeros, roles, torch.ones(1, 1, dtype=torch.bool), limits, bounds, 5)[0, 0]
        assert 0.6 < moved[0] <= 1.01 and 0 <= moved[1] <= 1.01 * small


def test_an_action_at_its_bound_pays_and_turns_only_for_where_it_can_go() -> None:
    def critics(inputs: torch.Tensor, roles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (5.0 * inputs[..., 2:3] + 0.5 * inputs[..., 3:4]).expand(2, -1, -1, -1)

    def moved(price: float, start: float = 1.0, steps: int = 5) -> torch.Tensor:
        actions, bounds = torch.tensor([[[start, 0.0]]]), torch.tensor([[[-1.0, -1.0]], [[1.0, 1.0]]])
        roles, mask = torch.zeros(1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
        limits = torch.full((1, 2), 0.5)
        return uphill(critics, torch.zeros(1, 1, 2), actions, roles, mask, limits, bounds, steps, price)[0, 0]

    torch.testing.assert_close(moved(0.0), torch.tensor([1.0, 0.5**0.5]))  # a reach of |(0.5, 0.5)|
    torch.testing.assert_close(moved(1.0), torch.tensor([1.0, 0.0]))  # 0.5 is less than 1, whatever 5 is
    for start in (0.5, 0.9):  # what has arrived at the bound stays there, for it gains more than its price
        assert min(moved(0.1, start)[0], moved(1.0, start)[0], moved(1.0, start, steps=3)[0]) > 0.99


def test_with_reach_values_are_those_of_a_team_that_does_better_than_the_data_and_no_better_than_can_be(
    line, average
) -> None:
    value = trained(line, 0.5, reach=2.0)  # from one end of the actions to the other, if it goes uphill all the way
    observations, *_, roles, mask = normalised(line, STATES, STATES)
    learned, mean = (
        one.config.reward_scale * one.state_values(observations, roles, mask).sum(-1).detach().numpy()
        for one in (value, average)
    )
    best = best_values()
    error = 0.1 * np.ptp(best)
    assert (learned > mean - error).all() and (learned < best + error).all()
    assert (learned - mean).mean() > 0.2 * (best - mean).mean()


def test_nothing_better_is_expected_of_partners(line, average) -> None:
    batch = take_transitions(line, np.arange(len(line)), DISCOUNT)

    def loss(reach: float, partners: list[bool] | None) -> float:
        chosen = None if partners is None else np.array(partners)
        learner = ValueLearner(average, line, 1e-3, 0.5, 0.1, reach, chosen)
        return float(learner.losses(batch)["state"].detach())

    alone = loss(0.0, None)
    assert loss(1.0, [True, True]) == alone
    assert alone < loss(1.0, [False, True]) and alone < loss(1.0, None)


def test_an_expectile_of_one_half_gives_the_mean(line, average) -> None:
    values, action_values = exact_values(0.5)
    observations, *_, roles, mask = normalised(line, STATES, STATES)
    learned = average.config.reward_scale * average.state_values(observations, roles, mask)
    np.testing.assert_allclose(learned.detach(), values, atol=0.05 * np.ptp(values))
    places = np.repeat(STATES, 4, axis=0)
    questions = normalised(line, places, np.tile(ACTIONS, (16, 1)))
    learned = average.config.reward_scale * lower_twin(average.action_values(*questions)).detach().numpy()
    np.testing.assert_allclose(learned.reshape(16, 4, 2), action_values, atol=0.06 * np.ptp(action_values))
    rewards = average.config.reward_scale * average.rewards(*questions).detach().numpy()
    np.testing.assert_allclose(rewards, move(places, np.tile(ACTIONS, (16, 1)))[1], atol=0.06)


def test_a_high_expectile_values_the_better_part_of_mixed_data_and_prefers_its_actions(line, average) -> None:
    value = trained(line, 0.8)
    values, action_values = exact_values(0.8)
    observations, *_, roles, mask = normalised(line, STATES, STATES)
    learned = value.config.reward_scale * value.state_values(observations, roles, mask).detach().numpy()
    np.testing.assert_allclose(learned, values, atol=0.08 * np.ptp(values))
    assert (learned.sum(1) > exact_values(0.5)[0].sum(1)).all()
    questions = normalised(line, np.repeat(STATES, 4, axis=0), np.tile(ACTIONS, (16, 1)))
    chosen = lower_twin(value.action_values(*questions)).sum(-1).reshape(16, 4).argmax(1)
    team = action_values.sum(-1)
    assert (team[np.arange(16), chosen] > team.max(1) - 0.1 * np.ptp(team)).all()
    assert (team[np.arange(16), chosen] > team.mean(1)).sum() >= 15


def test_values_are_calibrated_on_recordings_that_training_did_not_see(line, average, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    episodes = [episode(rng.integers(PLACES, size=2), rng.choice([-1, 1], (30, 2))) for _ in range(60)]
    store = dp.TrajectoryStore.create(tmp_path / "long", LINE)
    store.append(episodes)
    held_out = dp.TrajectoryDataset(store, 1, normalizer=line.normalizer)
    found = calibration(average, held_out, samples=1500)
    assert 0.85 < found.slope < 1.15 and found.error < 0.15 and found.correlation > 0.5
    assert abs(found.bias) < 0.1 * found.realised.std() and 0 < found.trusted < 0.1
    starts = calibration(average, held_out, samples=100, start_share=1.0)
    assert starts.trusted == pytest.approx(DISCOUNT**30)
    sums = [(DISCOUNT ** np.arange(30) @ one.rewards).sum() for one in episodes]
    assert all(np.isclose(one, sums, atol=1e-4).any() for one in starts.realised)


def test_numbers_of_a_calibration_say_what_is_wrong() -> None:
    realised = np.random.default_rng(0).normal(size=1000)
    right, bold, high = (Calibration(x, realised) for x in (realised, 2 * realised, realised + 3))
    assert (right.slope, right.correlation, right.bias, right.error) == pytest.approx((1, 1, 0, 0))
    assert (bold.slope, bold.correlation) == pytest.approx((0.5, 1))
    assert (high.slope, high.bias) == pytest.approx((1, 3)) and high.error == pytest.approx(3 / realised.std())
    flat = Calibration(np.zeros(1000), realised)
    assert (flat.slope, flat.correlation) == (0, 0)


def happenings(ends: str) -> dp.Trajectory:
    """Five steps; at the third, cart b is terminated, truncated or gone; cart a goes on to a truncation."""
    whole = episode(np.array([1, 2]), np.ones((5, 2), int))
    there = whole.agent_mask.copy()
    terminations, truncations = whole.terminations.copy(), whole.truncations.copy()
    there[3 if ends == "gone" else 4 :, 1] = False
    terminations[2, 1], truncations[2, 1], truncations[-1, 1] = ends == "terminated", ends == "truncated", False
    rewards = np.arange(10, dtype=np.float32).reshape(5, 2)
    return dp.Trajectory(LINE, whole.observations, whole.actions, rewards, terminations, truncations, there)


@pytest.mark.parametrize(("ends", "goes_on"), [("terminated", False), ("truncated", True), ("gone", False)])
def test_truncated_agents_have_a_future_and_terminated_or_vanished_ones_do_not(ends, goes_on, tmp_path: Path) -> None:
    dataset = stored(tmp_path / "store", [happenings(ends)])
    batch = take_transitions(dataset, np.arange(5), 0.5)
    assert batch.mask.tolist() == [[True, True]] * 3 + [[True, False]] * 2
    assert batch.next_mask.tolist() == [[True, True]] * 2 + [[True, goes_on]] + [[True, False]] * 2
    assert batch.rewards[:, 0].tolist() == batch.returns[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert batch.rewards[:, 1].tolist() == [1, 3, 5, 0, 0]
    assert batch.discounts.tolist() == [0.5] * 5


def test_longer_transitions_stop_where_the_team_changes(tmp_path: Path) -> None:
    dataset = stored(tmp_path / "store", [happenings("truncated"), happenings("terminated")])
    batch = take_transitions(dataset, np.arange(10), 0.5, steps=4)
    assert batch.discounts[:5].tolist() == [0.5**3, 0.5**2, 0.5, 0.5**2, 0.5]
    assert batch.returns[:5, 0].tolist() == [0 + 1 + 1, 2 + 2, 4, 6 + 4, 8]
    assert batch.returns[5:, 1].tolist() == [1 + 1.5 + 1.25, 3 + 2.5, 5, 0, 0]
    assert batch.next_mask[:3, 1].all() and not batch.next_mask[5:, 1].any()
    there = dataset.store.take(np.array([[3, 3, 3, 5, 5]]), "observations")[0][0, :, :, None]
    expected = dataset.normalizer.normalize(np.concatenate([there, 0 * there], -1), LINE.role_index)[..., 0, :1]
    np.testing.assert_array_equal(batch.next_observations[:5], expected)


def test_the_same_seed_trains_the_same_values_and_another_seed_others(line) -> None:
    made = []
    for seed in (0, 0, 1):
        value = dp.ValueFunction.for_dataset(line, **SMALL)
        report = dp.train_value(value, line, steps=3, batch_size=4, seed=seed, log_every=2, progress=False)
        made.append(value.critics.head.weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert report.steps == [2, 3] and set(report.parts) == {"state", "action", "reward"}
    assert report.losses == pytest.approx([sum(one) for one in zip(*report.parts.values(), strict=True)])
    assert repr(report).startswith("ValueReport(loss ")


def test_a_resumed_value_function_is_the_same_to_the_bit(line, tmp_path: Path) -> None:
    options = {"steps": 4, "batch_size": 4, "log_every": 1, "out": tmp_path, "checkpoint_every": 2, "progress": False}
    whole, resumed = (dp.ValueFunction.for_dataset(line, **SMALL) for _ in range(2))
    report = dp.train_value(whole, line, **options)
    assert np.allclose(dp.plot_learning_curve(options["out"]).axes[0].lines[0].get_ydata(), report.losses)
    with pytest.raises(ValueError, match="holds a run already; go on by resume=True"):
        dp.train_value(resumed, line, **options)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    again = dp.train_value(resumed, line, resume=True, **options)
    assert (again.steps, again.losses) == (report.steps, report.losses) == ([1, 2, 3, 4], report.losses)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="is of another run: {'seed': 0} there, {'seed': 1} here"):
        dp.train_value(resumed, line, resume=True, seed=1, **options)


def test_values_are_the_same_after_saving_and_loading(random_value, tmp_path: Path) -> None:
    random_value.save_pretrained(tmp_path)
    again = dp.ValueFunction.from_pretrained(tmp_path)
    team = random_team()
    pairs = zip(everything(random_value, *team), everything(again, *team), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("network", [dp.ValueFunction, dp.JointDenoiser, dp.PartnerEncoder])
def test_a_network_that_is_not_there_is_asked_of_nobody(network, tmp_path: Path, monkeypatch) -> None:
    def connect(*_: object) -> None:
        pytest.fail("a hub was asked")

    monkeypatch.setattr("socket.socket.connect", connect)
    for path in (tmp_path, "organisation/model", tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{path} is not a saved {network.__name__} .no config.json"):
            network.from_pretrained(path)


def planner_folder(line: dp.TrajectoryDataset, folder: Path, value: dp.ValueFunction | None) -> Path:
    """A saved planner; its value function written into it as ``save_pretrained`` of a planner that has one does."""
    dp.DiffusionPlanner.for_dataset(line, width=8, depth=1).save_pretrained(folder)
    if value is not None:
        value.save_pretrained(folder / "value_function")
        index = json.loads((folder / "model_index.json").read_text())
        index["value_function"] = ["diffplan.models.value", "ValueFunction"]
        (folder / "model_index.json").write_text(json.dumps(index))
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        hashes = {name: sha256(folder / name) for name in names if name != "manifest.json"}
        (folder / "manifest.json").write_text(json.dumps(hashes))
    return folder


def test_a_planner_brings_its_value_function_along_if_it_has_one(line, average, tmp_path: Path) -> None:
    components, _ = load_components(planner_folder(line, tmp_path / "with", average), {})
    loaded = components["value_function"]
    assert loaded.config.discount == DISCOUNT and not loaded.training
    assert all(torch.equal(one, loaded.state_dict()[name]) for name, one in average.state_dict().items())
    components, _ = load_components(planner_folder(line, tmp_path / "without", None), {})
    assert components["value_function"] is None


def test_a_value_function_that_is_not_whole_is_refused(line, average, tmp_path: Path) -> None:
    folder = planner_folder(line, tmp_path / "planner", average)
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = {name: value for name, value in manifest.items() if name != "value_function/config.json"}
    (folder / "manifest.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"lacks \['value_function/config.json'\]; save the planner again"):
        load_components(folder, {})
    index = json.loads((folder / "model_index.json").read_text())
    for wrong in (["os", "system"], "ValueFunction.evil", [None, "x"]):
        (folder / "model_index.json").write_text(json.dumps({**index, "value_function": wrong}))
        hashes = {**manifest, "model_index.json": sha256(folder / "model_index.json")}
        (folder / "manifest.json").write_text(json.dumps(hashes))
        with pytest.raises(ValueError, match=r"value_function is of class .*, expected one of \['ValueFunction'\]"):
            load_components(folder, {})


def test_mistakes_are_named_before_any_work(line, average, tmp_path: Path) -> None:
    bare = dp.TrajectoryDataset(line.store, 1)
    with pytest.raises(ValueError, match="the dataset has no normalizer; load it with the planner's"):
        dp.train_value(average, bare)
    with pytest.raises(ValueError, match=r"made for \{'observation_size': 6.* has \{'observation_size': 1"):
        dp.train_value(dp.ValueFunction(6, 2, **SMALL), line)
    with pytest.raises(ValueError, match=r"expectile=1.0; choose more than 0 and less than 1"):
        dp.train_value(average, line, expectile=1.0)
    with pytest.raises(ValueError, match=r"target_rate=0; choose more than 0"):
        dp.train_value(average, line, target_rate=0)
    with pytest.raises(ValueError, match=r"reach=-1; give 0 \(only the data's actions\) or more"):
        dp.train_value(average, line, reach=-1)
    with pytest.raises(ValueError, match="steps=0; it must be at least 1"):
        dp.train_value(average, line, steps=0)
    with pytest.raises(ValueError, match="samples=1, start_share=0.0; choose 2 or more"):
        calibration(average, line, samples=1)
    with pytest.raises(ValueError, match=r"width=30 is not a multiple of num_heads=4; use 28"):
        dp.ValueFunction(6, 2, width=30)
    with pytest.raises(ValueError, match="discount=1; choose 0 or more and less than 1"):
        dp.ValueFunction(6, 2, discount=1)


@pytest.mark.parametrize("paid", [0.0, 2.0])
def test_rewards_that_never_differ_have_no_value_to_learn(paid: float, tmp_path: Path) -> None:
    one = episode(np.array([0, 1]), np.ones((4, 2), int))
    one.rewards[:] = paid
    dataset = stored(tmp_path / "store", [one, one])
    with pytest.raises(ValueError, match=f"every reward in .*store is {paid:g} and nothing ends early.*record the"):
        dp.ValueFunction.for_dataset(dataset)


def test_equal_rewards_have_values_where_episodes_terminate(tmp_path: Path) -> None:
    one = episode(np.array([0, 1]), np.ones((4, 2), int))
    one.rewards[:], one.terminations[-1], one.truncations[-1] = -1, True, False
    value = dp.ValueFunction.for_dataset(stored(tmp_path / "store", [one]), **SMALL)
    assert value.config.reward_std == 1 and 0.5 < value.config.reward_scale < 2


def test_a_run_that_diverges_stops_and_says_where(line) -> None:
    value = dp.ValueFunction.for_dataset(line, **SMALL)
    with torch.no_grad():
        value.steps.head.bias.fill_(torch.inf)
    with pytest.raises(
        FloatingPointError, match=r"value training step 0: the loss of \['reward'\] is not finite, though"
    ):
        dp.train_value(value, line, steps=5, batch_size=4, progress=False)


def test_numbers_in_the_data_that_are_not_finite_are_located(line) -> None:
    broken = dp.Normalizer("gaussian", [[-3e38, 0.0]], [[1e-3, 1.0]])
    dataset = dp.TrajectoryDataset(line.store, 1, normalizer=broken)
    value = dp.ValueFunction.for_dataset(dataset, **SMALL)
    message = r"step 0: observations are not finite at episode \d+, step 0, agent 'a'"
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match=message):
        dp.train_value(value, dataset, steps=5, batch_size=4, progress=False)


def test_the_picture_shows_every_step_the_bins_and_the_line() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=300)
    found = Calibration(predicted, predicted + 0.3 * rng.normal(size=300))
    axes = dp.plot_calibration(found).axes[0]
    line, dots, means = (one.get_xydata() for one in axes.lines[:3])
    assert np.array_equal(line[:, 0], line[:, 1]) and np.array_equal(dots, np.stack([predicted, found.realised], 1))
    assert np.allclose(means, np.stack(found.bins()[:2], 1)) and len(means) == 10
    assert axes.get_title().startswith(f"slope {found.slope:.2f}, correlation {found.correlation:.2f}")
    assert axes.get_xlim() == axes.get_ylim()
