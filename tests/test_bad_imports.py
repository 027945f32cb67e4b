"""What is wrong with other people's files is said with file, row, column and remedy, before anything is written."""

import dataclasses
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_formats import CARS, episodes, write_omar
from round_trips import ROUND_TRIPS

from diffplan.datasets import import_episodes
from diffplan.datasets.importers import (
    EthUcy,
    LeRobot,
    Madiff,
    Minari,
    Npz,
    Omar,
    Overcooked,
    Robomimic,
    Rollout,
    Rollouts,
    Table,
    Vault,
)
from diffplan.datasets.importers.npy import NpyFile
from diffplan.datasets.importers.recording import Importer, Recording

FILES = [name for name in ROUND_TRIPS if name != "rollouts"]
READERS = {
    "omar": Omar,
    "madiff": Madiff,
    "robomimic": Robomimic,
    "minari": Minari,
    "lerobot": LeRobot,
    "eth_ucy": EthUcy,
    "table": Table,
    "vault": Vault,
    "npz": Npz,
    "overcooked": Overcooked,
}


def refused(importer: Importer, folder: Path) -> str:
    """Why an import is refused; nothing is written then."""
    with pytest.raises(ValueError) as caught:
        import_episodes(importer, folder / "store")
    assert not (folder / "store").exists()
    return str(caught.value)


def written(name: str, folder: Path) -> Importer:
    return ROUND_TRIPS[name](folder / "source")[0]


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_format_is_answered_with_the_likely_right_one(name: str, tmp_path: Path):
    importer, right = written(name, tmp_path), name.split(",")[0]
    for reader in READERS.keys() - {right}:
        said = refused(READERS[reader](importer.source), tmp_path)
        assert f"not in the format {reader}" in said and f"data import {right} {importer.source}" in said


def test_a_path_that_does_not_exist_and_a_store_are_named(tmp_path: Path):
    store = import_episodes(written("npz, exported", tmp_path), tmp_path / "data")
    for reader in READERS.values():
        assert "does not exist" in refused(reader(tmp_path / "nowhere"), tmp_path)
        assert "it is a store already" in refused(reader(store.path), tmp_path)


@pytest.mark.parametrize(
    ("file", "said"),
    [("obs_1", "none of agent 1"), ("acs_1", "lacks ['acs_1.npy']"), ("dones_2", "lacks ['dones_2.npy']")],
)
def test_missing_files_of_an_agent_are_named(file: str, said: str, tmp_path: Path):
    importer = written("omar", tmp_path)
    for path in importer.source.glob(f"seed_2_data/*{file[-2:]}.npy" if file == "obs_1" else f"seed_2_data/{file}.npy"):
        path.unlink()
    assert said in refused(importer, tmp_path)


def test_ragged_arrays_are_refused(tmp_path: Path):
    importer = written("omar", tmp_path)
    path = importer.source / "seed_2_data" / "acs_1.npy"
    np.save(path, np.load(path)[:-1])
    assert "acs_1.npy has 56 rows, obs_0.npy 57" in refused(importer, tmp_path)


def test_paths_that_do_not_add_up_are_refused(tmp_path: Path):
    importer = written("madiff", tmp_path)
    np.save(importer.source / "path_lengths.npy", np.array([25, 3, 25]))
    assert "path_lengths.npy adds up to 53 steps, but obs.npy has 65" in refused(importer, tmp_path)


def test_precision_that_is_lost_is_noted(tmp_path: Path):
    importer = written("omar", tmp_path)
    for path in importer.source.glob("*/acs_0.npy"):
        np.save(path, np.load(path).astype(np.float64))
    notes = importer.read().notes
    assert any("rounded" in note and "acs_0: float64" in note and "float32" in note for note in notes)


@pytest.mark.parametrize("dtype", ["U3", "complex64", "M8[s]"])
def test_arrays_of_other_things_than_numbers_are_refused(dtype: str, tmp_path: Path):
    importer = written("omar", tmp_path)
    path = importer.source / "seed_2_data" / "rews_0.npy"
    np.save(path, np.zeros(57, dtype))
    assert "rews_0.npy" in (said := refused(importer, tmp_path)) and "expected real numbers" in said


class Bomb:
    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, ("exploded",)


def test_pickled_arrays_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    importer = written("omar", tmp_path)
    np.save(importer.source / "seed_2_data" / "obs_0.npy", np.array([Bomb(), Bomb()], object), allow_pickle=True)
    assert "pickled Python objects" in refused(importer, tmp_path)
    archive = written("npz, exported", tmp_path / "npz")
    np.savez(archive.source, observations=np.array([Bomb()], object))
    assert "not in the format npz" in refused(archive, tmp_path)
    (importer.source / "seed_2_data" / "obs_0.npy").write_bytes(pickle.dumps(Bomb()))
    assert "no npy file" in refused(importer, tmp_path)
    assert not Path("exploded").exists()


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path):
    importer = written("omar", tmp_path)
    path = importer.source / "seed_2_data" / "obs_0.npy"

    class Shrinking:
        def read(self) -> Recording:
            recording = importer.read()
            os.truncate(path, path.stat().st_size - 4)
            return recording

    assert "obs_0.npy ended early" in refused(Shrinking(), tmp_path)
    fortran = NpyFile(_fortran(tmp_path / "f.npy"))
    os.truncate(tmp_path / "f.npy", 140)
    with pytest.raises(ValueError, match="ended early"):
        fortran.rows(0, 2)


def _fortran(path: Path) -> Path:
    np.save(path, np.asfortranarray(np.arange(12.0).reshape(4, 3)))
    return path


def test_arrays_in_column_order_are_read_right(tmp_path: Path):
    file = NpyFile(_fortran(tmp_path / "f.npy"))
    np.testing.assert_array_equal(file.rows(1, 3), np.arange(12.0).reshape(4, 3)[1:3])


def test_a_store_is_removed_when_a_file_shrinks_between_the_two_readings(tmp_path: Path):
    importer, times = written("omar", tmp_path), []

    class Shrinking:
        def read(self) -> Recording:
            recording = importer.read()

            def again():
                times.append(0)
                if len(times) == 2:
                    path = importer.source / "seed_10_data" / "acs_1.npy"
                    os.truncate(path, path.stat().st_size - 4)
                return recording.episodes()

            return dataclasses.replace(recording, episodes=again)

    assert "acs_1.npy ended early" in refused(Shrinking(), tmp_path)


def test_cut_files_are_refused_by_name(tmp_path: Path):
    for name, suffix in (("robomimic", "hdf5"), ("minari", "hdf5"), ("lerobot", "parquet"), ("npz, exported", "npz")):
        importer = written(name, tmp_path / name)
        path = next(path for path in sorted((tmp_path / name).rglob(f"*.{suffix}")))
        os.truncate(path, path.stat().st_size // 2)
        assert path.name in refused(importer, tmp_path), name


def test_an_import_that_fails_leaves_a_linked_folder_empty_and_says_why(tmp_path: Path, monkeypatch):
    importer, out = written("npz, exported", tmp_path), tmp_path / "link"
    (tmp_path / "folder").mkdir()
    out.symlink_to(tmp_path / "folder")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffplan.datasets.importing.write_card", full)
    with pytest.raises(OSError, match="No space left"):
        import_episodes(importer, out)
    assert not any(out.iterdir())


def test_hdf5_groups_of_many_names_are_looked_into_once(tmp_path: Path):
    importer = written("robomimic", tmp_path)
    with h5py.File(importer.source, "a") as file:
        group = file.create_group("more")
        file["data/demo_0/all"] = file  # leads back to where it comes from
        for _ in range(60):  # two names each: 2^60 ways to the last one
            group["a"] = group["b"] = file.create_group(f"group_{len(file)}")
            group = group["a"]
    assert len(import_episodes(importer, tmp_path / "store"))


@pytest.mark.parametrize("link", ["external", "soft to external", "dangling", "virtual", "raw"])
def test_hdf5_that_reaches_outside_its_file_is_refused(link: str, tmp_path: Path):
    importer = written("robomimic", tmp_path)
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["actions"] = np.zeros((8, 14))
    with h5py.File(importer.source, "a") as file:
        demo = file["data/demo_0"]
        del demo["actions"]
        if link == "external":
            demo["actions"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/actions")
        elif link == "soft to external":
            demo["actions"] = h5py.SoftLink("/z")
            file["z"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/actions")
        elif link == "dangling":
            demo["actions"] = h5py.SoftLink("/nowhere")
        elif link == "raw":
            demo.create_dataset("actions", (8, 14), "f8", external=[(str(tmp_path / "raw.bin"), 0, 896)])
        else:
            layout = h5py.VirtualLayout((8, 14), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "actions", (8, 14))
            demo.create_virtual_dataset("actions", layout)
    said = refused(importer, tmp_path)
    assert "another file" in said or "other files" in said or "not in this file" in said


def test_a_soft_link_within_the_file_is_followed(tmp_path: Path):
    importer = written("robomimic", tmp_path)
    with h5py.File(importer.source, "a") as file:
        file.move("data/demo_0/actions", "elsewhere")
        file["data/demo_0/actions"] = h5py.SoftLink("/elsewhere")
    assert len(import_episodes(importer, tmp_path / "store")) == 12


def test_hdf5_that_promises_more_than_its_file_can_hold_is_refused(tmp_path: Path):
    importer = written("robomimic", tmp_path)
    with h5py.File(importer.source, "a") as file:
        demo = file["data/demo_1"]
        del demo["rewards"]
        demo.create_dataset("rewards", (4_000_000_000,), "f8", chunks=(1_000_000,))
    assert "data/demo_1/rewards of shape (4000000000,) takes 32,000,000,000 bytes, which" in refused(importer, tmp_path)


def test_ragged_and_missing_hdf5_arrays_are_named(tmp_path: Path):
    importer = written("robomimic", tmp_path)
    with h5py.File(importer.source, "a") as file:
        demo = file["data/demo_1"]
        rewards = demo["rewards"][:-2]
        del demo["rewards"]
        demo["rewards"] = rewards
    assert "data/demo_1 has 11 actions, but 9 rewards" in refused(importer, tmp_path)
    with h5py.File(importer.source, "a") as file:
        del file["data/demo_1/rewards"]
    assert "data/demo_1/rewards is missing" in refused(importer, tmp_path)


@pytest.mark.parametrize("space", ["observation_space", "action_space"])
def test_minari_without_both_spaces_never_builds_an_environment(space: str, tmp_path: Path):
    importer = written("minari", tmp_path)
    path = importer.source / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata[space]
    path.write_text(json.dumps(metadata))
    said = refused(importer, tmp_path)
    assert f"does not tell the {space}" in said and "refused" in said


@pytest.mark.parametrize("path", ["../../other/{chunk_index}.parquet", "/etc/{chunk_index}.parquet"])
def test_a_manifest_that_names_files_outside_its_folder_is_refused(path: str, tmp_path: Path):
    importer = written("lerobot", tmp_path)
    info = importer.source / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"data_path": path}))
    assert "names files outside its folder" in refused(importer, tmp_path)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path):
    importer = written("lerobot", tmp_path)
    shard = importer.source / "data" / "chunk-000" / "file-001.parquet"
    shutil.move(shard, tmp_path / "outside.parquet")
    shard.symlink_to(tmp_path / "outside.parquet")
    assert "leaves its folder" in refused(importer, tmp_path)


def test_parquet_that_names_other_files_is_refused(tmp_path: Path):
    table = pa.table({"time": [0.0, 1.0], "agent": ["a", "a"], "x": [0.0, 1.0], "y": [0.0, 1.0]})
    collected: list = []
    pq.write_table(table, tmp_path / "real.parquet", metadata_collector=collected)
    collected[0].set_file_path("../secret.parquet")
    collected[0].write_metadata_file(str(tmp_path / "tracks.parquet"))
    assert "its columns are in '../secret.parquet'" in refused(Table(tmp_path / "tracks.parquet"), tmp_path)


def test_a_part_of_an_episode_is_refused(tmp_path: Path):
    importer = written("lerobot", tmp_path)
    path = importer.source / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(path).slice(2), path)
    assert "does not count its frames from 0" in refused(importer, tmp_path)


def test_a_billion_agents_are_refused_at_once(tmp_path: Path):
    importer = written("madiff", tmp_path)
    path = importer.source / "obs.npy"
    header = np.lib.format.header_data_from_array_1_0(np.zeros(0, np.float32)) | {"shape": (65, 10**9, 7)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        assert "bytes, but its header says" in refused(importer, tmp_path)
        file.truncate(file.tell() + 65 * 10**9 * 7 * 4)  # a sparse file: as long as it says
    assert "1,000,000,000 agents" in refused(importer, tmp_path)
    omar = written("omar", tmp_path / "o")
    np.save(omar.source / "seed_2_data" / f"obs_{10**12}.npy", np.zeros(1))
    assert "files of agent 1000000000000, but none of agent 3" in refused(omar, tmp_path)
    rows = "\n".join(f"{step},{step},0,0" for step in range(10_001))
    (tmp_path / "tracks.csv").write_text(f"time,agent,x,y\n{rows}")
    assert "10,001 agents" in refused(Table(tmp_path / "tracks.csv"), tmp_path)
    assert "cannot be cut into 1000000000 equal arms" in refused(
        Robomimic(written("robomimic", tmp_path / "r").source, arms=10**9), tmp_path
    )


@pytest.mark.parametrize(("name", "file"), [("omar", "seed_2_data/acs_1.npy"), ("madiff", "rewards.npy")])
def test_numbers_that_are_not_finite_are_named_by_row_and_column(name: str, file: str, tmp_path: Path):
    importer = written(name, tmp_path)
    array = np.load(importer.source / file)
    array[30, 1] = np.nan
    np.save(importer.source / file, array)
    said = refused(importer, tmp_path)
    assert f"{file}: row 30, column 1 is nan" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.__setitem__(3, "0.5,b,nan,0"), "line 4, column 'x' is nan"),
        (lambda rows: rows.__setitem__(3, "0.5,b,,0"), "line 4, column 'x' is nan"),
        (lambda rows: rows.__setitem__(3, "0.5,b,inf,0"), "line 4, column 'x' is inf"),
        (lambda rows: rows.__setitem__(3, "0.5,b,NA,0"), "line 4, column 'x' is 'NA', though most lines have numbers"),
        (lambda rows: rows.__setitem__(slice(3, 4), ["", "  ", "0.5,b,nan,0"]), "line 6, column 'x' is nan"),
        (lambda rows: rows.__setitem__(3, "0.5,b,0"), "line 4 has 3 columns"),
        (lambda rows: rows.__setitem__(3, "0.5,,0,0"), "line 4 has no 'agent'"),
        (lambda rows: rows.__setitem__(3, "noon,b,0,0"), "line 4, column 'time' is 'noon'"),
        (lambda rows: rows.__setitem__(3, "0.63,b,0,0"), "line 4 is of time=0.63, between two steps"),
        (lambda rows: rows.append("1e12,b,0,0"), "line 12 is 2e+12 steps after the first"),
        (lambda rows: rows.append("0.5,b,0,0"), "line 12 says of agent 'b' at step 1 (0.5 s) what line 4 says already"),
        (lambda rows: rows.__setitem__(0, "time,agent,x,x"), "must name every column, each once"),
        (lambda rows: rows.__setitem__(0, "when,agent,x,y"), "has no columns ['time']"),
        (lambda rows: rows.__setitem__(slice(None), [r.replace(",", ";") for r in rows]), "separate columns by commas"),
        (lambda rows: rows.__delitem__(slice(1, None)), "has no rows"),
        (lambda rows: rows.__delitem__(slice(2, None)), "the time is the same in all lines"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_by_line(change: Callable, said: str, tmp_path: Path):
    rows = ["time,agent,x,y", *(f"{0.5 * step},{'ab'[step % 2]},{step},0" for step in range(10))]
    rows[3] = "0.5,b,1,0"
    rows[2] = "0.0,b,1,0"
    change(rows)
    (tmp_path / "tracks.csv").write_text("\n".join(rows))
    assert said in refused(Table(tmp_path / "tracks.csv"), tmp_path)


def test_an_agent_that_changes_its_role_and_units_that_nobody_knows_are_named(tmp_path: Path):
    path = tmp_path / "tracks.csv"
    path.write_text("time,agent,kind,x,y\n2,a,bike,2,2\n0,a,car,0,0\n1,b,bike,1,1\n1,a,car,1,1\n")
    assert "line 2 says that agent 'a' is a 'bike', before it was a 'car' (1 such lines)" in refused(
        Table(path, role="kind"), tmp_path
    )
    assert "units='miles'; choose one of m, cm, mm" in refused(Table(path, units="miles"), tmp_path)


def test_wrong_units_are_suspected(tmp_path: Path):
    rows = [f"{0.1 * step:.1f},a,{140 * step},0" for step in range(20)]
    (tmp_path / "tracks.csv").write_text("\n".join(["time,agent,x,y", *rows]))
    said = refused(Table(tmp_path / "tracks.csv"), tmp_path)
    assert "1,400 m/s at the median with units='m'" in said and "mm" in said
    assert len(import_episodes(Table(tmp_path / "tracks.csv", units="mm"), tmp_path / "store")) == 1


def test_an_action_that_is_missing_amid_a_track_is_named(tmp_path: Path):
    rows = [f"{step},a,{step},0,{'' if step == 3 else 1}" for step in range(9)]
    (tmp_path / "tracks.csv").write_text("\n".join(["time,agent,x,y,push", *rows]))
    said = refused(Table(tmp_path / "tracks.csv", observations=("x", "y"), actions=("push",)), tmp_path)
    assert "line 5 has no finite action or reward" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("10\t1.0\t2.0", "line 3 has 3 columns"),
        ("10\t1.0\t2.0\tx", "line 3 is ['10', '1.0', '2.0', 'x']"),
        ("13\t1.0\t2.0\t1.0", "line 3 is of frame 13"),
        ("10\t1.0\tnan\t1.0", "line 3, column 'x' is nan"),
        ("1e300\t1.0\t2.0\t1.0", "line 3 is 1e+299 steps after the first"),
        ("0\t1.0\t2.0\t1.0", "line 3 says of agent '1' at step 0 (0 s) what line 1 says already"),
    ],
)
def test_what_is_wrong_in_pedestrian_text_is_named_by_line(line: str, said: str, tmp_path: Path):
    (tmp_path / "hotel.txt").write_text(f"0\t1.0\t2.0\t1.0\n10\t2.0\t2.0\t1.0\n{line}\n")
    assert said in refused(EthUcy(tmp_path / "hotel.txt"), tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frames": 1}, "frames=1; an episode has at least two"),
        ({"frames": 4, "stride": 0}, "stride=0; pieces begin 1 frame or more apart"),
        ({"stride": 1}, "stride=1 is of pieces; say how many frames"),
        ({"frames": 4}, "has no piece of 4 frames with 1 agents; ask for fewer"),
        ({"least": 2, "complete": True}, "has no piece of all its frames with 2 agents in all of them"),
        ({"frame_step": -10}, "frame_step=-10; frame numbers go on by 1 or more"),
    ],
)
def test_pieces_of_recordings_that_make_no_sense_are_refused(options: dict, said: str, tmp_path: Path):
    (tmp_path / "hotel.txt").write_text("0\t1.0\t2.0\t1.0\n10\t2.0\t2.0\t1.0\n")
    assert said in refused(EthUcy(tmp_path / "hotel.txt", **options), tmp_path)


def test_an_episode_length_that_the_data_contradict_is_refused(tmp_path: Path):
    write_omar(tmp_path / "spread", {0: episodes(CARS, [25, 25])})
    said = refused(Omar(tmp_path / "spread", episode_length=20), tmp_path)
    assert "an episode of 25 steps ends with row 24" in said and "episode_length=20" in said


def test_observations_without_ids_and_unknown_choices_are_refused(tmp_path: Path):
    importer = written("madiff", tmp_path)
    seen = np.load(importer.source / "obs.npy")
    seen[7, 1, :3] = 0
    np.save(importer.source / "obs.npy", seen)
    said = refused(importer, tmp_path)
    assert "row 7 has no one-hot id in front of agent 1's" in said and "--no-strip-agent-ids" in said
    discrete = written("madiff, discrete", tmp_path / "discrete")
    actions = np.load(discrete.source / "actions.npy")
    actions[3, 0] = 5
    np.save(discrete.source / "actions.npy", actions)
    assert "row 3 has the action 5, expected a whole number from 0 to 4" in refused(discrete, tmp_path)


def test_an_archive_whose_header_promises_too_much_is_refused(tmp_path: Path):
    importer = written("npz, exported", tmp_path)
    with zipfile.ZipFile(importer.source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = np.lib.format.header_data_from_array_1_0(np.zeros(0, np.float32)) | {"shape": (10, 10**9, 2)}
    with zipfile.ZipFile(importer.source, "w") as archive:
        for name, data in members.items():
            with archive.open(name, "w") as file:
                if name == "actions.npy":
                    np.lib.format.write_array_header_1_0(file, header)
                else:
                    file.write(data)
    assert "actions has 128 bytes, but its header says 80,000,000,128" in refused(importer, tmp_path)


def test_rollouts_that_do_not_fit_are_named_by_number(tmp_path: Path):
    seen, none = [{"a": np.zeros(2)}] * 3, [{"a": 0.0}] * 2
    good = Rollout(seen, [{"a": np.zeros(1)}] * 2, none, none, none)
    short = dataclasses.replace(good, observations=seen[:2])
    assert "rollout 1: 2 observations for 2 actions" in refused(Rollouts([good, short]), tmp_path)
    assert "never act" in refused(Rollouts([dataclasses.replace(good, actions=[{}] * 2)]), tmp_path)
    assert "no rollouts" in refused(Rollouts([]), tmp_path)
    assert "no agent is seen in 1 rollouts" in refused(Rollouts([Rollout([{}, {}], [{}], [{}], [{}], [{}])]), tmp_path)
    chosen = dataclasses.replace(good, actions=[{"a": -1}] * 2)
    assert "0 choices of actions" in refused(Rollouts([chosen]), tmp_path)
    assert "0 choices of actions" in refused(Rollouts([chosen], num_actions=0), tmp_path)


def test_unknown_agents_cannot_be_dropped(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot drop \['agent_9'\]"):
        import_episodes(written("omar", tmp_path), tmp_path / "store", drop_agents=["agent_9"])
    assert not (tmp_path / "store").exists()


def test_large_ids_stay_apart(tmp_path: Path):
    rows = [f"{step},{10_000_000 + agent},{step},0" for step in range(3) for agent in range(2)]
    (tmp_path / "tracks.csv").write_text("\n".join(["time,agent,x,y", *rows]))
    store = import_episodes(Table(tmp_path / "tracks.csv"), tmp_path / "store")
    assert store.spec.names == ("10000000", "10000001")


def test_a_table_in_another_encoding_is_named(tmp_path: Path):
    (tmp_path / "tracks.csv").write_bytes("time,agent,x,y\n0,J\u00fcrgen,0,0\n".encode("latin1"))
    assert "tracks.csv is no table in UTF-8" in refused(Table(tmp_path / "tracks.csv"), tmp_path)


@pytest.mark.parametrize(("key", "value"), [("shape", [7]), ("dtype", "video"), ("names", ["left_a"] * 6)])
def test_columns_that_are_not_what_info_says_are_named(key: str, value: object, tmp_path: Path):
    importer = written("lerobot", tmp_path)
    path = importer.source / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["action"] |= {key: value}
    path.write_text(json.dumps(info))
    assert "action" in refused(importer, tmp_path)


def test_spaces_that_are_no_spaces_are_refused(tmp_path: Path):
    importer = written("minari", tmp_path)
    path = importer.source / "data" / "metadata.json"
    for space in ('{"type": "Graph"}', '{"type": "Box"}', "[]", "{"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"action_space": space}))
        refused(importer, tmp_path)


def test_the_time_between_steps_is_taken_or_refused(tmp_path: Path):
    for name, importer in ((name, written(name, tmp_path / name)) for name in FILES if "exported" not in name):
        if hasattr(importer, "dt"):
            assert "a positive number of seconds" in refused(dataclasses.replace(importer, dt=0.0), tmp_path), name
    importer = written("minari, exported", tmp_path / "exported")
    for said in ({"dt": 0.5}, {"roles": ("a", "b", "c")}):
        assert "says dt and roles itself" in refused(dataclasses.replace(importer, **said), tmp_path)


def test_files_that_are_empty_of_what_they_should_hold_are_refused(tmp_path: Path):
    importer = written("robomimic", tmp_path)
    with h5py.File(importer.source, "a") as file:
        del file["data/demo_3/obs"]
    assert "data/demo_3/obs is missing" in refused(importer, tmp_path)
    with h5py.File(importer.source, "a") as file:
        del file["data/demo_0/actions"]
    assert "but not obs and actions" in refused(importer, tmp_path)
    minari = written("minari", tmp_path / "minari")
    with h5py.File(minari.source / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/observations/left"]
    assert "episode_1/observations/left is missing" in refused(minari, tmp_path)


def test_an_archive_of_impossible_episodes_is_refused(tmp_path: Path):
    importer = written("npz, exported", tmp_path)
    with np.load(importer.source) as archive:
        arrays = dict(archive)
    wrong = [0.0, 6.0, 16.0, 19.0], [0, 6, 19], [0, 6, 6, 19], [0, 1, 16, 19], [0, 90, 16, 19], [1, 6, 16, 19]
    for offsets in (*wrong, [0, 6, 16, 18]):
        np.savez(importer.source, **(arrays | {"offsets": np.array(offsets)}))
        refused(importer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILES if "parquet" not in name and name != "lerobot"])
def test_damaged_files_are_refused_or_read_and_nothing_else(name: str, tmp_path: Path):
    """Parquet is left out: damage can abort pyarrow itself, and the interpreter with it."""
    importer, rng = written(name, tmp_path), np.random.default_rng(0)
    root = importer.source if importer.source.is_dir() else importer.source.parent
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and "store" not in path.parts]
    for attempt in range(8):
        path = files[rng.integers(len(files))]
        whole = bytearray(before := path.read_bytes())
        if attempt % 2:
            whole[rng.integers(min(len(whole), 400))] = rng.integers(256)
        else:
            del whole[rng.integers(len(whole)) :]
        path.write_bytes(whole)
        out = tmp_path / f"store_{attempt}"
        try:
            import_episodes(importer, out).verify()
        except ValueError:
            assert not out.exists()
        path.write_bytes(before)
