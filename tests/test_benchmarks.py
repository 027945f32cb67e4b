"""How the benchmark scripts sum up what they measured."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import benchmark_ladder

    return benchmark_ladder


def measured(ladder: ModuleType, **scores: float) -> dict[str, object]:
    def figure(name: str, value: float) -> object:
        return ladder.Figure(f"simple_spread_{name}", value, value - 2, value + 2, "points", 1, 100, "a command")

    names = (*ladder.VARIANTS, *ladder.CLONING)
    return {name: figure(name, scores.get(name.replace(", ", "_").replace(" ", "_"), 10.0)) for name in names}


def test_the_best_variant_is_compared_with_no_guidance_and_with_the_best_baseline(ladder: ModuleType) -> None:
    found = measured(ladder, none=40.0, refine=90.0, BC_joint=60.0)
    score, gain, margin = ladder.summary("simple_spread", "medium", found)
    assert (score.figure, score.value) == ("simple_spread_medium_score", 90.0)
    assert {*score.baselines} == {"unguided", *ladder.CLONING}
    assert (gain.figure, gain.value, gain.unit) == ("medium_gain_simple_spread", 125.0, "%")
    assert (margin.figure, margin.value) == ("medium_margin_simple_spread", 50.0)
    assert {name: one.value for name, one in margin.baselines.items()} == {"refine": 90.0, "BC joint": 60.0}
    assert gain.low < 118 and gain.high > 132


def test_on_expert_data_it_is_told_what_the_chosen_variant_loses(ladder: ModuleType) -> None:
    loss = ladder.summary("simple_spread", "expert", measured(ladder, none=95.0, refine=92.0))[-1]
    assert (loss.figure, loss.value, loss.unit) == ("expert_loss_simple_spread", 3.0, "points")
    assert [*loss.baselines] == ["refine", "unguided"]


def test_nobody_is_a_percent_above_a_score_that_may_be_nothing(ladder: ModuleType) -> None:
    found = measured(ladder, none=1.0, refine=70.0, BC_joint=0.5, BC_per_agent=0.1, BC_joint_best_half=0.3)
    (score,) = ladder.summary("simple_spread", "random", found)
    assert score.value == 70.0


def test_a_script_goes_on_with_one_thread_and_its_own_arguments(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys, torch, figures\nfigures.one_thread()\nprint(torch.get_num_threads(), sys.argv[1:])")
    paths = os.pathsep.join(str(Path(__file__).parents[1] / name) for name in ("", "scripts"))
    ran = subprocess.run(
        [sys.executable, str(script), "--seeds", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "1 ['--seeds', '1']\n"
