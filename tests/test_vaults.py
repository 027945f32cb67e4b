"""OG-MARL's Vaults: where their episodes end, who is there, and what is refused before anything is written."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from foreign_formats import CARS, choosing, episodes, write_vault
from round_trips import ROUND_TRIPS

from diffplan.datasets import TrajectoryStore, import_episodes
from diffplan.datasets.card import read_card
from diffplan.datasets.importers import Importer, Vault
from diffplan.spec import JointSpec, Role


def refused(importer: Importer, folder: Path) -> str:
    """Why an import is refused; nothing is written then."""
    with pytest.raises(ValueError) as caught:
        import_episodes(importer, folder / "store")
    assert not (folder / "store").exists() and "\n" not in str(caught.value)
    return str(caught.value)


def array(folder: Path, name: str, **options: Any) -> Any:
    """An array of a Vault, to write to; a new one where the options say what it is like."""
    base = {"driver": "ocdbt", "base": f"file://{folder}", "path": name}
    spec = {"driver": "zarr", "kvstore": base, "metadata": options.pop("metadata", {})}
    how = {"create": True, "delete_existing": True} if options else {"open": True}
    return tensorstore.open(spec, **how, **options).result()


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    """40 steps of three cars, in two episodes."""
    write_vault(tmp_path / "cars.vlt" / "Good", [episodes(CARS, [25, 15], held=True)])
    return tmp_path / "cars.vlt" / "Good"


def imported(folder: Path, **options: Any) -> TrajectoryStore:
    return import_episodes(Vault(folder, **options), folder.parent.parent / "store")


def test_an_episode_ends_when_the_last_agent_is_done(cars: Path):
    ends, cuts = array(cars, "terminals."), array(cars, "truncations.")
    for flags in (ends, cuts):
        flags[:, :40] = False
    ends[0, 3, 0] = ends[0, 5:7, 1] = ends[0, 9, 2] = True  # each at a time of its own; one says so twice
    cuts[0, 19], ends[0, 19, 1] = True, True
    store = imported(cars)
    assert store.lengths.tolist() == [10, 10, 20]
    assert store[0].terminations.any(0).all() and store[0].terminations[3].tolist() == [True, False, False]
    assert store[1].terminations[-1].tolist() == [False, True, False]
    assert store[1].truncations[-1].tolist() == [True, False, True]


def test_data_that_stop_amid_an_episode_end_with_a_truncation_and_a_note(cars: Path):
    array(cars, "vault_index")[0] = 31
    store = imported(cars)
    assert store.lengths.tolist() == [25, 6] and store[1].truncations[-1].all() and not store[1].terminations.any()
    notes = read_card(store.path)["notes"]
    assert any("Good: the data stop amid an episode in 1 of 1 lanes" in note for note in notes)
    assert any("left out: infos.state." in note for note in notes) and any("repeated" in note for note in notes)


def test_agents_of_the_pad_value_are_absent(cars: Path):
    array(cars, "observations.")[0, 10:25, 2] = 0.0
    store = imported(cars, pad_value=0.0)
    assert not store[0].agent_mask[10:, 2].any() and store[0].agent_mask[:10].all() and store[1].agent_mask.all()


def test_choices_without_legal_ones_need_their_number(tmp_path: Path):
    role = Role(4 + 5, (0.0,) * 5, (1.0,) * 5, discrete=True, legal=tuple(range(4, 9)))
    made = choosing(spec := JointSpec({"agent_0": "agent"}, {"agent": role}), episodes(spec, [9], held=True))
    write_vault(tmp_path / "one.vlt" / "Good", [made], integers=True)
    assert "no infos.legals to tell how many actions" in refused(Vault(tmp_path / "one.vlt"), tmp_path)
    assert "expected a whole number from 0 to 0" in refused(Vault(tmp_path / "one.vlt", num_actions=1), tmp_path)
    store = import_episodes(Vault(tmp_path / "one.vlt", num_actions=5), tmp_path / "store")
    np.testing.assert_array_equal(store[0].actions, made[0].actions)
    assert store.spec.roles["agent"].discrete and not store.spec.roles["agent"].legal


def test_folders_of_different_teams_are_imported_apart(cars: Path, tmp_path: Path):
    spec = dataclasses.replace(CARS, agents={"a": "car", "b": "car"})
    write_vault(cars.parent / "Poor", [episodes(spec, [5])])
    said = refused(Vault(cars.parent), tmp_path)
    assert "Poor has JointSpec(2 agents" in said and "import them apart" in said


def test_a_number_that_is_not_finite_is_named_by_lane_row_and_column(cars: Path, tmp_path: Path):
    array(cars, "observations.")[0, 30, 1, 2] = np.nan
    assert "observations., lane 0: row 30, column 1, 2 is nan" in refused(Vault(cars), tmp_path)


def test_entries_of_a_narrower_agent_do_not_come_back(tmp_path: Path):
    importer, _ = ROUND_TRIPS["vault"](tmp_path / "source")
    array(importer.source / "Poor", "actions.")[1, 11, 0, 2] = 0.5
    said = refused(importer, tmp_path)
    assert "actions., lane 1: row 11, column 0, 2 is 0.5" in said and "2 entries in the first row" in said


@pytest.mark.parametrize("steps", [2**19, 2**31 - 1])
def test_steps_that_are_not_in_the_files_are_never_made_up(steps: int, cars: Path, tmp_path: Path):
    array(cars, "vault_index")[0] = steps
    assert f"{steps:,} steps take; the others are not in the files" in refused(Vault(cars), tmp_path)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 40, 10**9, 4), "1,000,000,000 agents"), ((1, 40, 3), "expected (lanes, steps, agents, width)")],
)
def test_impossible_observations_are_refused_at_once(shape: tuple[int, ...], said: str, cars: Path, tmp_path: Path):
    array(cars, "observations.", dtype=np.float32, shape=shape)
    assert said in refused(Vault(cars), tmp_path)


def test_rewards_of_another_team_are_refused(cars: Path, tmp_path: Path):
    array(cars, "rewards.", dtype=np.float32, shape=(1, 40, 2))[:] = 0.0
    assert "rewards. has the shape (1, 40, 2), expected 2 or 3 axes" in refused(Vault(cars), tmp_path)


def test_arrays_of_other_things_than_numbers_are_refused(cars: Path, tmp_path: Path):
    array(cars, "rewards.", dtype=np.complex64, shape=(1, 40, 3))
    assert "rewards. holds complex64, expected real numbers" in refused(Vault(cars), tmp_path)


def test_what_would_fill_the_memory_when_unpacked_is_refused(cars: Path, tmp_path: Path):
    metadata = {"chunks": [1, 2**26, 3, 4], "compressor": {"id": "gzip", "level": 5}}
    array(cars, "observations.", dtype=np.float32, shape=(1, 10**12, 3, 4), metadata=metadata)
    assert "has chunks of 3,221,225,472 bytes" in refused(Vault(cars), tmp_path)
    metadata = {"chunks": [1, 10, 3, 2**18], "compressor": {"id": "zstd", "level": 1}}
    large = array(cars, "observations.", dtype=np.float32, shape=(1, 40, 3, 2**18), metadata=metadata)
    large[:] = 0.0
    assert "too few for 40 steps, which are 125,8" in refused(Vault(cars), tmp_path)


def test_links_that_leave_the_folder_are_refused(cars: Path, tmp_path: Path):
    shutil.move(cars / "d", tmp_path / "elsewhere")
    (cars / "d").symlink_to(tmp_path / "elsewhere")
    assert "leaves its folder" in refused(Vault(cars), tmp_path)
    shutil.move(cars, tmp_path / "whole")
    cars.symlink_to(tmp_path / "whole")
    assert "leaves its folder" in refused(Vault(cars.parent), tmp_path)


def test_another_tree_version_or_folder_is_named(cars: Path, tmp_path: Path):
    about = cars / "metadata.json"
    metadata = json.loads(about.read_text())
    for version in (2.0, 0.1, "1.2", None):
        about.write_text(json.dumps(metadata | {"version": version}))
        assert f"the version {version!r}, expected 1.x" in refused(Vault(cars), tmp_path)
    about.unlink()
    assert "lacks metadata.json" in refused(Vault(cars), tmp_path)
    about.write_text(json.dumps(metadata))
    (cars / "manifest.ocdbt").write_bytes(b"no manifest")
    assert "Good cannot be read" in refused(Vault(cars), tmp_path)
    shutil.rmtree(cars / "d")
    (cars / "manifest.ocdbt").unlink()
    array(cars, "observation.", dtype=np.float32, shape=(1, 40, 3, 4))
    said = refused(Vault(cars), tmp_path)
    assert "has the arrays ['observation.'], but not ['observations', 'actions'" in said


def test_without_tensorstore_the_command_that_installs_it_is_said(cars: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match=r'pip install "diffplan\[vault\]"'):
        imported(cars)
