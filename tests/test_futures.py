"""A fixed number of futures, of which one at least shall be right."""

from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.checkpoints import checkpoints
from diffplan.datasets import TrajectoryStore
from diffplan.planners.question import Question
from diffplan.spec import JointSpec, Role
from diffplan.training_loop import DenoiserRun
from diffplan.trajectory import Trajectory

ROLES = {kind: Role(observation_size=2, action_low=(), action_high=(), position=(0, 1)) for kind in ("walker", "dog")}
SPEC = JointSpec({"a": "walker", "b": "walker", "rex": "dog"}, ROLES, dt=1.0)
STEPS = 7
SEEN = {"a": np.zeros(2), "b": np.array([4.0, 0.0]), "rex": np.array([8.0, 0.0])}


def walk(rng: np.random.Generator) -> Trajectory:
    """Both walkers go up, or both go down, which their start does not tell; the dog goes farther, by itself."""
    together, alone = rng.choice([-1.0, 1.0], size=2)
    places = np.zeros((STEPS + 1, 3, 2), np.float32)
    places[:, :, 0] = (0.0, 4.0, 8.0)
    places[..., 1] = np.arange(STEPS + 1)[:, None] * np.array([together, together, 3 * alone])
    nothing, ended = np.zeros((STEPS, 3), np.float32), np.zeros((STEPS, 3), bool)
    return Trajectory(SPEC, places, nothing[..., None][..., :0], nothing, ended, ended, np.ones((STEPS + 1, 3), bool))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dp.TrajectoryDataset:
    folder = tmp_path_factory.mktemp("walks")
    rng = np.random.default_rng(0)
    TrajectoryStore.write(folder, SPEC, "walks", (walk(rng) for _ in range(60)))
    return dp.load_dataset(folder, horizon=8, inside=True)


@pytest.fixture(scope="module")
def planner(dataset: dp.TrajectoryDataset) -> dp.DiffusionPlanner:
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=32, depth=2, seed=0)
    dp.train(planner, dataset, steps=150, batch_size=32, progress=False)
    return planner


def ends(plan: dp.Plan) -> np.ndarray:
    """[S, N], how far up each agent is at the end, in steps of its own."""
    return plan.observations[..., -1, 1] / (STEPS, STEPS, 3 * STEPS)


def test_joint_futures_are_what_agents_do_together(
    dataset: dp.TrajectoryDataset, planner: dp.DiffusionPlanner, tmp_path: Path
) -> None:
    futures = dp.Futures.of(planner, 2)
    dp.train_futures(futures, dataset, steps=200, batch_size=32, roles=["walker"], out=tmp_path, progress=False)
    plan = futures(SEEN)
    assert (plan.num_samples, plan.num_inference_steps, plan.belief) == (2, 1, None)
    walkers = ends(plan)[:, :2]
    np.testing.assert_allclose(walkers[walkers[:, 0].argsort()], [[-1, -1], [1, 1]], atol=0.25)
    np.testing.assert_allclose(plan.observations[:, :, 0], np.stack([[*SEEN.values()]] * 2), atol=1e-5)
    again = dp.Futures.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(SEEN).observations, plan.observations)
    assert not again.per_agent
    with pytest.raises(ValueError, match=r"holds futures; read them with Futures\.from_pretrained"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


def test_futures_of_each_agent_are_right_agent_by_agent(
    dataset: dp.TrajectoryDataset, planner: dp.DiffusionPlanner, tmp_path: Path
) -> None:
    futures = dp.Futures.of(planner, 2, per_agent=True)
    dp.train_futures(futures, dataset, steps=200, batch_size=32, progress=False)
    futures.save_pretrained(tmp_path)
    assert dp.Futures.from_pretrained(tmp_path).per_agent
    np.testing.assert_allclose(np.sort(ends(futures(SEEN)), axis=0), [[-1] * 3, [1] * 3], atol=0.25)


def test_many_questions_are_answered_as_each_alone_also_of_other_teams(planner: dp.DiffusionPlanner) -> None:
    futures = dp.Futures.of(planner, 3).for_agents(JointSpec({"b": "walker", "rex": "dog"}, ROLES, dt=1.0))
    questions = [Question({name: SEEN[name] + shift for name in ("b", "rex")}) for shift in (0.0, 1.0)]
    plans = futures.answer(questions)
    for question, plan in zip(questions, plans, strict=True):
        alone = futures(question.observations)
        np.testing.assert_allclose(plan.observations, alone.observations, atol=1e-4)
    assert plans[0].observations.shape == (3, 2, 8, 2)
    with pytest.raises(ValueError, match="takes no warm_start"):
        futures.answer([Question(SEEN, warm_start=plans[0])])
    absent = futures({"rex": SEEN["rex"]})
    assert absent.agent_mask.tolist() == [False, True]


def test_the_planner_keeps_its_weights_and_futures_begin_with_them(
    dataset: dp.TrajectoryDataset, planner: dp.DiffusionPlanner
) -> None:
    before = {name: value.clone() for name, value in planner.denoiser.state_dict().items()}
    futures = dp.Futures.of(planner, 2)
    assert torch.equal(futures.planner.denoiser.state_dict()["project.weight"], before["project.weight"])
    dp.train_futures(futures, dataset, steps=2, batch_size=4, progress=False)
    assert not torch.equal(futures.planner.denoiser.state_dict()["project.weight"], before["project.weight"])
    assert all(torch.equal(value, before[name]) for name, value in planner.denoiser.state_dict().items())
    partnered = dp.DiffusionPlanner.for_dataset(dataset, width=32, depth=2, latent_size=5)  # whose latents play no part
    assert dp.Futures.of(partnered, 2).planner.denoiser.config.latent_size == 2


def test_futures_of_a_network_of_ones_own_are_of_its_class(planner: dp.DiffusionPlanner, tmp_path: Path) -> None:
    class Mine(dp.JointDenoiser):
        """Another network."""

    own = Mine(**planner.denoiser.settings)
    layout = (planner.scheduler, planner.normalizer, planner.spec, planner.horizon, planner.history)
    futures = dp.Futures.of(dp.DiffusionPlanner(own, *layout), 2)
    assert type(futures.planner.denoiser) is Mine
    futures.save_pretrained(tmp_path)
    denoiser = Mine.from_pretrained(tmp_path / "denoiser")
    assert type(dp.Futures.from_pretrained(tmp_path, denoiser=denoiser).planner.denoiser) is Mine


def test_a_killed_training_goes_on_to_the_same_weights(
    dataset: dp.TrajectoryDataset, planner: dp.DiffusionPlanner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "progress": False}
    straight = dp.Futures.of(planner, 2)
    report = dp.train_futures(straight, dataset, out=tmp_path / "straight", log_every=2, **how)
    assert report.steps == [2, 4, 6]
    assert np.isfinite(report.losses).all()
    killed = dp.Futures.of(planner, 2)
    update = DenoiserRun.update

    def dies(self: object, loss: torch.Tensor, rate: float, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        update(self, loss, rate, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DenoiserRun, "update", dies)
        dp.train_futures(killed, dataset, out=tmp_path / "killed", **how)
    assert checkpoints(tmp_path / "killed" / "checkpoints")
    resumed = dp.Futures.of(planner, 2)
    dp.train_futures(resumed, dataset, out=tmp_path / "killed", resume=True, **how)
    for name, value in straight.planner.denoiser.state_dict().items():
        assert torch.equal(value, resumed.planner.denoiser.state_dict()[name]), name
    with pytest.raises(ValueError, match="is of another run: .*batch_size"):
        dp.train_futures(resumed, dataset, out=tmp_path / "killed", resume=True, **{**how, "batch_size": 5})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"roles": ["cat"]}, r"roles=\['cat'\]; give some of \['walker', 'dog'\]"),
        ({"roles": []}, r"roles=\[\]; give some of"),
        ({"roles": "dog"}, r"roles='dog'; give some of"),
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_wrong_arguments_are_refused_before_training(
    dataset: dp.TrajectoryDataset, planner: dp.DiffusionPlanner, tmp_path: Path, wrong: dict, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        dp.train_futures(dp.Futures.of(planner, 2), dataset, out=tmp_path / "run", progress=False, **wrong)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match=r"make them of a planner, Futures\.of"):
        dp.train_futures(planner, dataset)


def test_where_nobody_is_who_shall_be_foreseen_the_others_say_which_future_is_nearest(
    tmp_path: Path, planner: dp.DiffusionPlanner
) -> None:
    rng = np.random.default_rng(0)
    walks = [walk(rng) for _ in range(60)]
    for one in walks[::2]:
        one.agent_mask[:, :2], one.observations[:, :2] = False, 0
    TrajectoryStore.write(tmp_path, SPEC, "walks", iter(walks))
    dataset = dp.TrajectoryDataset(dp.TrajectoryStore.open(tmp_path), 8, inside=True, normalizer=planner.normalizer)
    futures = dp.Futures.of(planner, 2)
    dp.train_futures(futures, dataset, steps=150, batch_size=32, roles=["walker"], progress=False)
    np.testing.assert_allclose(np.sort(ends(futures({"rex": SEEN["rex"]}))[:, 2]), [-1, 1], atol=0.4)


def test_a_planner_that_samples_holds_no_futures(planner: dp.DiffusionPlanner, tmp_path: Path) -> None:
    planner.save_pretrained(tmp_path / "planner")
    with pytest.raises(ValueError, match="a planner that samples"):
        dp.Futures.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="count=0"):
        dp.Futures.of(planner, 0)
    with pytest.raises(ValueError, match=r"count=2\.5; ask for a whole number"):
        dp.Futures.of(planner, 2.5)
    with pytest.raises(TypeError, match="planner is a Futures; give a DiffusionPlanner"):
        dp.RecedingHorizonPolicy(dp.Futures.of(planner, 2))
    with pytest.raises(TypeError, match="planner is a Futures; give a trained DiffusionPlanner"):
        dp.Futures.of(dp.Futures.of(planner, 2))
    with pytest.raises(ValueError, match="this planner samples"):
        dp.Futures(planner)
