"""Files of strangers, hashes and all: refused by name, before they cost memory, time or a good file."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

import diffplan as dp
from diffplan.cli import main
from diffplan.datasets import import_episodes
from diffplan.datasets.importers import Minari, Robomimic, Rollout, Rollouts, Table
from diffplan.files import digest, sha256

DENOISER = "denoiser/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def dataset(crossing_store: Path) -> dp.TrajectoryDataset:
    return dp.load_dataset(crossing_store, horizon=8)


def planner_of(dataset: dp.TrajectoryDataset) -> dp.DiffusionPlanner:
    return dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1, seed=0)


def train(dataset: dp.TrajectoryDataset, out: Path, resume: bool = False) -> None:
    options: dict[str, Any] = {"batch_size": 4, "checkpoint_every": 2, "log_every": 1, "progress": False}
    dp.train(planner_of(dataset), dataset, steps=2, out=out, resume=resume, **options)


@pytest.fixture
def run(dataset: dp.TrajectoryDataset, tmp_path: Path) -> Path:
    train(dataset, tmp_path / "run")
    return tmp_path / "run"


def vouched_for(planner: Path) -> None:
    """Gives a planner's folder a manifest of what is in it now."""
    files = [file for file in planner.rglob("*") if file.is_file() and file.name != "manifest.json"]
    hashes = {file.relative_to(planner).as_posix(): sha256(file) for file in files}
    (planner / "manifest.json").write_text(json.dumps(hashes))


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda one: one.update({"exp_avg/modulation.weight": torch.ones(5)}),
            r"exp_avg/modulation.weight is torch.float32 of shape \[5\]",
        ),
        (lambda one: one.pop("exp_avg/modulation.weight"), "of modulation.weight the optimiser remembers"),
        (lambda one: one.pop("ema.project.bias"), "KeyError: 'ema.project.bias'"),
        (lambda one: one["ema.project.bias"].fill_(torch.nan), "ema.project.bias is not a number"),
    ],
)
def test_a_checkpoint_that_holds_something_else_is_refused(
    change: Callable, said: str, run: Path, dataset: dp.TrajectoryDataset
) -> None:
    checkpoint, before = run / "checkpoints" / "step_00000002", sha256(run / "planner" / DENOISER)
    changed(checkpoint / "state.safetensors", change)
    manifest = json.loads((checkpoint / "manifest.json").read_text()) | {
        "sha256": sha256(checkpoint / "state.safetensors")
    }
    manifest.pop("digest")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"digest": digest(manifest)}))
    with pytest.raises(ValueError, match=f"step_00000002.*{said}.*resume from the one before"):
        train(dataset, run, resume=True)
    assert sha256(run / "planner" / DENOISER) == before


@pytest.mark.parametrize("step", [10**9, 2.7, None])
def test_a_checkpoint_of_another_step_than_its_name_is_refused(
    step: object, run: Path, dataset: dp.TrajectoryDataset
) -> None:
    path = run / "checkpoints" / "step_00000002" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"step": step}
    manifest.pop("digest")
    path.write_text(json.dumps(manifest | {"digest": digest(manifest)}))
    with pytest.raises(ValueError, match=f"is of step {step}"):
        train(dataset, run, resume=True)


@pytest.mark.parametrize("config", ['"organisation/model"', "[]", "{}", '{"width": 8192}', '{"depth": 20000}'])
def test_a_network_is_made_of_its_own_folder_alone(
    config: str, dataset: dp.TrajectoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dp.ValueFunction.for_dataset(dataset, width=8, depth=1).save_pretrained(tmp_path)
    path, found = tmp_path / "config.json", json.loads(config)
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | found if isinstance(found, dict) and found else found))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("a hub was asked"))
    with pytest.raises(ValueError, match="(config.json does not describe a|does not hold a) ValueFunction"):
        dp.ValueFunction.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one["project.weight"].fill_(torch.nan),
        lambda one: one.update({"project.weight": one["project.weight"].to(torch.int8)}),
        lambda one: one.pop("project.weight"),
    ],
)
def test_weights_that_are_missing_of_another_kind_or_not_finite_are_refused(
    change: Callable, dataset: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    planner_of(dataset).save_pretrained(tmp_path / "planner")
    changed(tmp_path / "planner" / DENOISER, change)
    vouched_for(tmp_path / "planner")
    with pytest.raises(ValueError, match="does not hold a JointDenoiser and its weights.*project.weight"):
        dp.DiffusionPlanner.from_pretrained(tmp_path / "planner")


def test_schedulers_of_a_hundred_million_steps_and_unlisted_origins_are_refused(
    dataset: dp.TrajectoryDataset, run: Path
) -> None:
    planner, path = run / "planner", run / "planner" / "scheduler" / "scheduler_config.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"num_train_timesteps": 10**8}))
    vouched_for(planner)
    with pytest.raises(ValueError, match="num_train_timesteps=100000000, expected at most 100,000"):
        dp.DiffusionPlanner.from_pretrained(planner)
    path.write_text(whole)
    (planner / "provenance.json").write_text('{"parent": "a"}')
    vouched_for(planner)
    assert dp.DiffusionPlanner.from_pretrained(planner).provenance == {"parent": "a"}
    manifest = json.loads((planner / "manifest.json").read_text())
    manifest.pop("provenance.json")
    (planner / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest.json lacks \['provenance.json'\]"):
        dp.DiffusionPlanner.from_pretrained(planner)


def test_units_too_small_or_large_for_float32_are_refused() -> None:
    for center, scale in ((1e300, 1.0), (0.0, 1e300), (0.0, 1e-320)):
        with pytest.raises(ValueError, match="center must be finite and scale finite and positive"):
            dp.Normalizer("gaussian", [[center]], [[scale]])


def test_a_plan_that_is_not_finite_is_not_planned_around(
    dataset: dp.TrajectoryDataset, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planner_of(dataset)(dataset.spec.unstack_observations(dataset.store[0].observations[0], np.ones(2, bool)))
    plan.observations[..., 3, 0] = np.nan
    plan.save(tmp_path / "plan.safetensors")
    for flag in ("--given=robot_0=", "--forecast="):
        assert main(["plan", str(run), f"{flag}{tmp_path / 'plan.safetensors'}"]) == 1
        assert "numbers that are not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agent_mask": np.full(2, 7)}, "not of truth values"),
        ({"observations": np.zeros((0, 2, 8, 6)), "actions": np.zeros((0, 2, 8, 2))}, "it has samples, and steps"),
    ],
)
def test_a_plan_of_no_sample_or_of_half_robots_is_refused(
    changes: dict[str, np.ndarray], said: str, dataset: dp.TrajectoryDataset, tmp_path: Path
) -> None:
    arrays = {
        "observations": np.zeros((1, 2, 8, 6), np.float32),
        "actions": np.zeros((1, 2, 8, 2), np.float32),
        "agent_mask": np.ones(2, bool),
    }
    facts = {"spec": json.dumps(dataset.spec.to_dict())}
    save_arrays(arrays, tmp_path / "plan.safetensors", metadata=facts)
    assert dp.Plan.load(tmp_path / "plan.safetensors").horizon == 8
    save_arrays(arrays | changes, tmp_path / "plan.safetensors", metadata=facts)
    with pytest.raises(ValueError, match=f"plan.safetensors is not a saved plan.*{said}"):
        dp.Plan.load(tmp_path / "plan.safetensors")


def test_numbers_beyond_float32_never_reach_a_store(dataset: dp.TrajectoryDataset, tmp_path: Path) -> None:
    episode = dataset.store[0]
    with pytest.raises(ValueError, match="observations is not finite at step 0, agent 'robot_0'"):
        dataclasses.replace(episode, observations=episode.observations.astype(float) + 1e39)


def test_offsets_that_wrap_round_are_refused(crossing_store: Path, tmp_path: Path) -> None:
    shutil.copytree(crossing_store, tmp_path / "store")
    path = tmp_path / "store" / "shard_00000" / "offsets.npy"
    offsets = np.load(path, mmap_mode="r+")
    begin = -(2**63) + int(offsets[-1]) + 200  # from here the differences wrap round, all to more than 2
    offsets[1], offsets[2:-1] = 2**63 - 1, begin + np.arange(0, 2 * (len(offsets) - 3), 2)
    offsets.flush()
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    manifest["shards"][0]["files"]["offsets.npy"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="offsets.npy does not rise"):
        dp.TrajectoryStore.open(tmp_path / "store")


def test_hdf5_is_looked_through_before_any_link_is_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # who opens it waits for ever, in C, where nothing can interrupt it
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        file["a"], file["z"] = h5py.SoftLink("/z/q"), h5py.ExternalLink("pipe", "/")
    command = [sys.executable, "-m", "diffplan", "data", "import", "robomimic", "f.hdf5", "--out", "out"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "/z is a link to another file" in ended.stderr


def test_small_files_that_unpack_to_gigabytes_are_refused(tmp_path: Path) -> None:
    rows = 5_000_000
    columns = {"time": np.zeros(rows), "agent": np.zeros(rows, np.int8), "x": np.zeros(rows)}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet", compression="zstd")
    with pytest.raises(ValueError, match="unpacks to 120,000,000 bytes"):
        import_episodes(Table(tmp_path / "b.parquet"), tmp_path / "out")
    lines = [f"{time},a,{part},0,0\n" for part in range(3) for time in (0, 1, 2, 9_999_999)]
    (tmp_path / "b.csv").write_text("time,agent,ep,x,y\n" + "".join(lines))
    with pytest.raises(ValueError, match="12 rows in 29,999,997 frames, nearly all of them empty"):
        import_episodes(Table(tmp_path / "b.csv", episode="ep"), tmp_path / "out")


def test_widths_that_nobody_records_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    space = json.dumps({"type": "Discrete", "n": 50_000_000})
    facts = {"observation_space": space, "action_space": space, "total_episodes": 1}
    (tmp_path / "data" / "metadata.json").write_text(json.dumps(facts))
    with h5py.File(tmp_path / "data" / "main_data.hdf5", "w") as file:
        file.create_group("episode_0")
    with pytest.raises(ValueError, match="tells of 50000000 entries"):
        import_episodes(Minari(tmp_path), tmp_path / "out")


def test_numpy_s_numbers_of_actions_are_numbers(tmp_path: Path) -> None:
    seen = [{"a": np.zeros(100_800, np.float32)}, {"a": np.ones(100_800, np.float32)}]  # a flat picture
    one = Rollout(seen, [{"a": 2}], [{"a": 0.0}], [{"a": True}], [{"a": False}])
    store = import_episodes(Rollouts([one], num_actions=np.int64(3)), tmp_path / "out")
    assert store.spec.action_size == 3 and store[0].actions.tolist() == [[[0, 0, 1]]]


def test_who_passes_no_importer_is_told(tmp_path: Path) -> None:
    for wrong in (str(tmp_path), Table):
        with pytest.raises(TypeError, match="is no importer"):
            import_episodes(wrong, tmp_path / "out")


def test_layouts_that_no_format_has_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"f.hdf5"):
        import_episodes(Robomimic(tmp_path / "f.hdf5"), tmp_path / "out")


def test_an_argument_that_is_empty_is_a_variable_that_is_not_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "crossing-v0", "--out", ""]) == 2
    assert "is followed by nothing" in capsys.readouterr().err
