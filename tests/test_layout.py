"""The shape of the repository: links, one place for each setting, sizes."""

import configparser
import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "diffplan").rglob("*.py"))


@pytest.mark.parametrize("name", ["models", "planners", "datasets"])
def test_the_root_entry_is_a_relative_link_into_the_package(name: str):
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("diffplan", name)
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("name", ["models", "planners", "datasets"])
@pytest.mark.parametrize("statement", ["import {}", "from {} import nothing", "import {}.nothing"])
def test_ruff_forbids_importing_through_the_links(name: str, statement: str):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "-"]
    found = subprocess.run(command, input=statement.format(name) + "\n", capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 1
    assert f"import diffplan.{name}" in found.stdout


def test_no_tool_is_configured_in_both_files():
    checked = configparser.ConfigParser()
    checked.read(ROOT / "setup.cfg")
    sections = {section.removeprefix("tool:").split(":")[0].split("-")[0] for section in checked.sections()}
    with open(ROOT / "pyproject.toml", "rb") as file:
        tools = set(tomllib.load(file)["tool"])
    assert sections & tools == set()


def test_tests_are_no_package():
    assert not (ROOT / "tests" / "__init__.py").exists()


@pytest.mark.parametrize(
    "path", [*PACKAGE, *(ROOT / "scripts").glob("*.py")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_file_fits_in_the_head(path: Path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_package_is_typed():
    assert (ROOT / "diffplan" / "py.typed").is_file()


def test_a_figure_has_one_name():
    paths = (ROOT / "docs" / "results").glob("*.json")
    names = Counter(one["figure"] for path in paths for one in json.loads(path.read_text()))
    assert not [name for name, count in names.items() if count > 1]


def test_the_page_of_results_shows_the_figures():
    command = [sys.executable, str(ROOT / "scripts" / "make_results.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert checked.returncode == 0, checked.stderr
