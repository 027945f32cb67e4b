"""Teams of real processes, with a planner that is tiny and untrained; slow, for every robot loads torch."""

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import diffplan as dp
from diffplan.cli import main
from diffplan.commands.teams import parse_kills, print_report
from diffplan.planners import make_scheduler
from diffplan.planners.manners import Manners
from diffplan.planners.member import TeamMember
from diffplan.processes.robot import load_member
from diffplan.processes.team import MODES, TeamReport, run_team
from diffplan.processes.world import EpisodeReport, RobotReport


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved planner for four robots that swap places."""
    folder = tmp_path_factory.mktemp("runs") / "planner"
    spec = dp.make("crossing-v0", num_robots=4).joint_spec
    denoiser = dp.JointDenoiser(size=spec.size, window=8, patch_size=8, width=16, depth=1).eval()
    normalizer = dp.Normalizer("gaussian", [[0.0] * spec.size], [[1.0] * spec.size])
    dp.DiffusionPlanner(denoiser, make_scheduler("flow"), normalizer, spec, 8, 0).save_pretrained(folder)
    return folder


def robots_of(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """The robots' processes below this one, or below another."""
    children = (parent or psutil.Process()).children(recursive=True)
    return [child for child in children if "diffplan.processes.robot" in child.cmdline()]


@pytest.fixture
def team(planner: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """``diffplan team`` in a process of its own, and its two robots."""
    command = [sys.executable, "-m", "diffplan", "team", str(planner), "--robots", "2", "--seconds", "600", "--json"]
    heeded = functools.partial(
        signal.signal, signal.SIGINT, signal.default_int_handler
    )  # shells' background ignores it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeded) as process:
        try:
            end = time.monotonic() + 120
            while len(robots_of(psutil.Process(process.pid))) < 2:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.1)
            yield process, robots_of(psutil.Process(process.pid))
        finally:
            process.kill()


@pytest.mark.slow
def test_killing_a_robot_leaves_the_others_planning(planner: Path, capsys: pytest.CaptureFixture[str]):
    command = [
        "team",
        str(planner),
        "--rate",
        "5",
        "--seconds",
        "6",
        "--kill",
        "robot_1@10",
        "--seed",
        "5000",
        "--json",
    ]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    dead, *others = (report["robots"][name] for name in ("robot_1", "robot_0", "robot_2", "robot_3"))
    assert dead["ended_at"] == 10 and dead["planning"]["answers"] <= 10
    for robot in others:
        assert robot["ended_at"] is None
        assert robot["planning"]["answers"] > 10  # so it went on when the other had gone
        assert robot["planning"]["answers"] + robot["missed"] == report["steps"]
        assert robot["counters"]["heard"] > 0
    assert not robots_of()


def running(robots: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Who still runs after so long; one that has ended but that its new parent has not collected yet does not."""

    def runs(robot: psutil.Process) -> bool:
        try:
            return robot.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return list(filter(runs, psutil.wait_procs(robots, timeout=seconds)[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_no_robot_outlives_a_command_that_is_stopped(team: tuple, number: signal.Signals, code: int):
    process, robots = team
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == code and "Traceback" not in said
    assert not running(robots, seconds=1)


def test_robots_that_are_silent_draw_noise_of_their_own():
    assert not Manners(**MODES["private"]).shared_seed and Manners(**MODES["shared"]).shared_seed


@pytest.mark.slow
def test_no_robot_outlives_a_parent_that_dies(team: tuple):
    process, robots = team
    process.kill()
    assert not running(robots, seconds=30)


def test_a_robot_that_cannot_start_says_why(planner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nread settings\necho Traceback >&2\necho 'ImportError: no torch' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    others = psutil.Process().children()  # a pool's resource tracker, where another test had one
    with pytest.raises(RuntimeError, match=r"robot_0 did not start \(exit code 1: ImportError: no torch\)"):
        run_team(planner, dp.make("crossing-v0", num_robots=2))
    assert psutil.Process().children() == others


def test_a_planner_for_other_robots_is_refused_before_a_process_starts(planner: Path):
    with pytest.raises(ValueError, match="the environment has agents of role|role 'robot': the planner has"):
        run_team(planner, dp.make("transport-v0"))


def test_a_robot_that_was_too_slow_for_some_steps_goes_on_where_its_plan_would_be_by_now(planner: Path):
    env = dp.make("crossing-v0", num_robots=4)
    observations, infos = env.reset(seed=5_000)
    member = TeamMember(dp.DiffusionPlanner.from_pretrained(planner), "robot_0")
    member.act(observations["robot_0"], infos["robot_0"]["sensed"], 0)
    last = member.plan
    start = member.ask(observations["robot_0"], infos["robot_0"]["sensed"], 3).warm_start
    assert np.array_equal(start.actions[:, :, :-3], last.actions[:, :, 3:])


def test_a_robot_of_a_safe_team_filters_its_own_actions(planner: Path):
    env = dp.make("crossing-v0", num_robots=4)
    close = np.array([0.0, 0.0, 0.7, 0.0, 0.9, 0.0], np.float32)
    partner = np.array([0.2, 0.0, -0.7, 0.0, np.nan, np.nan], np.float32)
    members = [
        load_member(planner, env.joint_spec, "robot_0", MODES["private"], limits)(0)
        for limits in (None, env.robot_limits)
    ]
    acted = [member.act(close, {"robot_1": partner}, 0)[0] for member in members]
    assert acted[1][0] < acted[0][0]
    del env.robot_limits
    with pytest.raises(ValueError, match="what its robots can do"):
        run_team(planner, env, safe=True)


def test_the_table_says_what_became_of_every_robot(capsys: pytest.CaptureFixture[str]):
    robots = {"robot_0": RobotReport(missed=2, planning_ms=[3.0, 5.0]), "robot_1": RobotReport(ended_at=4)}
    episodes = [EpisodeReport(1.0, 0.0, 0.0, 40, False, 0.1), EpisodeReport(0.0, 0.0, 0.0, 10, True, 0.1)]
    print_report(TeamReport(rate=20.0, seconds=2.5, steps=50, late=0, episodes=episodes, robots=robots))
    said = capsys.readouterr().out
    assert "50 in 2.5 s, 0 began late" in said and "1, of which 1 succeeded" in said
    rows = [line.split()[:4] for line in said.splitlines() if line.startswith("robot_")]
    assert rows == [["robot_0", "2", "4.0", "5.0"], ["robot_1", "0", "4", "nan"]]


def test_a_report_has_null_for_what_is_unknown_and_names_as_they_are():
    report = TeamReport(rate=20.0, seconds=2.5, steps=0, late=0, episodes=[], robots={"NaN": RobotReport()})
    assert report.to_dict()["robots"]["NaN"]["planning"] == {"answers": 0, "median_ms": None, "max_ms": None}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"episodes": 0}, "episodes=0"),
        ({"seconds": -1.0}, "seconds=-1.0"),
        ({"loss": 1.5}, "loss=1.5"),
        ({"mode": "talk"}, "mode='talk'; choose one of"),
        ({"kill": {"robot_9": 3}}, "robot_9"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_a_process_starts(planner: Path, settings: dict, said: str):
    with pytest.raises(ValueError, match=said):
        run_team(planner, dp.make("crossing-v0", num_robots=2), **settings)


def test_whom_to_kill_and_when_is_read_from_words():
    assert parse_kills(["robot_1@30", "robot_0@0"]) == {"robot_1": 30, "robot_0": 0}
    with pytest.raises(ValueError, match="ROBOT@STEP"):
        parse_kills(["robot_1"])
    with pytest.raises(ValueError, match="killed at step 5 already"):
        parse_kills(["robot_1@5", "robot_1@9"])
