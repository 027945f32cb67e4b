"""The command line, end to end through ``main``, on a store of a few short episodes and a tiny network."""

import dataclasses
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest

import diffplan as dp
from diffplan.cli import main, parse
from diffplan.commands import COMMANDS
from diffplan.commands.group import Group
from diffplan.datasets import TrajectoryStore
from diffplan.guidance_sweep import sweep_guidance
from diffplan.planners import DiffusionPlanner, RecedingHorizonPolicy
from diffplan.trajectory import Plan

SHORT = ("--option", "max_steps=12")
SIZES = (
    "--horizon",
    "8",
    "--width",
    "8",
    "--depth",
    "1",
    "--batch-size",
    "4",
    "--steps",
    "6",
    "--checkpoint-every",
    "3",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "crossing"
    collect = ["collect", "crossing-v0", "--out", str(path), "--episodes", "4", "--workers", "0", "--json"]
    assert main([*collect, *SHORT, "--option", "num_robots=3"]) == 0
    return path


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "crossing"
    assert main(["train", str(store), "--out", str(path), "--json", *SIZES]) == 0
    return path


def answer(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, object]:
    """What a command answers with --json."""
    assert main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys: pytest.CaptureFixture[str], *args: object, code: int = 1) -> str:
    """The one line in which a command says why it failed."""
    assert main([*map(str, args)]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("diffplan"), said
    return said


def flattened(commands: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command and group by its whole name, such as "data info"."""
    for name, command in commands.items():
        yield before + name, command
        if isinstance(command, Group):
            yield from flattened(command.load(), f"{before}{name} ")


@pytest.mark.parametrize(
    ("name", "command"), [pair for pair in flattened(COMMANDS) if isinstance(pair[1], type | Group)]
)
def test_the_help_of_a_command_shows_examples_that_it_understands(
    name: str, command: Any, capsys: pytest.CaptureFixture[str]
):
    assert main([*name.split(), "--help"]) == 0
    lines = map(str.strip, capsys.readouterr().out.splitlines())
    examples = [line for line in lines if line.startswith(f"diffplan {name} ") or line == f"diffplan {name}"]
    assert examples
    for example in examples:
        parsed = parse(shlex.split(example)[1:])
        assert isinstance(command, Group) or isinstance(parsed, command)


def test_the_main_help_names_every_command_and_shows_the_way(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"• {name} " in said for name in COMMANDS)
    for line in said.splitlines():
        if line.startswith("  diffplan "):
            parse(shlex.split(line)[1:])


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("collect", dp.collect_episodes),
        ("train", dp.train),
        ("finetune", dp.finetune),
        ("evaluate", dp.evaluate),
        ("evaluate", RecedingHorizonPolicy),
        ("team", dp.run_team),
    ],
)
def test_a_flag_has_the_default_of_the_argument_that_it_is_named_after(command: str, function: Callable):
    arguments = inspect.signature(function).parameters
    flags = {f.name: f.default for f in dataclasses.fields(COMMANDS[command]) if f.default is not dataclasses.MISSING}
    defaults = {name: one.default for name, one in arguments.items() if one.default is not inspect.Parameter.empty}
    shared = flags.keys() & defaults.keys()
    assert len(shared) > 2
    assert {name: flags[name] for name in shared} == {name: defaults[name] for name in shared}


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffplan {dp.__version__}\n"


def test_who_stops_reading_ends_the_command_quietly(store: Path):
    command = [sys.executable, "-m", "diffplan", "data", "info", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_a_collected_store_is_described_as_json(store: Path, capsys: pytest.CaptureFixture[str]):
    info = answer(capsys, "data", "info", store)
    assert info["episodes"] == 4
    assert list(info["agents"]) == ["robot_0", "robot_1", "robot_2"]
    assert main(["data", "info", str(store)]) == 0
    assert f"{'episodes':<16} 4" in capsys.readouterr().out


def test_collecting_again_goes_on_where_it_ended(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(store, tmp_path / "more")
    options = (*SHORT, "--option", "num_robots=3", "--workers", 0)
    info = answer(capsys, "collect", "crossing-v0", "--out", tmp_path / "more", "--episodes", 5, *options)
    assert info["episodes"] == 5
    first, longer = TrajectoryStore.open(store)[3], TrajectoryStore.open(tmp_path / "more")[3]
    assert (first.observations == longer.observations).all()


def test_verify_names_the_file_in_which_a_bit_flipped(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert answer(capsys, "data", "verify", store)["verified"] is True
    shutil.copytree(store, tmp_path / "damaged")
    file = next((tmp_path / "damaged").glob("*/actions.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert str(file) in complaint(capsys, "data", "verify", tmp_path / "damaged")


def test_a_truncated_store_is_refused_before_training(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(store, tmp_path / "damaged")
    file = next((tmp_path / "damaged").glob("*/observations.npy"))
    file.write_bytes(file.read_bytes()[:-8])
    assert "observations.npy" in complaint(capsys, "train", tmp_path / "damaged", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_resumed_from_a_checkpoint_ends_in_the_same_planner(
    store: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/planner")
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000006")
    assert answer(capsys, "train", store, "--out", tmp_path / "run", "--resume", *SIZES)["steps"] == 6
    weights, resumed = (p.read_bytes() for p in (weights_of(run), weights_of(tmp_path / "run")))
    assert weights == resumed


def weights_of(run: Path) -> Path:
    return next((run / "planner/denoiser").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((), "--resume"),
        (("--resume", "--width", "16"), "width"),
        (("--resume", "--normalizer", "quantile"), "quantile"),
        (("--resume", "--best", "0.5"), "windows"),
    ],
)
def test_a_run_is_neither_overwritten_nor_resumed_otherwise(
    flags: tuple[str, ...], named: str, store: Path, run: Path, capsys: pytest.CaptureFixture[str]
):
    before = weights_of(run).read_bytes()
    assert named in complaint(capsys, "train", store, "--out", run, *SIZES, *flags)
    assert weights_of(run).read_bytes() == before


def test_a_plan_is_drawn_saved_and_the_same_for_the_same_seed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    picture, file = tmp_path / "plan.png", tmp_path / "plan.safetensors"
    first = answer(capsys, "plan", run, "--seed", 3, "--num-samples", 2, "--plot", picture, "--out", file)
    again = answer(capsys, "plan", run, "--seed", 3, "--num-samples", 2)
    other = answer(capsys, "plan", run, "--seed", 4, "--num-samples", 2)
    assert first["actions_at_0"] == again["actions_at_0"] != other["actions_at_0"]
    assert Plan.load(file).num_samples == 2
    assert iio.imread(picture).std() > 0


def test_the_scheduler_is_chosen_at_plan_time(run: Path, capsys: pytest.CaptureFixture[str]):
    few = ("plan", run, "--num-samples", 1)
    plans = {name: answer(capsys, *few, "--scheduler", name)["actions_at_0"] for name in ("flow", "ddim", "dpm")}
    assert plans["flow"] == answer(capsys, *few)["actions_at_0"]
    assert len({str(first) for first in plans.values()}) == 3


def test_an_evaluation_reports_every_episode(run: Path, capsys: pytest.CaptureFixture[str]):
    report = answer(capsys, "evaluate", run, "--episodes", 3, "--batch-size", 2)
    assert len(report["returns"]) == 3
    assert max(report["steps"]) <= 12
    assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    assert f"{'success':<16} 0 [0, 0.658]" in capsys.readouterr().out


def test_guided_plans_and_safe_episodes(run: Path, capsys: pytest.CaptureFixture[str]):
    guides = ("--guide", "separation=10", "--guide", "speed:0.5=1")
    few = ("plan", run, "--num-samples", 4)
    plain, guided = (answer(capsys, *few, *flags) for flags in ((), guides))
    assert "values" in guided["plan"] and "values" not in plain["plan"]
    assert guided["actions_at_0"] != plain["actions_at_0"]
    few = ("evaluate", run, "--episodes", 2, "--num-samples", 2)
    returns = [answer(capsys, *few, *flags)["returns"] for flags in ((), guides, ("--realism", 1))]
    assert returns[0] not in returns[1:]
    assert main(["evaluate", str(run), "--episodes", "2", "--safe"]) == 0
    assert f"{'filter':<16} changed 0 of 24 joint actions, 0 infeasible" in capsys.readouterr().out
    counted = answer(capsys, "evaluate", run, "--episodes", 2, "--safe")["filter"]
    assert (counted["changed"], counted["calls"], counted["infeasible"]) == (0, 24, 0)


def test_a_sweep_over_a_guides_weight_is_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "guidance.png"
    weights = ("--guide", "separation:2.5", "--weights", 0, 1000)
    table = answer(capsys, "guidance", run, *weights, "--episodes", 2, "--plot", picture)
    assert list(table) == ["separation:2.5 0", "separation:2.5 1000"]
    assert {"realism", "guides", "success", "contacts"} <= set(table["separation:2.5 0"])
    free, guided = table.values()  # robots begin closer than 2.5 m to each other
    assert guided["guides"]["value"] != free["guides"]["value"]
    assert iio.imread(picture).std() > 0


def test_a_sweep_takes_an_environment_by_its_name_as_evaluation_does(run: Path):
    planner = DiffusionPlanner.from_pretrained(run).for_agents(dp.make("crossing-v0").joint_spec)
    named, made = (
        sweep_guidance(planner, env, lambda w: [dp.ConstraintGuide.separation(0.2, w)], [1.0], episodes=2)
        for env in ("crossing-v0", dp.make("crossing-v0"))
    )
    assert named == made


def test_a_sweep_that_cannot_be_made_is_refused_before_any_episode(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diffplan.guidance_sweep.evaluate", None)
    planner, env = DiffusionPlanner.from_pretrained(run), dp.make("crossing-v0")
    for levels, weights, named in (((0, 1), (0, 1, -1), "weight=-1"), (None, (0, 1), "only rank candidates")):
        with pytest.raises(ValueError, match=named):
            sweep_guidance(
                planner, env, lambda w, levels=levels: [dp.ConstraintGuide.separation(0.2, w, levels)], weights
            )
    with pytest.raises(ValueError, match="episodes=0; it must be at least 1"):
        sweep_guidance(planner, env, lambda w: [], [0.0], episodes=0)


def test_a_value_function_is_trained_into_a_planner_that_is_there(
    store: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(run, tmp_path / "run")
    assert "no value function" in complaint(capsys, "plan", copy, "--guide", "value=1")
    assert main(["train", str(store), "--out", str(copy), "--resume", *SIZES, "--value-steps", "3"]) == 0
    assert "nan" not in "".join(capsys.readouterr())  # no step is left, so there is no loss to show
    assert DiffusionPlanner.from_pretrained(copy).value_function is not None
    assert "values" in answer(capsys, "plan", copy, "--guide", "value=1", "--num-samples", 2)["plan"]


def test_what_training_cannot_do_is_refused_before_it_begins(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    assert "--value-steps -1; give 0" in complaint(capsys, "train", store, "--out", out, *SIZES, "--value-steps", "-1")
    track = tmp_path / "track.csv"
    track.write_text("time,agent,x,y\n" + "".join(f"{t},a,{t},0\n" for t in range(12)))
    assert main(["data", "import", "table", str(track), "--out", str(tmp_path / "data"), "--rate", "1"]) == 0
    capsys.readouterr()
    for flags in (("--best", "0.5"), ("--return-conditioning",)):
        said = complaint(capsys, "train", tmp_path / "data", "--out", out, "--horizon", "4", *flags)
        assert "all episodes have the same return" in said
    assert not out.exists()


def test_a_planner_is_fine_tuned_and_its_curve_drawn(
    run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, brief = tmp_path / "better", ("--critic-steps", "2", "--num-samples", "2", "--evaluation-episodes", "2")
    command = ("finetune", run, "--data", store, "--out", out, "--steps", "40", "--episodes", "2", *brief, "--safe")
    first = answer(capsys, *command)
    assert (first["method"], first["steps"]) == ("critic", 48)
    assert answer(capsys, *command, "--resume")["best"] == first["best"]
    assert "holds a run already; go on by resume=True (--resume)" in complaint(capsys, *command)
    drawn = answer(capsys, "plot", out, "--kind", "finetuning", "--out", tmp_path / "curve.png")["out"]
    assert iio.imread(drawn).std() > 1
    assert parse(shlex.split(first["act with"])[1:])
    best, began, offline = (first[name]["value"] for name in ("best", "began", "offline"))
    assert ("because" in first) == (best < offline or best <= began)
    trial = ("finetune", run, "--data", store, "--out", tmp_path / "tried", "--method", "gradient", "--steps", "20")
    tried = answer(capsys, *trial, "--episodes", "2", *brief)
    worse = tried["best"]["value"] < tried["offline"]["value"]
    assert tried["act with"] == f"diffplan evaluate {run if worse else tmp_path / 'tried'}"
    each = answer(capsys, *command[:5], tmp_path / "each", *command[6:], "--each")
    assert "success" in answer(capsys, *shlex.split(each["act with"])[1:], "--episodes", "2")
    assert "holds a planner for every agent; name one of them" in complaint(capsys, "plan", tmp_path / "each")


def test_options_lead_to_another_environment_than_that_of_the_data(run: Path, capsys: pytest.CaptureFixture[str]):
    assert len(DiffusionPlanner.from_pretrained(run).spec.agents) == 3
    assert len(answer(capsys, "plan", run)["actions_at_0"]) == 3
    assert len(answer(capsys, "plan", run, "--option", "num_robots=5")["actions_at_0"]) == 5
    assert len(answer(capsys, "plan", run, "--env", "crossing-v0")["actions_at_0"]) == 4


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plan", "plan.png"),
        ("denoising", "denoising.gif"),
        ("denoising", "denoising.png"),
        ("rollout", "rollout.mp4"),
        ("filmstrip", "filmstrip.png"),
        ("learning-curve", "loss.png"),
    ],
)
def test_a_run_is_drawn(kind: str, name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = () if kind == "learning-curve" else ("--num-samples", 2)
    written = answer(capsys, "plot", run, "--kind", kind, "--out", tmp_path / name, *few)["out"]
    assert Path(written).read_bytes()[4:8] == b"ftyp" if name.endswith(".mp4") else iio.imread(written).std() > 0
    assert os.listdir(tmp_path) == [name]


def test_a_store_is_drawn(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written = answer(capsys, "plot", store, "--kind", "dataset", "--out", tmp_path / "data.svg")["out"]
    assert Path(written).read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("collect warehouse-v0 --out OUT", "crossing-v0"),
        ("collect crossing-v0 --out OUT --option robots=3", "robots"),
        ("collect crossing-v0 --out OUT --option robots", "NAME=VALUE"),
        ("collect crossing-v0 --out OUT --option num_robots=[3]", "one plain value"),
        ("collect crossing-v0 --out OUT --option num_robots=99", "2 to 16"),
        ("collect crossing-v0 --out OUT --style sideways", "clockwise"),
        ("collect crossing-v0 --out FILE/store --workers 0", "FILE"),
        ("data info OUT", "diffplan collect"),
        ("train OUT --out OUT", "diffplan collect"),
        ("train STORE --out OUT --horizon 30 --patch-size 4", "patch_size=4"),
        ("train STORE --out FILE/run", "FILE"),
        ("plan OUT", "diffplan train"),
        ("plan STORE", "is a store of episodes, no planner"),
        ("plan RUN --forecast STORE:99", "the store has the episodes 0 to"),
        ("plan RUN --forecast STORE", "or STORE:EPISODE"),
        ("plan RUN --given robot_0=stay --given robot_0=straight", "--given tells robot_0 2 things"),
        ("plan RUN --given robot_0=fly", "fly is neither straight nor stay"),
        ("plan RUN --resample --num-samples 1 --guide separation=1", "num_samples=2 or more"),
        ("train STORE --out STORE", "is a store of episodes, no run; choose another folder"),
        ("train STORE --out PLANNER", "is a saved planner itself, no run"),
        ("finetune RUN --data STORE --out STORE", "is a store of episodes, no run; choose another folder"),
        ("finetune RUN --data STORE --out PLANNER", "is a saved planner itself, no run"),
        ("evaluate RUN --guide rank=1", "--guide rank=1 ranks candidates; give more"),
        ("plan RUN --num-samples 1 --guide rank=1", "--guide rank=1 ranks candidates; give more"),
        ("evaluate RUN --realism 1", "--realism ranks candidates; give more"),
        ("evaluate RUN --refine-price 0.5", "give that, too, e.g. --refine 1"),
        ("finetune RUN --data STORE --out OUT --guided", "of a --refine that is given"),
        ("plan RUN --env transport-v0", "role"),
        ("plan RUN --num-samples 0", "num_samples=0"),
        ("plan RUN --out FILE/plan.safetensors", "FILE"),
        ("plan RUN --plot plan.xyz", "xyz"),
        ("evaluate RUN --episodes 0", "episodes=0"),
        ("evaluate RUN --execute-steps 9", "execute_steps=9"),
        ("evaluate RUN --episodes 1 --warm-start-level 2", "warm_start_level=2"),
        ("plot RUN --kind rollout --out OUT.png", ".mp4"),
        ("plot STORE --kind dataset --out OUT.png --env nonsense", "--env changes nothing of --kind dataset"),
        ("plot STORE --kind dataset --out OUT.png --option bogus=1", "--option changes nothing of --kind dataset"),
        ("plot RUN --kind learning-curve --out OUT.png --seed 1", "--seed changes nothing of --kind learning-curve"),
        ("plot RUN --kind belief --out OUT.png --num-inference-steps 9", "--num-inference-steps changes nothing of"),
        ("plot RUN --kind plan --out OUT.png --execute-steps 999", "--kind plan, only of rollout, filmstrip"),
        ("plot STORE --kind learning-curve --out OUT.png", "metrics.jsonl is not there; name the folder"),
    ],
)
def test_an_error_is_one_line_that_names_it(
    line: str, named: str, store: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "FILE").touch()
    places = {"OUT": tmp_path / "OUT", "FILE": tmp_path / "FILE", "STORE": store, "RUN": run}
    places["PLANNER"] = run / "planner"
    for word, place in places.items():
        line = " ".join(part.replace(word, str(place)) if part.startswith(word) else part for part in line.split())
    assert named in complaint(capsys, *line.split())
    assert sorted(os.listdir(tmp_path)) == ["FILE"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("tarin data --out run", "train"),
        ("train data --out run --step 3", "--steps"),
        ("train data --out run --steps three", "--steps"),
        ("train --out run", "PATH"),
        ("data inspect data", "info"),
        ("plan run --scheduler euler", "flow"),
        ("plan run --seed -1", "--seed -1: seeds are 0 or more, and below 2^63"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(line: str, named: str, capsys: pytest.CaptureFixture[str]):
    assert named in complaint(capsys, *line.split(), code=2)


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)


def test_where_actions_are_refined_there_are_candidates_to_rank():
    COMMANDS["evaluate"](Path("run"), guide=["rank=1"], refine=1.0)._check()
    with pytest.raises(ValueError, match="ranks candidates; give more of them"):
        COMMANDS["evaluate"](Path("run"), guide=["rank=1"])._check()


def test_debug_shows_the_error_itself(tmp_path: Path):
    with pytest.raises(ValueError, match="not a trajectory store"):
        main(["data", "info", str(tmp_path), "--debug"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_collection_keeps_a_whole_store(number: int, code: int, tmp_path: Path):
    path, ended = tmp_path / "store", threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may ignore Ctrl-C
    stopper = threading.Thread(target=stop_when_there, args=(path / "manifest.json", number, ended))
    stopper.start()
    collect = ["collect", "crossing-v0", "--out", str(path), "--episodes", "10000", "--workers", "0", "--json", *SHORT]
    try:
        assert main(collect) == code
    finally:
        ended.set()
        stopper.join()
        signal.signal(signal.SIGINT, before)
    store = TrajectoryStore.open(path)
    store.verify()
    assert 0 < len(store) < 10_000


def stop_when_there(path: Path, number: int, ended: threading.Event) -> None:
    """Sends this process a signal, a moment after ``path`` exists."""
    while not path.exists() and not ended.is_set():
        time.sleep(0.01)
    if not ended.wait(0.3):
        os.kill(os.getpid(), number)


def test_the_doctor_answers_as_json(capsys: pytest.CaptureFixture[str]):
    code = main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)
    assert code == any(check["required"] and not check["ok"] for check in checks)
