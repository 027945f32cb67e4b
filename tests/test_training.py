import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import diffplan as dp
from diffplan.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from diffplan.files import alone
from diffplan.planners.estimator import uses_bfloat16
from diffplan.training import check_world_size
from diffplan.training_loop import DenoiserRun

SIZES = {"width": 16, "depth": 1}
RUN = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "log_every": 1, "progress": False}


def fresh(store: Path) -> tuple[dp.DiffusionPlanner, dp.TrajectoryDataset]:
    dataset = dp.load_dataset(store, horizon=8)
    return dp.DiffusionPlanner.for_dataset(dataset, **SIZES), dataset


def weights(planner: dp.DiffusionPlanner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in planner.denoiser.state_dict().items()}


def test_training_lowers_the_loss(crossing_store: Path) -> None:
    planner, dataset = fresh(crossing_store)
    report = dp.train(planner, dataset, steps=120, batch_size=32, log_every=1, progress=False, learning_rate=3e-3)
    assert np.mean(report.losses[-20:]) < 0.5 * np.mean(report.losses[:5])
    assert repr(report).startswith(f"TrainingReport(loss {report.losses[0]:.3g} to {report.losses[-1]:.3g} by step 120")


def test_the_same_seed_trains_the_same_weights_and_another_seed_others(crossing_store: Path) -> None:
    trained = []
    for seed in (0, 0, 1):
        planner, dataset = fresh(crossing_store)
        dp.train(planner, dataset, **RUN, seed=seed)
        trained.append(weights(planner)["project.weight"])
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_a_run_writes_a_planner_metrics_and_the_newest_checkpoints(crossing_store: Path, tmp_path: Path) -> None:
    planner, dataset = fresh(crossing_store)
    dp.train(planner, dataset, **RUN, out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000004", "step_00000006"]
    train_again = {**RUN, "checkpoint_every": 4}
    dp.train(dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1), dataset, out=tmp_path / "last", **train_again)
    assert [path.name for path in checkpoints(tmp_path / "last" / "checkpoints")] == ["step_00000004", "step_00000006"]
    reloaded = dp.DiffusionPlanner.from_pretrained(tmp_path)
    assert all(torch.equal(value, weights(reloaded)[name]) for name, value in weights(planner).items())
    assert reloaded.config.action_spread == planner.config.action_spread > 0
    assert reloaded.for_agents(reloaded.spec).config.action_spread == planner.config.action_spread


KILLED = """
import sys, diffplan as dp
if __name__ == "__main__":
    dataset = dp.load_dataset(sys.argv[1], horizon=8)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=16, depth=1)
    dp.train(planner, dataset, steps=100_000, batch_size=4, checkpoint_every=2, log_every=1, progress=False,
    out=sys.argv[2])
"""


def test_a_run_killed_at_any_moment_resumes_to_the_bit(crossing_store: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(crossing_store), str(tmp_path / "killed")]
    with subprocess.Popen(command, env=environment) as process:
        while len(checkpoints(tmp_path / "killed" / "checkpoints")) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    reached = int(checkpoints(tmp_path / "killed" / "checkpoints")[-1].name.removeprefix("step_"))
    long = {**RUN, "steps": 100_000}
    resumed, straight = (until(crossing_store, tmp_path / name, reached + 3, long) for name in ("killed", "straight"))
    assert resumed == straight


def test_a_run_has_its_folder_to_itself(crossing_store: Path, tmp_path: Path) -> None:
    planner, dataset = fresh(crossing_store)
    with alone(tmp_path), pytest.raises(ValueError, match="is being written by another process"):
        dp.train(planner, dataset, **RUN, out=tmp_path)
    assert not any(tmp_path.iterdir())
    assert len(dp.train(planner, dataset, **RUN, out=tmp_path).losses) == RUN["steps"]
    with alone(tmp_path):  # whose lock has gone with it
        pass


def test_a_run_keeps_what_it_did_until_ctrl_c_amid_a_step(crossing_store: Path, tmp_path: Path, monkeypatch) -> None:
    planner, dataset = fresh(crossing_store)
    update = DenoiserRun.update

    def interrupted(run: DenoiserRun, loss: torch.Tensor, rate: float, step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        update(run, loss, rate, step)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run side by side it is ignored
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(DenoiserRun, "update", interrupted)
            dp.train(planner, dataset, **RUN | {"checkpoint_every": 100}, out=tmp_path / "cut")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in checkpoints(tmp_path / "cut" / "checkpoints")] == ["step_00000004"]
    losses = []
    for name, resume in (("cut", True), ("straight", False)):
        planner, dataset = fresh(crossing_store)
        counted = RUN | {"seed": np.int64(0)}  # as numpy's arrays hold them
        losses.append(dp.train(planner, dataset, **counted, out=tmp_path / name, resume=resume).losses)
    assert losses[0] == losses[1] and len(losses[0]) == 6


def until(store: Path, out: Path, step: int, run: dict) -> list[tuple[int, float]]:
    """Trains (or resumes) until a step and returns all losses up to it."""
    planner, dataset = fresh(store)
    draw = dataset.sample

    def sample(batch_size: int, rng: np.random.Generator, *args: object) -> object:
        rows = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        if rows and json.loads(rows[-1])["step"] >= step:
            raise KeyboardInterrupt
        return draw(batch_size, rng, *args)

    dataset.sample = sample  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        dp.train(planner, dataset, **run, out=out, resume=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def test_a_damaged_checkpoint_is_refused_and_named(crossing_store: Path, tmp_path: Path) -> None:
    planner, dataset = fresh(crossing_store)
    dp.train(planner, dataset, **RUN, out=tmp_path)
    file = checkpoints(tmp_path / "checkpoints")[-1] / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="step_00000006/state.safetensors is damaged"):
        dp.train(planner, dataset, **RUN, out=tmp_path, resume=True)


@pytest.mark.parametrize("change", [lambda facts: facts | {"step": 9}, lambda facts: {}, lambda facts: []])
def test_a_checkpoint_that_says_something_else_is_refused_and_named(change, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, {"weight": torch.zeros(2)}, {"run": {"rate": 0.1}})
    (path,) = checkpoints(tmp_path)
    assert load_checkpoint(path)[1]["step"] == 3
    facts = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(change(facts)))
    with pytest.raises(ValueError, match=r"step_00000003/manifest.json is damaged, or .*; delete .*step_00000003"):
        load_checkpoint(path)


def test_a_full_disk_leaves_the_earlier_checkpoints_and_says_what_to_do(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"weight": torch.zeros(10)}, {})
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*step_00000002 .*File too large.*; what .*free some space"):
            save_checkpoint(tmp_path, 2, {"weight": torch.zeros(1_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_run_is_not_overwritten_unasked(crossing_store: Path, tmp_path: Path) -> None:
    planner, dataset = fresh(crossing_store)
    dp.train(planner, dataset, **RUN, out=tmp_path)
    with pytest.raises(ValueError, match="holds a run already; go on by resume=True"):
        dp.train(planner, dataset, **RUN, out=tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_holds_a_planner_and_nothing_to_go_on_from_is_left_alone(
    crossing_store: Path, tmp_path: Path, resume: bool
) -> None:
    planner, dataset = fresh(crossing_store)
    planner.save_pretrained(tmp_path / "planner")
    with pytest.raises(ValueError, match="holds a planner, but no checkpoints to go on from"):
        dp.train(planner, dataset, **RUN, out=tmp_path, resume=resume)


def test_a_gpu_computes_in_bfloat16_where_it_need_not_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for can in (False, True):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, can=can: can or including_emulation
        )
        assert uses_bfloat16("auto", on_cuda=True) is can


def test_a_checkpoint_of_other_settings_or_data_is_refused(crossing_store: Path, tmp_path: Path) -> None:
    planner, dataset = fresh(crossing_store)
    dp.train(planner, dataset, **RUN, out=tmp_path / "run")
    with pytest.raises(ValueError, match="is of another run: {'seed': 0} there, {'seed': 3} here"):
        dp.train(planner, dataset, **RUN, out=tmp_path / "run", resume=True, seed=3)
    other = "float32" if uses_bfloat16("auto", torch.cuda.is_available()) else "bfloat16"
    with pytest.raises(ValueError, match="is of another run: {'bfloat16'"):
        dp.train(planner, dataset, **RUN, out=tmp_path / "run", resume=True, precision=other)
    other = dp.collect_episodes(
        "crossing-v0", out=tmp_path / "other", episodes=2, workers=0, env_options={"num_robots": 2}, progress=False
    )
    foreign = dp.TrajectoryDataset(other, horizon=8, normalizer=dataset.normalizer)
    with pytest.raises(ValueError, match="is of another run: {'data'"):
        dp.train(planner, foreign, **RUN, out=tmp_path / "run", resume=True)
    some = {"horizon": 8, "normalizer": dataset.normalizer, "episodes": dataset.episodes[:-1]}
    others = dp.TrajectoryDataset(dataset.store, **some)
    with pytest.raises(ValueError, match="is of another run: {'windows'"):
        dp.train(planner, others, **RUN, out=tmp_path / "run", resume=True)
    other = dp.Normalizer.fit(dataset.store, episodes=[0])
    planner.register_modules(normalizer=other)
    dataset = dp.TrajectoryDataset(dataset.store, horizon=8, normalizer=other)
    with pytest.raises(ValueError, match="is of another run: {'normalizer'"):
        dp.train(planner, dataset, **RUN, out=tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_place(crossing_store: Path) -> None:
    planner, dataset = fresh(crossing_store)
    draw = dataset.sample

    def sample(*args: object) -> object:
        windows = draw(*args)
        windows.cells[1, 0, 3, 2] = np.nan
        return windows

    dataset.sample = sample  # type: ignore[method-assign]
    with pytest.raises(
        FloatingPointError, match=r"the data are not finite at episode \d+, cell 3 of the window of step \d+, agent 0"
    ):
        dp.train(planner, dataset, **RUN)


def test_networks_compute_in_bfloat16_but_data_are_not_rounded(crossing_store: Path, monkeypatch) -> None:
    """Turning and scaling positions (``Augmentation``) is a product of matrices, which autocast would round."""
    planner, dataset = fresh(crossing_store)
    rounds, make = {"data": set(), "network": set()}, dp.Exercises.__call__

    def made(exercises: dp.Exercises, *windows: object) -> object:
        rounds["data"].add(torch.is_autocast_enabled("cpu"))
        return make(exercises, *windows)

    monkeypatch.setattr(dp.Exercises, "__call__", made)
    planner.denoiser.register_forward_pre_hook(lambda *_: rounds["network"].add(torch.is_autocast_enabled("cpu")))
    dp.train(planner, dataset, **RUN | {"precision": "bfloat16", "steps": 1})
    assert rounds["data"] == {False} and True in rounds["network"]
    futures = dp.Futures.of(dp.DiffusionPlanner.for_dataset(dataset, **SIZES), 2)
    monkeypatch.setattr("diffplan.futures_training.uses_bfloat16", lambda *_: True)
    dp.train_futures(futures, dataset, steps=1, batch_size=4, progress=False)
    assert rounds["data"] == {False}


def test_averages_hold_buffers_too_and_shared_weights_are_refused(tmp_path: Path) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.norm = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.norm(self.blocks(inputs))

    run, resumed = (DenoiserRun(Network(), learning_rate=0.1, ema_decay=0.0, half=False) for _ in range(2))
    run.update(run.networks(torch.randn(8, 4)).square().mean(), 0.1, step=0)
    assert run.networks.norm.num_batches_tracked == 1
    save_checkpoint(tmp_path, 1, run.tensors(), {})
    resumed.load(load_checkpoint(checkpoints(tmp_path)[0])[0])
    for name, now in run.networks.state_dict().items():
        assert torch.equal(run.ema[name], now) and torch.equal(resumed.networks.state_dict()[name], now)
    tied = Network()
    tied.again = tied.blocks
    with pytest.raises(ValueError, match=r"\['again.bias', 'again.weight'\] are weights that stand elsewhere, too"):
        DenoiserRun(tied, learning_rate=0.1, ema_decay=0.0, half=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"log_every": 0}, "log_every=0; it must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every=0; it must be at least 1"),
        ({"start_share": 25}, "start_share=25; it is a share of the windows, 0 to 1"),
        ({"learning_rate": 0}, "learning_rate=0, ema_decay=0.999; the first is above 0, the second 0 to below 1"),
        ({"ema_decay": -1.0}, "ema_decay=-1.0; the first is above 0, the second 0 to below 1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0; the first is above 0, the second 0 to below 1"),
        ({"change_weight": -1}, "change_weight=-1; give a number, 0 or more"),
        ({"change_weight": float("nan")}, "change_weight=nan; give a number, 0 or more"),
        ({"action_weight": -1}, "action_weight=-1; give a number, 0 or more"),
        ({"precision": "half"}, "choose 'auto', 'float32' or 'bfloat16'"),
        ({"resume": True}, "resume=True needs out="),
    ],
)
def test_arguments_that_make_no_sense_are_refused(crossing_store: Path, arguments: dict, message: str) -> None:
    planner, dataset = fresh(crossing_store)
    with pytest.raises(ValueError, match=message):
        dp.train(planner, dataset, **{**RUN, **arguments})


def test_planner_and_dataset_must_fit(crossing_store: Path) -> None:
    planner, dataset = fresh(crossing_store)
    with pytest.raises(TypeError, match="dataset is a TrajectoryStore; pass windows of it, load_dataset"):
        dp.train(planner, dataset.store, **RUN)
    with pytest.raises(TypeError, match="dataset is a TrajectoryStore; pass windows of it, load_dataset"):
        dp.train_value(dp.ValueFunction.for_dataset(dataset), dataset.store)
    with pytest.raises(ValueError, match=r"the dataset has no normalizer; load it with load_dataset"):
        dp.DiffusionPlanner.for_dataset(dataset.store)
    with pytest.raises(ValueError, match="the planner has horizon=8, history=0, the dataset horizon=4"):
        dp.train(planner, dp.load_dataset(crossing_store, horizon=4), **RUN)
    with pytest.raises(ValueError, match="normalised otherwise"):
        dp.train(planner, dp.load_dataset(crossing_store, horizon=8, normalizer="limits"), **RUN)
    center, scale = (np.array(planner.normalizer.config[key]) for key in ("center", "scale"))
    wider = dp.Normalizer("gaussian", center.tolist(), (2 * scale).tolist())
    with pytest.raises(ValueError, match="normalised otherwise"):
        dp.train(planner, dp.load_dataset(crossing_store, horizon=8, normalizer=wider), **RUN)


def test_a_launcher_whose_processes_did_not_join_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="WORLD_SIZE=2, but 1 process.*torchrun --nproc_per_node 2"):
        check_world_size(1)


@pytest.mark.slow
def test_two_processes_train_one_planner_together(crossing_store: Path, tmp_path: Path) -> None:
    arguments = ["--steps", "3", "--batch-size", "8", "--width", "16", "--depth", "1", "--horizon", "8"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "diffplan", "train"]
    command = [*launcher, str(crossing_store), "--out", str(tmp_path / "two"), *arguments]
    subprocess.run(command, check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    trained = dp.DiffusionPlanner.from_pretrained(tmp_path / "two")
    untrained, _ = fresh(crossing_store)
    assert not torch.equal(weights(trained)["project.weight"], weights(untrained)["project.weight"])
    assert all(torch.isfinite(value).all() for value in weights(trained).values())
