"""Stores are split, thinned, mended and given to others without changing an episode."""

import io
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from foreign_formats import CARS, episodes
from round_trips import differences

from diffplan.datasets import (
    TrajectoryStore,
    collect_episodes,
    export_minari,
    export_npz,
    import_episodes,
    merge_stores,
    repair_store,
    split_store,
    subsample_store,
)
from diffplan.datasets.card import read_card, write_card
from diffplan.datasets.importers import Minari
from diffplan.datasets.statistics import Statistics

MADE = episodes(CARS, [4, 5, 6, 7, 3, 8])


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    """Two shards: the first four episodes, the other two."""
    store = TrajectoryStore.create(tmp_path / "data", CARS, "random walks")
    store.append(MADE[:4])
    store.append(MADE[4:])
    return store


def test_both_parts_of_a_split_hold_all_episodes_once(store: TrajectoryStore, tmp_path: Path):
    first, second = split_store(store.path, [tmp_path / "a", tmp_path / "b"], share=0.7, seed=3)
    assert len(first) == 4 and len(second) == 2
    assert sorted([*first.lengths, *second.lengths]) == sorted(store.lengths)
    again, _ = split_store(store.path, [tmp_path / "c", tmp_path / "d"], share=0.7, seed=3)
    assert differences(again, list(first)) == []
    assert first.source == "4 of 6 episodes of random walks"


def test_pieces_that_overlap_are_on_one_side_of_a_split(store: TrajectoryStore, tmp_path: Path):
    """Steps 0 to 9 and 5 to 14 of one recording, and 15 to 24, which shares none with them, but not with another's."""
    walks = episodes(CARS, [9] * 6)
    for one, recording, first in zip(walks, "aaabbb", (0, 5, 15, 0, 9, 25), strict=True):
        one.labels.update(recording=recording, first_step=first)
    TrajectoryStore.write(tmp_path / "walks", CARS, "walks", iter(walks))
    together = [{0, 1}, {3, 4}]
    for seed in range(8):
        parts = split_store(tmp_path / "walks", [tmp_path / f"a{seed}", tmp_path / f"b{seed}"], 0.5, seed)
        held = [{(one.labels["recording"], one.labels["first_step"]) for one in part} for part in parts]
        index = [{("aaabbb"[i], (0, 5, 15, 0, 9, 25)[i]) for i in group} for group in together]
        assert all(any(group <= part for part in held) for group in index)
        assert len(held[0]) + len(held[1]) == 6 and len(held[0]) in (2, 3, 4)


@pytest.mark.parametrize("seed", range(4))
def test_a_long_recording_is_one_side_of_a_split(seed: int, tmp_path: Path):
    walks = episodes(CARS, [9] * 6)
    for first, one in enumerate(walks):
        one.labels.update(recording="a" if first < 5 else "b", first_step=first)
    TrajectoryStore.write(tmp_path / "walks", CARS, "walks", iter(walks))
    parts = split_store(tmp_path / "walks", [tmp_path / "a", tmp_path / "b"], 0.8, seed)
    assert sorted(map(len, parts)) == [1, 5]


def test_pieces_that_all_overlap_cannot_be_split(tmp_path: Path):
    walks = episodes(CARS, [9] * 3)
    for first, one in enumerate(walks):
        one.labels.update(recording="", first_step=first)
    TrajectoryStore.write(tmp_path / "walks", CARS, "walks", iter(walks))
    with pytest.raises(ValueError, match="all 3 episodes of .* overlap; import them anew"):
        split_store(tmp_path / "walks", [tmp_path / "a", tmp_path / "b"], 0.5)


@pytest.mark.parametrize(
    ("share", "outs", "said"),
    [(0.01, "ab", "leaves a part"), (np.nan, "ab", "share=nan; choose more than 0"), (0.5, "a", "name two")],
)
def test_a_split_without_two_parts_is_refused(share, outs, said, store: TrajectoryStore, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        split_store(store.path, [tmp_path / one for one in outs], share)
    assert not (tmp_path / "a").exists()


def test_a_split_writes_nothing_when_one_folder_is_a_store(store: TrajectoryStore, tmp_path: Path):
    with pytest.raises(ValueError, match="a store already"):
        split_store(store.path, [tmp_path / "a", store.path], share=0.5)
    assert not (tmp_path / "a").exists()


def test_a_subsample_keeps_the_order(store: TrajectoryStore, tmp_path: Path):
    few = subsample_store(store.path, tmp_path / "few", episodes=3, seed=1)
    places = [store.lengths.tolist().index(length) for length in few.lengths]
    assert places == sorted(places) and differences(few, [MADE[place] for place in places]) == []
    with pytest.raises(ValueError, match="episodes=7, but .* has 6"):
        subsample_store(store.path, tmp_path / "more", episodes=7)


def test_new_stores_keep_the_card_and_say_what_was_done(store: TrajectoryStore, tmp_path: Path):
    assert read_card(subsample_store(store.path, tmp_path / "no card", episodes=3).path) is None
    write_card(store, Statistics.of(CARS, store), "MIT", "our yard", ["one step is 0.1 s"])
    first, second = split_store(store.path, [tmp_path / "a", tmp_path / "b"], share=0.5, seed=3)
    few, mended = subsample_store(store.path, tmp_path / "few", 2), repair_store(store.path, tmp_path / "mended").store
    for one, done in (
        (first, "3 of 6 episodes, drawn at random with seed 3"),
        (second, "3 of 6 episodes, drawn at random with seed 3"),
        (few, "2 of 6 episodes, drawn at random with seed 0"),
        (mended, "repaired: 6 of 6 episodes are left; damaged were none"),
    ):
        card = read_card(one.path)
        assert (card["licence"], card["origin"], card["notes"]) == ("MIT", "our yard", ["one step is 0.1 s", done])
        assert (card["source"], card["fingerprint"]) == (one.source, one.fingerprint)
        assert card["report"]["episodes"] == len(one) and "Licence: MIT." in (one.path / "CARD.md").read_text()


def test_a_merged_card_loses_no_licence(store: TrajectoryStore, tmp_path: Path):
    other = TrajectoryStore.create(tmp_path / "other", CARS, "drives")
    other.append(MADE[:1])
    bare = TrajectoryStore.create(tmp_path / "bare", CARS, "unknown")
    bare.append(MADE[1:2])
    for one, licence, notes in ((store, "MIT", ["a", "b"]), (other, "CC-BY-4.0", ["b", "c"])):
        write_card(one, Statistics.of(CARS, one), licence, "our yard", notes)
    card = read_card(merge_stores([store.path, other.path, bare.path], tmp_path / "all").path)
    assert card["licence"] == "MIT (random walks); CC-BY-4.0 (drives); not stated (unknown)"
    assert card["notes"] == ["a", "b", "c", "merged: 6, 1, 1 episodes"]
    (store.path / "card.json").write_text("{")
    with pytest.raises(ValueError, match="card.json is not valid JSON"):
        merge_stores([store.path, other.path], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_cut_file_costs_only_the_episodes_behind_the_cut(store: TrajectoryStore, tmp_path: Path):
    path = store.path / "shard_00000" / "actions.npy"
    os.truncate(path, path.stat().st_size - 40)  # within the fourth episode
    repair = repair_store(store.path, tmp_path / "saved")
    assert differences(repair.store, [*MADE[:3], *MADE[4:]]) == []
    assert (repair.kept, repair.lost, repair.unverified) == (5, 1, 3)
    assert repair.damaged == ("shard_00000/actions.npy",)
    assert repair.store.source == "5 of 6 episodes of random walks, repaired"
    repair.store.verify()


def test_a_collection_does_not_go_on_in_a_repaired_store(crossing_store: Path, tmp_path: Path):
    collect = {"episodes": 14, "workers": 0, "env_options": {"num_robots": 2}, "progress": False}
    store = collect_episodes("crossing-v0", out=shutil.copytree(crossing_store, tmp_path / "data"), **collect)
    (store.path / "shard_00000" / "actions.npy").unlink()
    repair = repair_store(store.path, tmp_path / "saved")
    assert (repair.kept, repair.lost) == (2, 12)  # the 13th and 14th: a collection would make these once more
    with pytest.raises(
        ValueError, match=r"was begun with .2 of 14 episodes of crossing-v0.*, repaired., not .crossing-v0"
    ):
        collect_episodes("crossing-v0", out=repair.store.path, **collect)


def test_a_flipped_bit_costs_its_shard(store: TrajectoryStore, tmp_path: Path):
    path = store.path / "shard_00000" / "rewards.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    repair = repair_store(store.path, tmp_path / "saved")
    assert differences(repair.store, MADE[4:]) == [] and (repair.lost, repair.unverified) == (4, 0)


@pytest.mark.parametrize("name", ["returns.npy", "action_mask.npy"])
def test_damage_in_what_follows_from_other_files_costs_nothing(name: str, store: TrajectoryStore, tmp_path: Path):
    missing, flipped = (store.path / f"shard_0000{shard}" / name for shard in range(2))
    sound = missing.read_bytes(), flipped.read_bytes()
    missing.unlink()
    flipped.write_bytes(sound[1][:-1] + bytes([sound[1][-1] ^ 1]))
    repair = repair_store(store.path, tmp_path / "saved")
    assert differences(repair.store, MADE) == [] and (repair.kept, repair.lost, repair.unverified) == (6, 0, 0)
    assert repair.damaged == (f"shard_00000/{name}", f"shard_00001/{name}")
    again = np.load(repair.store.path / "shard_00000" / name)
    first, second = (np.load(io.BytesIO(data)) for data in sound)
    np.testing.assert_array_equal(again, np.concatenate([first, second]))
    actions = store.path / "shard_00000" / "actions.npy"
    os.truncate(actions, actions.stat().st_size - 40)
    assert differences(repair_store(store.path, tmp_path / "cut").store, [*MADE[:3], *MADE[4:]]) == []


def test_a_missing_shard_costs_itself(store: TrajectoryStore, tmp_path: Path):
    shutil.rmtree(store.path / "shard_00001")
    assert differences(repair_store(store.path, tmp_path / "saved").store, MADE[:4]) == []


def test_a_write_that_fails_leaves_no_half_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diffplan.datasets.store._SHARD", 2)

    def cut_short():
        yield from MADE[:3]
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        TrajectoryStore.write(tmp_path / "out", CARS, "random walks", cut_short())
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_removes_only_its_own(tmp_path: Path):
    theirs = tmp_path / "out" / "shard_00007" / "notes"

    def interrupted():
        yield MADE[0]
        theirs.parent.mkdir()
        theirs.write_text("mine")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrajectoryStore.write(tmp_path / "out", CARS, "random walks", interrupted())
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]


def test_nothing_is_written_over_shards_without_their_manifest(store: TrajectoryStore, tmp_path: Path):
    lost = shutil.copytree(store.path, tmp_path / "lost")
    (lost / "manifest.json").unlink()
    for make in (
        lambda: split_store(store.path, [tmp_path / "a", lost], share=0.5),
        lambda: subsample_store(store.path, lost, episodes=2),
        lambda: merge_stores([store.path], lost),
        lambda: repair_store(store.path, lost),
    ):
        with pytest.raises(ValueError, match=r"lost has shards but no manifest\.json"):
            make()
    assert sum(1 for _ in lost.rglob("*.npy")) == 18 and not (tmp_path / "a").exists()


def test_where_nothing_is_whole_nothing_is_written(store: TrajectoryStore, tmp_path: Path):
    for path in store.path.glob("*/offsets.npy"):
        path.unlink()
    with pytest.raises(ValueError, match="no episode of .* is whole"):
        repair_store(store.path, tmp_path / "saved")
    (store.path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is not valid JSON"):
        repair_store(store.path, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_archive_is_plain_arrays(store: TrajectoryStore, tmp_path: Path):
    with np.load(export_npz(store, tmp_path / "all.npz"), allow_pickle=False) as archive:
        assert archive["offsets"].tolist() == [0, 5, 11, 18, 26, 30, 39]
        np.testing.assert_array_equal(archive["observations"][5:11], MADE[1].observations)
        assert json.loads(str(archive["spec"]))["dt"] == 0.1


def test_an_export_is_whole_or_not_there(store: TrajectoryStore, tmp_path: Path):
    empty = TrajectoryStore.create(tmp_path / "empty", CARS)
    for export, out in ((export_npz, "all.npz"), (export_minari, "all")):
        with pytest.raises(ValueError, match="holds no episodes"):
            export(empty, tmp_path / out)
    with pytest.raises(ValueError, match="expected .npz"):
        export_npz(store, tmp_path / "all.zip")
    (tmp_path / "all").mkdir()
    with pytest.raises(ValueError, match="there already"):
        export_minari(store, tmp_path / "all")
    os.truncate(store.path / "shard_00001" / "actions.npy", 200)
    with pytest.raises(ValueError, match="bytes, expected"):
        export_minari(TrajectoryStore.open(store.path), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "data", "empty"]


def test_agents_that_never_are_there_do_not_count_in_mean_returns(tmp_path: Path):
    alone = episodes(CARS, [5])[0]
    alone.agent_mask[:, 1:] = False
    for array in (alone.observations, alone.actions, alone.rewards, alone.terminations, alone.truncations):
        array[:, 1:] = 0
    store = TrajectoryStore.create(tmp_path / "data", CARS, "random walks")
    store.append([alone])
    mean = alone.rewards[:, 0].sum()
    assert store.info()["return"]["mean"] == pytest.approx(mean)
    assert Statistics.of(CARS, store).report()["return"]["mean"] == pytest.approx(mean)


def test_others_read_one_end_of_an_episode_that_agents_leave_one_by_one(tmp_path: Path):
    leaving, unended = episodes(CARS, [5, 2])
    leaving.truncations[:] = unended.terminations[:] = False
    leaving.agent_mask[3:, 0] = False
    leaving.terminations[2, 0] = leaving.truncations[4, 1] = True
    store = TrajectoryStore.create(tmp_path / "data", CARS, "random walks")
    store.append([leaving, unended])
    with h5py.File(export_minari(store, tmp_path / "all") / "data" / "main_data.hdf5") as file:
        assert file["episode_0/terminations"][:].tolist() == [False] * 5
        assert file["episode_0/truncations"][:].tolist() == [False] * 4 + [True]
        assert file["episode_1/truncations"][:].tolist() == [False, True]
    again = import_episodes(Minari(tmp_path / "all"), tmp_path / "again")[0]
    np.testing.assert_array_equal(again.terminations, leaving.terminations)
    np.testing.assert_array_equal(again.truncations, leaving.truncations)


def test_the_report_of_a_store_counts_agents_over_time(store: TrajectoryStore):
    report = Statistics.of(CARS, store).report()
    assert (report["episodes"], report["steps"]) == (6, 33)
    assert report["agents"] == {
        "number": 3,
        "at_once": {"min": 3, "max": 3},
        "mean_share_of_time": 1.0,
        "never": [],
    }
    assert report["duplicates"]["number"] == 0 and report["widths"] == {"car": {"observation": 4, "action": 2}}
