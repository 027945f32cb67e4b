import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import diffplan as dp
from diffplan.checkpoints import save_checkpoint
from diffplan.planners import Question, make_scheduler
from diffplan.planners.ranking import realism
from diffplan.trajectory import Cells, Plan

HORIZON, HISTORY = 8, 4


@pytest.fixture(scope="module")
def dataset(crossing_store: Path) -> dp.TrajectoryDataset:
    return dp.load_dataset(crossing_store, horizon=HORIZON, history=HISTORY)


@pytest.fixture(scope="module")
def planner(dataset: dp.TrajectoryDataset, randomized) -> dp.DiffusionPlanner:
    return randomized(dp.DiffusionPlanner.for_dataset(dataset, width=32, depth=2))


def test_the_present_goes_straight_through_except_where_the_network_takes_latents(dataset) -> None:
    def from_present(**options: object) -> bool:
        config = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, **options).denoiser.config
        assert config.history == HISTORY
        return config.from_present

    assert from_present() and not from_present(latent_size=2)
    assert from_present(latent_size=2, from_present=True) and not from_present(from_present=False)


@pytest.fixture
def observations(dataset: dp.TrajectoryDataset) -> dict[str, np.ndarray]:
    first = dataset.store[0].observations[0]
    return {name: first[index].copy() for index, name in enumerate(dataset.spec.names)}


def test_a_plan_starts_at_the_present_and_keeps_what_never_changes(planner, observations) -> None:
    plan = planner(observations, num_samples=3, seed=1)
    assert plan.observations.shape == (3, 2, HORIZON, 6)
    for index, name in enumerate(observations):
        np.testing.assert_allclose(plan.observations[:, index, 0], observations[name][None].repeat(3, 0), atol=1e-5)
        goal = observations[name][None, None, 4:].repeat(3, 0).repeat(HORIZON, 1)
        np.testing.assert_allclose(plan.observations[:, index, :, 4:], goal, atol=1e-5)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(planner, observations) -> None:
    first, same, other = (planner(observations, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.actions, same.actions)
    assert not np.array_equal(first.actions, other.actions)


@pytest.mark.parametrize("name", ["flow", "ddim", "dpm"])
def test_a_saved_planner_plans_the_same_to_the_bit(planner, observations, name: str, tmp_path: Path) -> None:
    planner.scheduler = make_scheduler(name)
    planner.save_pretrained(tmp_path / "planner")
    reloaded = dp.DiffusionPlanner.from_pretrained(tmp_path)
    assert np.array_equal(planner(observations, seed=0).actions, reloaded(observations, seed=0).actions)
    assert type(reloaded.scheduler) is type(planner.scheduler)
    planner.scheduler = make_scheduler("flow")


def test_a_planner_is_where_its_denoiser_is_wherever_its_value_function_was_trained(planner, dataset) -> None:
    class OnGpu(dp.ValueFunction):
        device = torch.device("cuda:0")

    other = planner.for_agents(planner.spec)
    other.value_function = OnGpu(dataset.spec.observation_size, dataset.spec.action_size, width=8, num_heads=1)
    assert other.device == planner.denoiser.device == torch.device("cpu")


def test_given_cells_are_in_the_plan(planner, observations) -> None:
    announced = planner(observations, seed=1)
    given = announced.cells("robot_1")
    plan = planner(observations, given=given, seed=2)
    np.testing.assert_allclose(plan.actions[0, 1], announced.actions[0, 1], atol=1e-5)
    np.testing.assert_allclose(plan.observations[0, 1, 1:], announced.observations[0, 1, 1:], atol=1e-5)
    assert np.abs(plan.actions[0, 0] - announced.actions[0, 0]).max() > 1e-3


def test_what_is_observed_stands_whatever_is_given(planner, observations) -> None:
    late = planner({name: value + 0.1 for name, value in observations.items()}).cells("robot_1")
    plan = planner(observations, given=late)
    np.testing.assert_allclose(plan.observations[0, 1, 0], observations["robot_1"], atol=1e-5)
    np.testing.assert_allclose(plan.observations[0, 1, 1:, :4], late.observations[1, 1:, :4], atol=1e-5)


def test_a_seed_of_numpy_is_a_seed(planner, observations) -> None:
    assert np.array_equal(planner(observations, seed=np.int64(3)).actions, planner(observations, seed=3).actions)


def test_an_absent_agent_has_no_actions_and_an_unknown_one_has(planner, observations) -> None:
    alone = {"robot_0": observations["robot_0"]}
    assert list(planner(alone).actions_at(0)) == ["robot_0"]
    unseen = {**observations, "robot_1": np.full(6, np.nan)}
    plan = planner(unseen)
    assert np.isfinite(plan.observations).all()
    assert list(plan.actions_at(0)) == ["robot_0", "robot_1"]


def test_an_infinite_entry_is_as_unknown_as_one_that_is_no_number(planner, observations) -> None:
    infinite, unknown = ({name: row.copy() for name, row in observations.items()} for _ in range(2))
    infinite["robot_0"][1], unknown["robot_0"][1] = np.inf, np.nan
    plan = planner(infinite, seed=1)
    assert np.isfinite(plan.observations).all()
    assert np.array_equal(plan.observations, planner(unknown, seed=1).observations)


def test_a_function_is_no_guide_and_a_planner_no_policy(planner, observations) -> None:
    guide = dp.ConstraintGuide(lambda plan: plan.actions.square().sum((2, 3, 4)))
    for guides in ([lambda plan: 0.0], guide):
        with pytest.raises(TypeError, match=r"a list of guides; ConstraintGuide\(function\) makes one"):
            planner(observations, guides=guides)
    with pytest.raises(TypeError, match=r"a planner acts through one: RecedingHorizonPolicy\(planner\)"):
        dp.evaluate(planner, "crossing-v0", episodes=1)


def test_what_happened_before_changes_the_plan(planner, dataset, observations) -> None:
    episode = dataset.store[0]
    steps = [
        (
            {n: episode.observations[t, i] for i, n in enumerate(observations)},
            {n: episode.actions[t, i] for i, n in enumerate(observations)},
        )
        for t in range(3)
    ]
    with_past, without = planner(observations, past=steps, seed=0), planner(observations, seed=0)
    assert np.abs(with_past.actions - without.actions).max() > 1e-3


def test_a_static_entry_that_is_known_now_is_known_of_the_past(planner, observations) -> None:
    before = {name: row.copy() for name, row in observations.items()}
    seen = planner(observations, past=[(before, {})], seed=0)
    before["robot_1"][list(planner.spec.role_of("robot_1").static)] = np.nan  # its goal was told only now
    assert np.array_equal(planner(observations, past=[(before, {})], seed=0).actions, seen.actions)


@pytest.mark.parametrize("part", [0, 1], ids=["observation", "action"])
def test_what_is_not_finite_in_the_past_or_given_is_unknown(planner, dataset, observations, part: int) -> None:
    episode, name = dataset.store[0], next(iter(observations))

    def planned(value: float) -> np.ndarray:
        step = [
            {n: grid[0, i].copy() for i, n in enumerate(observations)}
            for grid in (episode.observations, episode.actions)
        ]
        step[part][name][0] = value
        given = dp.Cells.unknown(planner.spec, planner.horizon)
        given.actions[0, 3, 0] = value
        return planner(observations, past=[tuple(step)], given=given, seed=0).actions

    np.testing.assert_array_equal(planned(np.inf), planned(np.nan))
    assert np.isfinite(planned(np.inf)).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_warm_start_takes_as_many_steps_as_it_is_told(planner, observations, steps: int) -> None:
    start = planner(observations, seed=0)
    plan = planner(observations, warm_start=start, num_inference_steps=steps, return_chain=True)
    assert plan.num_inference_steps == steps and plan.chain is not None and len(plan.chain) == steps + 1


def test_a_planner_for_two_robots_plans_for_three_of_the_same_role(planner, observations) -> None:
    spec = dp.make("crossing-v0", num_robots=3).joint_spec
    team = {name: observations["robot_0"] for name in spec.names}
    assert planner.for_agents(spec)(team).actions.shape == (1, 3, HORIZON, 2)
    obstacles = dp.make("crossing-v0", num_robots=3, layout="obstacles").joint_spec
    with pytest.raises(ValueError, match="role 'robot': the planner has"):
        planner.for_agents(obstacles)


def test_the_chain_has_every_denoising_step_and_a_plan_survives_saving(planner, observations, tmp_path: Path) -> None:
    plan = planner(observations, num_samples=2, num_inference_steps=3, return_chain=True)
    assert plan.chain is not None
    assert plan.chain.shape == (4, 2, 2, HORIZON, 8)
    np.testing.assert_allclose(plan.chain[-1, ..., :6], plan.observations, atol=1e-4)
    plan.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert np.array_equal(loaded.actions, plan.actions)
    assert loaded.spec == plan.spec
    assert repr(plan) == "Plan(S=2 samples, N=2 agents (2 present), H=8 steps of 0.1 s, chain of 3 steps)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": {"arm": np.zeros(6)}}, r"agents \['arm'\], but the spec has"),
        ({"observations": {"robot_0": np.zeros(5)}}, r"'robot_0' has shape \(5,\), expected \(6,\)"),
        ({"observations": {"robot_0": "there"}}, "observation of agent 'robot_0' is 'there', expected 6 numbers"),
        ({"observations": {}}, "no agent is present"),
        ({"past": [{"robot_0": np.zeros(6)}]}, r"past holds a pair of \(observations, actions\)"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": 2.0}, "num_samples=2.0; give a whole number"),
        ({"seed": 1.5}, "seed=1.5; give a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps=0; ask for at least one"),
        ({"warm_start_level": 0.0}, "warm_start_level=0.0"),
    ],
)
def test_questions_that_make_no_sense_are_refused(planner, observations, change, message: str) -> None:
    arguments = {"observations": observations, "warm_start": planner(observations), **change}
    with pytest.raises(ValueError, match=message):
        planner(**arguments)


def test_a_folder_is_no_plan_and_nothing_no_value_function(planner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder, no saved plan; name the file"):
        Plan.load(tmp_path)
    with pytest.raises(ValueError, match="needs a value function; train one with train_value"):
        dp.ValueGuide(planner.value_function)


def test_given_cells_of_absent_agents_are_refused(planner, observations) -> None:
    announced = planner(observations).cells("robot_1")
    with pytest.raises(ValueError, match=r"cells of absent agents \['robot_1'\]"):
        planner({"robot_0": observations["robot_0"]}, given=announced)


def test_given_cells_of_another_horizon_are_refused(planner, observations) -> None:
    with pytest.raises(TypeError, match="given is a dict; pass Cells, e.g. plan.cells"):
        planner(observations, given={"robot_0": 1})
    with pytest.raises(ValueError, match=r"given cells have shape \(2, 5, 8\), expected \(2, 8, 8\)"):
        planner(observations, given=Cells.unknown(planner.spec, 5))


@pytest.mark.parametrize("file", ["denoiser/diffusion_pytorch_model.safetensors", "normalizer/normalizer_config.json"])
def test_a_flipped_bit_in_a_saved_planner_is_found_and_named(planner, tmp_path: Path, file: str) -> None:
    planner.save_pretrained(tmp_path / "planner")
    damaged = tmp_path / "planner" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=f"{damaged.name} is missing or damaged"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


def rewrite(folder: Path, file: str, content: bytes) -> None:
    """Changes a file and its entry in the manifest, as an attacker would."""
    import hashlib

    (folder / file).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[file] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_saved_planner_cannot_name_a_class_to_import(planner, tmp_path: Path) -> None:
    planner.save_pretrained(tmp_path / "planner")
    index = json.loads((tmp_path / "planner" / "model_index.json").read_text())
    index["denoiser"] = ["subprocess", "Popen"]
    rewrite(tmp_path / "planner", "model_index.json", json.dumps(index).encode())
    with pytest.raises(ValueError, match=r"denoiser is of class 'Popen', expected one of \['JointDenoiser'\]"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


def test_a_network_of_a_class_of_ones_own_is_given_when_a_planner_is_read(planner, observations, tmp_path) -> None:
    class Mine(dp.JointDenoiser):
        """Another network."""

    own = Mine.from_config(planner.denoiser.config)
    own.load_state_dict(planner.denoiser.state_dict())
    made = dp.DiffusionPlanner(own, planner.scheduler, planner.normalizer, planner.spec, HORIZON, HISTORY)
    made.save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"class 'Mine'.*give from_pretrained\(..., denoiser=\) what it should be"):
        dp.DiffusionPlanner.from_pretrained(tmp_path / "mine")
    read = dp.DiffusionPlanner.from_pretrained(
        tmp_path / "mine", denoiser=Mine.from_pretrained(tmp_path / "mine" / "denoiser").eval()
    )
    assert type(read.for_agents(planner.spec).denoiser) is Mine
    assert np.array_equal(read(observations, seed=1).actions, planner(observations, seed=1).actions)
    with pytest.raises(TypeError, match=r"from_pretrained takes a folder and .*, got also \['critic'\]"):
        dp.DiffusionPlanner.from_pretrained(tmp_path / "mine", critic=None)
    with pytest.raises(TypeError, match="the denoiser is a Linear; derive yours from JointDenoiser"):
        dp.DiffusionPlanner(
            torch.nn.Linear(1, 1), planner.scheduler, planner.normalizer, planner.spec, HORIZON, HISTORY
        )


def test_saving_leaves_what_is_not_a_planners(planner, tmp_path: Path) -> None:
    folder = tmp_path / "planner"
    planner.save_pretrained(folder)
    (folder / "README.md").write_text("A card.")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").symlink_to("elsewhere")
    os.mkfifo(folder / ".git" / "monitor")
    (folder / "value_function").mkdir()  # of an earlier planner
    planner.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "A card." and (folder / ".git" / "HEAD").is_symlink()
    assert not (folder / "value_function").exists()
    dp.DiffusionPlanner.from_pretrained(folder)


def test_weights_are_float32_whatever_torch_would_make_of_them(planner, observations, dataset) -> None:
    with pytest.raises(ValueError, match="set planner.precision = 'bfloat16'"):
        planner.to(torch.bfloat16)
    assert planner.to("cpu") is planner
    torch.set_default_dtype(torch.float64)
    try:
        for asked in (lambda: planner(observations), lambda: dp.DiffusionPlanner.for_dataset(dataset)):
            with pytest.raises(ValueError, match="torch's default dtype is torch.float64; planners need"):
                asked()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model_index.json", [], "model_index.json lacks spec, horizon, history"),
        ("model_index.json", {"spec": {}, "horizon": "8", "history": 4}, "lacks horizon, or holds no such thing"),
        ("model_index.json", {"spec": {}, "horizon": 8, "history": 4, "action_spread": "0.1"}, "lacks action_spread"),
        ("denoiser/config.json", "owner/model", "denoiser/config.json does not describe a JointDenoiser"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(planner, tmp_path: Path, file: str, content, message: str) -> None:
    planner.save_pretrained(tmp_path / "planner")
    rewrite(tmp_path / "planner", file, json.dumps(content).encode())
    with pytest.raises(ValueError, match=message):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


@pytest.mark.parametrize("spread", [-0.1, float("nan"), float("inf")])
def test_a_spread_of_actions_that_cannot_be_is_refused(planner, tmp_path: Path, spread: float) -> None:
    planner.save_pretrained(tmp_path / "planner")
    index = json.loads((tmp_path / "planner" / "model_index.json").read_text())
    rewrite(tmp_path / "planner", "model_index.json", json.dumps({**index, "action_spread": spread}).encode())
    with pytest.raises(ValueError, match=f"action_spread={spread}; give a number of standard deviations"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


def test_a_network_of_another_size_is_refused_before_it_takes_memory(planner, tmp_path: Path) -> None:
    planner.save_pretrained(tmp_path / "planner")
    config = json.loads((tmp_path / "planner" / "denoiser" / "config.json").read_text())
    rewrite(tmp_path / "planner", "denoiser/config.json", json.dumps({**config, "depth": 10**11}).encode())
    with pytest.raises(ValueError, match="depth=100000000000, more than there are weights"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)
    rewrite(tmp_path / "planner", "denoiser/config.json", json.dumps({**config, "width": 2**20}).encode())
    with pytest.raises(ValueError, match=r"has shape \[.*\], expected \[.*1048576"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


def test_a_manifest_cannot_name_a_file_outside_its_folder(planner, tmp_path: Path) -> None:
    planner.save_pretrained(tmp_path / "planner")
    manifest = tmp_path / "planner" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "../../etc/passwd": "0" * 64}))
    with pytest.raises(ValueError, match="leaves its folder"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


def test_a_missing_weight_is_refused(planner, tmp_path: Path) -> None:
    planner.save_pretrained(tmp_path / "planner")
    file = "denoiser/diffusion_pytorch_model.safetensors"
    weights = load_file(tmp_path / "planner" / file)
    weights.pop("project.bias")
    save_file(weights, tmp_path / "fewer")
    rewrite(tmp_path / "planner", file, (tmp_path / "fewer").read_bytes())
    with pytest.raises(ValueError, match="project.bias"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


def test_a_save_that_fails_leaves_the_old_planner_whole(planner, observations, tmp_path: Path, monkeypatch) -> None:
    planner.save_pretrained(tmp_path / "planner")
    monkeypatch.setattr(
        planner.normalizer, "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        planner.save_pretrained(tmp_path / "planner")
    monkeypatch.undo()
    reloaded = dp.DiffusionPlanner.from_pretrained(tmp_path)
    assert np.array_equal(planner(observations).actions, reloaded(observations).actions)
    assert [path.name for path in tmp_path.iterdir()] == ["planner"]


def test_a_saved_planner_keeps_the_order_of_agents_and_roles(tmp_path: Path) -> None:
    speaker, listener = dp.Role(4, (-1.0,), (1.0,)), dp.Role(2, (-1.0, -1.0), (1.0, 1.0))
    spec = dp.JointSpec({"zoe": "speaker", "abe": "listener"}, {"speaker": speaker, "listener": listener})
    normalizer = dp.Normalizer("gaussian", [[0.0] * 6, [1.0] * 6], [[1.0] * 6, [2.0] * 6])
    denoiser = dp.JointDenoiser(size=6, window=8, num_roles=2, width=16, depth=1)
    dp.DiffusionPlanner(denoiser, make_scheduler("flow"), normalizer, spec, 8).save_pretrained(tmp_path / "planner")
    reloaded = dp.DiffusionPlanner.from_pretrained(tmp_path)
    assert reloaded.spec.names == ("zoe", "abe")
    assert list(reloaded.spec.roles) == ["speaker", "listener"]


def test_what_is_saved_may_be_read_by_whom_the_umask_lets(planner, observations, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        planner.save_pretrained(tmp_path / "planner")
        planner(observations).save(tmp_path / "plan.safetensors")
        save_checkpoint(tmp_path / "checkpoints", 1, {"one": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o640}


def test_saving_over_something_that_is_no_planner_is_refused(planner, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="run is not a planner and would be replaced"):
        planner.save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "{}"


def test_a_planner_in_the_working_folder_is_found(planner, tmp_path: Path, monkeypatch) -> None:
    planner.save_pretrained(tmp_path / "run" / "planner")
    for folder in ("run", "run/planner"):
        monkeypatch.chdir(tmp_path / folder)
        assert dp.DiffusionPlanner.from_pretrained(".").horizon == HORIZON


def test_a_folder_without_a_planner_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a saved planner .*diffplan train"):
        dp.DiffusionPlanner.from_pretrained(tmp_path)


def test_a_crash_between_the_two_renames_of_a_save_loses_nothing(planner, tmp_path: Path) -> None:
    planner.save_pretrained(tmp_path / "planner")
    (tmp_path / "planner" / "README.md").write_text("A card.")
    shutil.move(tmp_path / "planner", tmp_path / ".planner.old")
    assert dp.DiffusionPlanner.from_pretrained(tmp_path).horizon == HORIZON
    for crash in ("before the new one is in place", "after it"):
        planner.save_pretrained(tmp_path / "planner")
        assert (tmp_path / "planner" / "README.md").read_text() == "A card.", crash
        assert [path.name for path in tmp_path.iterdir()] == ["planner"]
        (tmp_path / ".planner.old").mkdir()
        (tmp_path / "planner" / "README.md").rename(tmp_path / ".planner.old" / "README.md")


def test_actions_are_read_off_the_observations_alone_whatever_the_warm_start(planner, observations) -> None:
    plan = planner(observations, seed=1)
    given = Cells(plan.observations[0], np.full_like(plan.actions[0], np.nan))
    cold, warm = (planner(observations, given=given, warm_start=w, decode_actions=True) for w in (None, plan))
    np.testing.assert_allclose(warm.actions, cold.actions, atol=1e-5)


def test_a_plan_of_other_numbers_is_a_warm_start_and_is_judged(planner, observations) -> None:
    plan = planner(observations, seed=1)
    wide = dataclasses.replace(plan, observations=plan.observations.astype(float), actions=plan.actions.astype(float))
    ours, same = (planner(observations, warm_start=one, seed=2) for one in (wide, plan))
    assert np.array_equal(ours.actions, same.actions)
    assert np.isfinite(realism(planner, wide)).all()


def test_warm_and_cold_questions_do_not_mix(planner, observations) -> None:
    questions = [Question(observations), Question(observations, warm_start=planner(observations))]
    with pytest.raises(ValueError, match="some questions have a warm_start and some do not"):
        planner.answer(questions)
    assert planner.answer([]) == []


def test_decoding_keeps_the_planned_observations_and_reads_other_actions_off_them(planner, observations) -> None:
    sampled, decoded = (planner(observations, num_samples=2, seed=3, decode_actions=flag) for flag in (False, True))
    np.testing.assert_allclose(decoded.observations, sampled.observations, atol=1e-5)
    assert np.abs(decoded.actions - sampled.actions).max() > 1e-3


def test_in_float32_a_batch_is_planned_as_each_question_alone(planner, observations) -> None:
    planner.precision = "float32"
    questions = [dp.Question(observations, seed=seed) for seed in range(9)]
    together, alone = planner.answer(questions), planner(observations, seed=8)
    np.testing.assert_allclose(together[8].actions, alone.actions, atol=1e-5)
    planner.precision = "half"
    with pytest.raises(ValueError, match="precision='half'"):
        planner(observations)
    planner.precision = "auto"
