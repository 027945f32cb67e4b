import importlib.metadata
import io
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from diffplan.doctor import (
    LAUNCHER,
    Check,
    check_disk,
    check_extra,
    check_launcher,
    check_mujoco,
    check_package,
    check_packages,
    check_python,
    check_rendering,
    check_torch,
    print_checks,
)

NUMPY = importlib.metadata.version("numpy")
TORCHRUN = dict.fromkeys(LAUNCHER, "0") | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}


def test_a_machine_that_runs_the_tests_passes():
    assert [
        check for check in (check_python(), check_torch(), check_mujoco(), *check_packages()) if not passed(check)
    ] == []


def passed(check: Check) -> bool:
    return check.ok or not check.required


def test_a_package_in_the_wanted_version_passes():
    assert check_package(Requirement(f"numpy>={NUMPY}")) == Check("numpy", True, NUMPY)


def test_a_package_that_is_too_old_is_named_with_what_is_wanted():
    check = check_package(Requirement("numpy>=99"))
    assert not check.ok
    assert check.detail == f"{NUMPY}, but diffplan needs >=99"
    assert check.remedy == 'pip install "numpy>=99"'


def test_a_missing_package_is_named():
    check = check_package(Requirement("no-such-package-in-the-world>=1"))
    assert (check.ok, check.detail, check.required) == (False, "not installed", True)


def test_a_missing_extra_breaks_nothing_and_gives_the_pip_command():
    check = check_extra("robots", [Requirement("numpy"), Requirement("no-such-package-in-the-world")])
    assert (check.ok, check.required) == (False, False)
    assert check.remedy.startswith('pip install "diffplan[robots]"')


def test_a_graphics_library_that_fails_breaks_nothing_and_is_named():
    check = check_rendering({"MUJOCO_GL": "nonsense"})
    assert (check.ok, check.required) == (False, False)
    assert "nonsense" in check.detail


def test_a_folder_that_does_not_exist_cannot_hold_runs(tmp_path: Path):
    assert check_disk(tmp_path).ok
    assert "No such file" in check_disk(tmp_path / "missing").detail


@pytest.mark.parametrize(
    ("environment", "ok"),
    [
        ({}, True),
        (TORCHRUN, True),
        (TORCHRUN | {"RANK": "2"}, False),
        (TORCHRUN | {"WORLD_SIZE": "two"}, False),
        ({"WORLD_SIZE": "2"}, False),
    ],
)
def test_a_launcher_sets_all_of_its_variables_or_none(environment: dict[str, str], ok: bool):
    assert check_launcher(environment).ok is ok


@pytest.mark.parametrize(("required", "code"), [(True, 1), (False, 0)])
def test_only_something_required_fails_the_command(required: bool, code: int):
    console = Console(file=io.StringIO(), width=200)
    checks = [Check("disk", True, "10 GB"), Check("torch", False, "not [here]", "install it", required)]
    assert print_checks(checks, console) == code
    assert "not [here]" in console.file.getvalue()
