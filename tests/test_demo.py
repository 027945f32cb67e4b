"""The demo in its quick sizes, end to end: what it writes, that it goes on where it ended, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from diffplan.cli import main
from diffplan.datasets import TrajectoryStore
from diffplan.demo import ALONE, CLONING, JOINT, QUICK, another_process, demo
from diffplan.planners import DiffusionPlanner

pytestmark = pytest.mark.slow
PICTURES = {"plan.png", "denoising.gif", "learning_curve.png", "comparison.png"}
FILMS = {"rollout.mp4", "filmstrip.png"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--quick", "--json", "--out", str(out)]) == 0
    return out


def test_the_demo_writes_everything_that_it_promises(finished: Path):
    report = json.loads((finished / "report.json").read_text())
    assert set(report["results"]) == {JOINT, ALONE, CLONING}
    assert set(report["pictures"]) == PICTURES | FILMS
    assert all((finished / name).stat().st_size > 1_000 for name in report["pictures"])
    assert not [path for path in finished.rglob("*") if "tmp" in path.name]


def test_the_demo_leaves_data_and_planners_to_go_on_with(finished: Path):
    assert len(TrajectoryStore.open(finished / "data")) == QUICK.episodes
    assert DiffusionPlanner.from_pretrained(finished / "joint").denoiser.config.agent_attention
    assert not DiffusionPlanner.from_pretrained(finished / "alone").denoiser.config.agent_attention


def test_an_interrupted_demo_goes_on_to_the_same_results_and_needs_no_screen(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "demo"
    shutil.copytree(
        finished, out, ignore=shutil.ignore_patterns("planner", f"step_{QUICK.training_steps:08d}", "*.mp4")
    )
    monkeypatch.setenv("MUJOCO_GL", "disable")
    report = demo(out, quick=True)
    before = json.loads((finished / "report.json").read_text())["results"]
    for name, results in report["results"].items():
        assert {key: results[key] for key in ("success", "return")} == {
            key: before[name][key] for key in ("success", "return")
        }
    assert set(report["pictures"]) == PICTURES
    said = capsys.readouterr().out
    assert "no rollout.mp4" in said and "MUJOCO_GL=egl" in said


def test_a_training_that_fails_in_its_own_process_fails_the_demo():
    failure = pytest.raises(RuntimeError, match="no agent attention: its process ended with exit code 3; start again")
    with failure, another_process(ALONE, sys.exit, 3):
        pass


SIDE_BY_SIDE = """
import os, time
from pathlib import Path
from diffplan.demo import another_process

def job():
    Path("child").write_text(str(os.getpid()))
    time.sleep(300)

if __name__ == "__main__":
    with another_process("beside", job):
        time.sleep(60)
"""


def test_a_process_beside_a_demo_that_is_killed_ends_with_it(tmp_path: Path):
    def waited_for(met: Callable[[], object]) -> None:
        for _ in range(1200):
            if met():
                return
            time.sleep(0.1)
        raise AssertionError("2 minutes have passed")

    (tmp_path / "demo.py").write_text(SIDE_BY_SIDE)
    child = tmp_path / "child"
    with subprocess.Popen([sys.executable, "demo.py"], cwd=tmp_path) as parent:
        waited_for(lambda: child.exists() and child.read_text())
        orphan = psutil.Process(int(child.read_text()))
        parent.kill()

    def ended() -> bool:
        try:
            return not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    waited_for(ended)


def test_a_folder_of_other_sizes_is_refused_and_left_alone(finished: Path):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(ValueError, match=r"is of other settings, .*'episodes': 12.* instead of .*'episodes': 1000"):
        demo(finished, progress=False)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_demo_that_cannot_write_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    assert main(["demo", "--quick", "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"]
