"""``diffplan data ...``, end to end through ``main``: what a user of other people's data types."""

import json
import os
import re
from pathlib import Path

import pytest
from foreign_formats import write_omar
from round_trips import ROUND_TRIPS, differences

from diffplan.cli import main
from diffplan.commands.data import formats
from diffplan.datasets import TrajectoryStore


def answer(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    """What a command answers with --json."""
    assert main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys: pytest.CaptureFixture[str], *args: object, code: int = 1) -> str:
    """The one line in which a command says why it failed."""
    assert main([*map(str, args)]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("diffplan data"), said
    return said


@pytest.fixture
def store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Two recordings of three robots, imported from CSV."""
    ROUND_TRIPS["table, csv"](tmp_path / "tables")
    options = ("--actions", "throttle", "--reward", "reward", "--licence", "CC0-1.0")
    card = answer(capsys, "data", "import", "table", tmp_path / "tables", "--out", tmp_path / "data", *options)
    assert (card["licence"], card["report"]["episodes"]) == ("CC0-1.0", 2)
    return tmp_path / "data"


def test_data_of_a_named_environment_know_it(tmp_path: Path, capsys):
    answer(capsys, "collect", "crossing-v0", "--out", tmp_path / "own", "--episodes", "2", "--option", "num_robots=3")
    write_omar(tmp_path / "theirs", {0: list(TrajectoryStore.open(tmp_path / "own"))})
    known = ("--env", "crossing-v0", "--option", "num_robots=3")
    answer(capsys, "data", "import", "omar", tmp_path / "theirs", "--out", tmp_path / "store", *known)
    assert TrajectoryStore.open(tmp_path / "store").spec == TrajectoryStore.open(tmp_path / "own").spec
    said = complaint(capsys, "data", "import", "omar", tmp_path / "theirs", "--out", tmp_path / "no", *known[2:])
    assert "name it by --env" in said and not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", formats())
def test_every_format_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "import", name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: diffplan data import {name}") and "--out" in said and "Imports" in said


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("omar", ["--roles", "a", "a", "b"]),
        ("vault", ["--roles", "a", "a", "b"]),
        ("lerobot", ["--arms", "left", "right"]),
        ("madiff", ["--dt", "0.1"]),
    ],
)
def test_a_flag_is_a_field_of_the_importer(name: str, options: list[str], tmp_path: Path, capsys):
    importer, made = ROUND_TRIPS[name](tmp_path / "source")
    answer(capsys, "data", "import", name, importer.source, "--out", tmp_path / "store", *options)
    assert differences(TrajectoryStore.open(tmp_path / "store"), made) == []


def test_an_import_prints_its_report(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--out", str(tmp_path / "again"), "--actions", "throttle", "--reward", "reward"]
    assert main(["data", "import", "table", str(tmp_path / "tables"), *words]) == 0
    said = capsys.readouterr().out
    assert re.search("gaps +number 2, longest 1", said) and re.search("note +one step is 0.25 s", said)


def test_an_import_of_something_else_says_what_to_type(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = complaint(capsys, "data", "import", "omar", tmp_path / "tables", "--out", tmp_path / "new")
    assert f"try `diffplan data import table {tmp_path / 'tables'}`" in said
    assert "sotre" in complaint(capsys, "data", "sotre", code=2)
    assert not (tmp_path / "new").exists()


def test_stores_are_cut_and_put_together_again(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = tmp_path / "a", tmp_path / "b"
    split = answer(capsys, "data", "split", store, "--outs", *parts, "--share", 0.5)
    assert [part["episodes"] for part in split.values()] == [1, 1]
    assert answer(capsys, "data", "merge", *parts, "--out", tmp_path / "both")["episodes"] == 2
    few = answer(capsys, "data", "subsample", tmp_path / "both", "--out", tmp_path / "one", "--episodes", 1)
    assert few["episodes"] == 1
    assert answer(capsys, "data", "stats", tmp_path / "both")["gaps"] == {"number": 2, "longest": 1}


def test_a_card_is_written_for_any_store(store: Path, capsys: pytest.CaptureFixture[str]):
    card = answer(capsys, "data", "card", store, "--licence", "MIT", "--origin", "our hall")
    assert (card["licence"], card["origin"]) == ("MIT", "our hall")
    assert "Licence: MIT." in (store / "CARD.md").read_text()


def test_a_cut_store_is_mended(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = store / "shard_00000" / "rewards.npy"
    os.truncate(path, path.stat().st_size - 8)
    repair = answer(capsys, "data", "repair", store, "--out", tmp_path / "saved")
    assert (repair["kept"], repair["lost"], repair["damaged"]) == (1, 1, ["shard_00000/rewards.npy"])


@pytest.mark.parametrize(("format", "name"), [("npz", "all.npz"), ("minari", "all")])
def test_what_is_exported_can_be_imported(
    format: str, name: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert answer(capsys, "data", "export", format, store, "--out", tmp_path / name)["episodes"] == 2
    answer(capsys, "data", "import", format, tmp_path / name, "--out", tmp_path / "back")
    assert differences(TrajectoryStore.open(tmp_path / "back"), list(TrajectoryStore.open(store))) == []
