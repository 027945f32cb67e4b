"""Episodes written in other projects' layouts come back number for number, and the report says what they are like."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from foreign_formats import CARS, episodes, write_omar, write_robomimic
from round_trips import ROUND_TRIPS, differences

import diffplan as dp
from diffplan.datasets import TrajectoryStore, import_episodes
from diffplan.datasets.card import read_card
from diffplan.datasets.collection import run_episode
from diffplan.datasets.importers import EthUcy, Madiff, Minari, Omar, Overcooked, Robomimic, Rollout, Rollouts, Table
from diffplan.datasets.statistics import Statistics
from diffplan.envs import behavior_policy

DATA = os.environ.get("DIFFPLAN_REAL_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DIFFPLAN_REAL_DATA names no folder with the real data")


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_was_written_in_another_layout_is_read_exactly(name: str, tmp_path: Path):
    importer, made = ROUND_TRIPS[name](tmp_path / "source")
    store = import_episodes(importer, tmp_path / "store")
    store.verify()
    assert differences(store, made) == []
    assert read_card(store.path)["report"]["episodes"] == len(made)


def test_an_exported_spec_is_read_exactly(tmp_path: Path):
    for name in ("npz, exported", "minari, exported"):
        importer, made = ROUND_TRIPS[name](tmp_path / name)
        store = import_episodes(importer, tmp_path / name / "again")
        assert store.spec == made[0].spec and store.source == "drawn at random"


def test_episodes_without_an_end_are_cut_where_the_observations_do_not_go_on(tmp_path: Path):
    made = episodes(CARS, [25, 25, 25])
    for one in made:
        one.terminations[:] = False
    write_omar(tmp_path / "spread", {0: made})
    by_data = import_episodes(Omar(tmp_path / "spread"), tmp_path / "by_data")
    by_length = import_episodes(Omar(tmp_path / "spread", episode_length=25), tmp_path / "by_length")
    shorter = import_episodes(Omar(tmp_path / "spread", episode_length=5), tmp_path / "shorter")
    assert by_data.lengths.tolist() == by_length.lengths.tolist() == [25] * 3
    assert shorter.lengths.tolist() == [5] * 15
    assert all(one.truncations[-1].all() and not one.terminations.any() for one in by_data)


def test_data_of_a_known_environment_are_as_if_collected_in_it(tmp_path: Path):
    collected = dp.collect_episodes("crossing-v0", out=tmp_path / "own", episodes=2, env_options={"num_robots": 3})
    write_omar(tmp_path / "theirs", {0: list(collected)})
    spec = dp.make("crossing-v0", num_robots=3).joint_spec
    store = import_episodes(Omar(tmp_path / "theirs"), tmp_path / "store", env_spec=spec)
    assert store.spec == collected.spec == spec
    assert read_card(store.path)["notes"][-1] == (
        "agents ['agent_0', 'agent_1', 'agent_2'] are taken for ['robot_0', 'robot_1', 'robot_2'] of the environment"
    )
    for one, other in zip(store, collected, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
    for number in (2, 4):
        spec = dp.make("crossing-v0", num_robots=number).joint_spec
        with pytest.raises(ValueError, match=r"has agents \[.*\] of so many \(observed, acted\) entries"):
            import_episodes(Omar(tmp_path / "theirs"), tmp_path / "other", env_spec=spec)
    shuffled = dataclasses.replace(spec, agents=dict.fromkeys(["agent_2", "agent_0", "agent_1"], "robot"))
    first = import_episodes(Omar(tmp_path / "theirs"), tmp_path / "shuffled", env_spec=shuffled)[0]
    np.testing.assert_array_equal(first.observations, collected[0].observations[:, [2, 0, 1]])


def test_what_stays_in_an_environment_must_stay_in_its_data(tmp_path: Path):
    role = dataclasses.replace(CARS.roles["car"], static=(0,))
    write_omar(tmp_path / "cars", {0: episodes(CARS, [9])})
    with pytest.raises(ValueError, match=r"\['car observation\[0\]'\] of .* change within an episode"):
        import_episodes(
            Omar(tmp_path / "cars"), tmp_path / "store", env_spec=dataclasses.replace(CARS, roles={"car": role})
        )


def test_action_bounds_are_one_or_those_of_the_data(tmp_path: Path):
    made = [dataclasses.replace(one, actions=one.actions * np.float32([1, 5])) for one in episodes(CARS, [50])]
    write_omar(tmp_path / "spread", {0: made})
    role = import_episodes(Omar(tmp_path / "spread"), tmp_path / "store").spec.roles["agent"]
    low, high = made[0].actions[..., 1].min(), made[0].actions[..., 1].max()
    assert role.action_low == (-1.0, low) and role.action_high == (1.0, high)


def test_agents_can_be_dropped(tmp_path: Path):
    importer, made = ROUND_TRIPS["omar"](tmp_path / "source")
    store = import_episodes(importer, tmp_path / "store", drop_agents=["agent_2"])
    assert store.spec.names == ("agent_0", "agent_1") and store.spec.observation_size == 4
    np.testing.assert_array_equal(store[1].observations, made[1].observations[:, :2, :4])


def test_agents_of_the_pad_value_are_absent(tmp_path: Path):
    importer, _ = ROUND_TRIPS["madiff"](tmp_path / "source")
    seen = np.load(tmp_path / "source" / "obs.npy")
    seen[10:25, 2, 3:] = -np.inf
    np.save(tmp_path / "source" / "obs.npy", seen)
    store = import_episodes(dataclasses.replace(importer, pad_value=float("-inf")), tmp_path / "store")
    assert not store[0].agent_mask[10:, 2].any() and store[0].agent_mask[:10].all() and store[1].agent_mask.all()


def test_the_observation_after_the_last_action_is_repeated_where_it_is_unknown(tmp_path: Path):
    made = [dataclasses.replace(one, rewards=np.repeat(one.rewards[:, :1], 3, 1)) for one in ROBOTS]
    write_robomimic(tmp_path / "lift.hdf5", made, next_obs=False)
    store = import_episodes(Robomimic(tmp_path / "lift.hdf5", arms=2), tmp_path / "store")
    np.testing.assert_array_equal(store[0].observations[-1], store[0].observations[-2])
    assert len(store[0]) == len(made[0]) and any("repeated" in note for note in read_card(store.path)["notes"])


ROBOTS = episodes(dp.JointSpec({"a": "r", "b": "r", "c": "r"}, {"r": dp.Role(6, (-1.0,) * 7, (1.0,) * 7)}), [4, 5])


def test_whole_numbers_as_actions_are_choices(tmp_path: Path):
    seen = [{"a": np.zeros(2), "b": np.ones(2)}] * 3
    flags = [{"a": False, "b": False}] * 2
    rollout = Rollout(seen, [{"a": 0, "b": 3}, {"a": 2, "b": 1}], [{"a": 0.0, "b": 1.0}] * 2, flags, flags)
    store = import_episodes(Rollouts([rollout]), tmp_path / "store")
    assert store.spec.roles["agent"].discrete and store[0].actions.argmax(-1).tolist() == [[0, 3], [2, 1]]


def test_a_planner_of_discrete_actions_chooses_legal_ones(tmp_path: Path):
    importer, _ = ROUND_TRIPS["madiff, discrete"](tmp_path / "source")
    store = import_episodes(importer, tmp_path / "store")
    dataset = dp.load_dataset(store.path, horizon=4)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=8, depth=1)
    dp.train(planner, dataset, steps=2, batch_size=4, progress=False)
    seen = np.zeros(9)
    seen[4 + 2] = 1  # only the third choice is legal
    actions = planner({"agent_0": seen, "agent_1": seen}, num_samples=4, seed=0).actions_at(0)
    assert [action.tolist() for action in actions.values()] == [[0, 0, 1, 0, 0]] * 2
    free = planner({"agent_0": np.zeros(9), "agent_1": np.zeros(9)}, seed=0).actions_at(1)
    assert all(sorted(action) == [0, 0, 0, 0, 1] for action in free.values())


def test_data_without_actions_train_a_forecaster(tmp_path: Path):
    importer, _ = ROUND_TRIPS["eth_ucy"](tmp_path / "source")
    store = import_episodes(importer, tmp_path / "store")
    assert store.spec.action_size == 0
    dataset = dp.load_dataset(store.path, horizon=4, history=4)
    planner = dp.DiffusionPlanner.for_dataset(dataset, width=8, depth=1)
    assert np.isfinite(dp.train(planner, dataset, steps=2, batch_size=4, progress=False).losses).all()
    plan = planner({"pedestrian_0": np.zeros(2)}, num_samples=2, seed=0)
    assert plan.actions.shape == (2, 3, 4, 0) and plan.positions("pedestrian_0").shape == (2, 4, 2)


def test_pieces_of_a_recording_hold_only_whole_tracks_when_asked(tmp_path: Path):
    importer, _ = ROUND_TRIPS["eth_ucy"](tmp_path / "source")
    pieces = dataclasses.replace(importer, frames=4, stride=1, complete=True, least=3)
    store = import_episodes(pieces, tmp_path / "store")
    assert store.lengths.tolist() == [3] * 4 and all(one.agent_mask.all() for one in store)
    assert [labels["first_step"] for labels in store.labels] == [3, 4, 3, 4]
    assert {labels["ids"] for labels in store.labels} == {"1 2 3"}


def test_units_become_metres(tmp_path: Path):
    path = tmp_path / "tracks.csv"
    path.write_text("t,who,x,y\n0,a,1000,2000\n0.5,a,1500,2000\n1,a,2000,2000\n")
    store = import_episodes(Table(path, time="t", agent="who", units="mm"), tmp_path / "store")
    assert store[0].observations[:, 0, 0].tolist() == [1, 1.5, 2] and store.spec.dt == 0.5
    assert store.spec.role_of("a").position == (0, 1)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_agents_whose_numbers_look_alike_are_not_one(kind: str, tmp_path: Path):
    ids = [2**53, 2**53 + 1] if kind == "parquet" else ["01", "1"]
    path = tmp_path / f"tracks.{kind}"
    columns = {"time": [0.0, 0.0, 0.5, 0.5], "agent": ids * 2, "x": [1.0, 2.0, 3.0, 4.0]}
    if kind == "csv":
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join(",".join(map(str, row)) for row in (columns, *rows)))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet")
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    store = import_episodes(Table(path), tmp_path / "store")
    assert list(store.spec.names) == [str(one) for one in ids]
    assert store[0].observations[..., 0].tolist() == [[1, 2], [3, 4]]


def test_what_an_agents_last_row_is_paid_is_said_to_be_left_out(tmp_path: Path):
    path = tmp_path / "tracks.csv"
    path.write_text("time,agent,x,paid\n0,a,1,1\n0.5,a,2,0\n1,a,3,100\n")
    assert "1 rewards, 100 in all, are left out" in str(Table(path, reward="paid").read().notes)


def walks(path: Path, seconds: str = "{:.4f}") -> Path:
    """Two clips of two walkers at 30 frames a second, with velocities in columns of the usual names."""
    rows = ["time,agent,clip,x,y,vx,vy"]
    for walker in range(4):
        rows += [
            f"{seconds.format(frame / 30)},{walker},{walker // 2},{walker + frame / 30:.4f},{walker},1,0"
            for frame in range(30)
        ]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_velocities_are_known_by_their_usual_names(tmp_path: Path):
    recording = Table(walks(tmp_path / "walks.csv"), units="cm").read()
    role = recording.spec.roles["agent"]
    assert (role.position, role.velocity) == ((1, 2), (3, 4))
    assert next(recording.episodes()).observations[0, 0, 3] == pytest.approx(0.01)
    assert (
        "clip is whole and never changes for an agent: if it names a recording, say --episode clip" in recording.notes
    )
    apart = Table(tmp_path / "walks.csv", episode="clip").read()
    assert len([*apart.episodes()]) == 2 and "--episode" not in str(apart.notes)


def test_units_of_nothing_are_refused(tmp_path: Path):
    path = walks(tmp_path / "walks.csv")
    with pytest.raises(ValueError, match="none of the columns .*'clip'.* is known to be a position"):
        Table(path, observations=("clip",), units="mm").read()


def test_rounded_times_are_of_the_step_that_is_told(tmp_path: Path):
    path = walks(tmp_path / "walks.csv", seconds="{:.2f}")
    with pytest.raises(ValueError, match="between two steps of 0.03 s"):
        Table(path).read()
    (episode,) = Table(path, dt=1 / 30).read().episodes()
    assert len(episode) == 29 and episode.agent_mask.all()


def test_frames_become_seconds(tmp_path: Path):
    path = tmp_path / "tracks.csv"
    path.write_text("frame,agent,x,y\n0,a,1,2\n5,a,1.5,2\n10,a,2,2\n")
    table = Table(path, time="frame")
    assert "if they count frames, say how many a second has" in str(table.read().notes)
    filmed = dataclasses.replace(table, rate=25)
    assert filmed.read().spec.dt == 0.2 and "count frames" not in str(filmed.read().notes)
    with pytest.raises(ValueError, match="rate=0; a second has a positive number"):
        dataclasses.replace(table, rate=0).read()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_are_observed_that_are_written_as_words_or_name_roles(kind: str, tmp_path: Path):
    path, columns = tmp_path / f"tracks.{kind}", {"time": "0 1", "agent": "a a", "kind": "4 4", "x": "1.5 2.5"}
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        words = {name: pyarrow.array(column.split()) for name, column in columns.items()}
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(words), path)
    else:
        rows = zip(*map(str.split, columns.values()), strict=True)
        path.write_text("\n".join(map(",".join, [columns, *rows])))
    store = import_episodes(Table(path, role="kind", observations=("x", "kind")), tmp_path / "store")
    assert store[0].observations[:, 0].tolist() == [[1.5, 4], [2.5, 4]] and store.spec.agents == {"a": "4"}
    assert import_episodes(Table(path, role="kind"), tmp_path / "other")[0].observations.tolist() == [[[1.5]], [[2.5]]]


def test_agents_that_come_and_go_take_places(tmp_path: Path):
    rows = [
        f"{t},{kind}{t // 5}{k},{kind},{t + k},0" for t in range(10) for kind in ("ball", "robot") for k in range(2)
    ]
    (tmp_path / "tracks.csv").write_text("\n".join(["time,agent,kind,x,y", *rows]))
    table = Table(tmp_path / "tracks.csv", role="kind", frames=5, anonymous=True)
    store = import_episodes(table, tmp_path / "store")
    assert store.spec.agents == {"ball_0": "ball", "ball_1": "ball", "robot_0": "robot", "robot_1": "robot"}
    assert [labels["ids"] for labels in store.labels] == [
        "ball00 ball01 robot00 robot01",
        "ball10 ball11 robot10 robot11",
    ]


def test_the_report_tells_gaps_jumps_constants_and_duplicates(tmp_path: Path):
    steps = [[step, "a", round(0.01 * step, 2), 5] for step in range(40)]
    del steps[20:23]
    steps[30][2] = 9.0
    text = "\n".join(["time,agent,x,y", *(",".join(map(str, row)) for row in steps)])
    for name in ("one.csv", "two.csv"):
        (tmp_path / "tracks").mkdir(exist_ok=True)
        (tmp_path / "tracks" / name).write_text(text)
    store = import_episodes(Table(tmp_path / "tracks"), tmp_path / "store", licence="CC0-1.0", origin="a test")
    card = read_card(store.path)
    report = card["report"]
    assert report["gaps"] == {"number": 2, "longest": 3} and report["constant"] == ["agent observation[1]"]
    assert report["duplicates"] == {"number": 1, "first": ["1 = 0"]}
    assert len(report["jumps"]) == 1 and "in episode 0 before step 33 (a)" in report["jumps"][0]
    assert (card["licence"], card["origin"]) == ("CC0-1.0", "a test")
    assert "CC0-1.0" in (store.path / "CARD.md").read_text()


def test_static_entries_that_change_are_reported_and_not_learned_from(tmp_path: Path):
    spec = dp.make("crossing-v0").joint_spec
    robot = dataclasses.replace(spec.role_of("robot_0"), static=(1, 4, 5))
    wrong = dataclasses.replace(spec, roles={"robot": robot})
    env, script = dp.make("crossing-v0"), behavior_policy("crossing-v0")
    for one, found in ((spec, []), (wrong, ["robot observation[1]"])):
        episode = dataclasses.replace(run_episode(env, script, spec, 3), spec=one)
        assert Statistics.of(one, [episode]).report()["static_but_changing"] == found
    store = dp.TrajectoryStore.write(tmp_path / "store", wrong, "a test", [episode])
    dataset = dp.load_dataset(store.path, horizon=8)
    with pytest.raises(ValueError, match=r"\['robot observation\[1\]'\] of .*store change within an episode"):
        dp.train(dp.DiffusionPlanner.for_dataset(dataset, width=16), dataset, steps=1)


def test_actions_beyond_their_bounds_are_reported():
    spec = dp.make("crossing-v0").joint_spec
    episode = run_episode(dp.make("crossing-v0"), behavior_policy("crossing-v0"), spec, 3)
    assert Statistics.of(spec, [episode]).report()["actions_out_of_bounds"] == []
    low, high = spec.roles["robot"].action_low[1], spec.roles["robot"].action_high[1]
    episode.actions[3, 0, 1] = 5 * high
    (line,) = Statistics.of(spec, [episode]).report()["actions_out_of_bounds"]
    assert line.startswith("robot action[1]: ") and line.endswith(f" to {5 * high:.4g}, bounds {low:.4g} to {high:.4g}")


def test_minari_reads_discrete_actions_and_a_single_agent(tmp_path: Path):
    import h5py

    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group["observations/speed"], group["observations/pose"] = np.arange(4.0)[:, None], np.ones((4, 2))
        group["actions"], group["rewards"] = np.array([5, 6, 7]), np.arange(3.0)
        group["terminations"], group["truncations"] = np.array([0, 0, 1], bool), np.zeros(3, bool)
    spaces = {"speed": {"type": "Box", "shape": [1]}, "pose": {"type": "Box", "shape": [2]}}
    metadata = {"total_episodes": 1, "observation_space": json.dumps({"type": "Dict", "subspaces": spaces})}
    metadata["action_space"] = json.dumps({"type": "Discrete", "start": 5, "n": 3})
    (tmp_path / "data" / "metadata.json").write_text(json.dumps(metadata))
    store = import_episodes(Minari(tmp_path), tmp_path / "store")
    assert store[0].observations[:, 0].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3]]
    assert store[0].actions[:, 0].tolist() == np.eye(3).tolist() and store[0].terminations[:, 0].tolist() == [0, 0, 1]


@needs_data
@pytest.mark.parametrize(
    ("files", "windows", "tracks"),
    [
        (["biwi_eth"], 70, 181),
        (["biwi_hotel"], 301, 1053),
        (["students001", "students003"], 947, 24334),
        (["crowds_zara01"], 602, 2253),
        (["crowds_zara02"], 921, 5833),
    ],
)
def test_the_windows_of_the_eth_ucy_protocol_are_counted_right(files, windows, tracks, tmp_path: Path):
    stores = [
        import_episodes(
            EthUcy(Path(DATA) / "eth_ucy" / "all_data" / f"{name}.txt", frames=20, stride=1, complete=True, least=2),
            tmp_path / name,
        )
        for name in files
    ]
    assert sum(map(len, stores)) == windows
    assert sum(int(one.agent_mask[0].sum()) for store in stores for one in store) == tracks


@needs_data
def test_human_human_overcooked_is_read_with_its_scores(tmp_path: Path):
    source = Path(DATA) / "overcooked_hh" / "train.npz"
    store = import_episodes(Overcooked(source), tmp_path / "store")
    with np.load(source) as data:
        np.testing.assert_array_equal(np.concatenate([one.actions.argmax(-1) for one in store]), data["action"])
        np.testing.assert_array_equal([one.rewards[:, 0].sum() for one in store], data["score"])
    assert (len(store), store.num_steps) == (39, 46_729)


def test_discounts_and_ids_can_be_taken_as_they_are(tmp_path: Path):
    importer, made = ROUND_TRIPS["madiff"](tmp_path / "source")
    store = import_episodes(Madiff(tmp_path / "source", strip_agent_ids=False), tmp_path / "store")
    np.testing.assert_array_equal(store[0].observations[..., :3], np.broadcast_to(np.eye(3), (26, 3, 3)))
    np.testing.assert_array_equal(store[0].observations[..., 3:], made[0].observations)
    assert importer.strip_agent_ids


def test_a_store_that_appears_while_an_import_reads_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    importer, made = ROUND_TRIPS["npz, exported"](tmp_path / "source")
    read = type(importer).read

    def slowly(self):
        TrajectoryStore.write(tmp_path / "store", made[0].spec, "theirs", made[:1])
        return read(self)

    monkeypatch.setattr(type(importer), "read", slowly)
    with pytest.raises(ValueError, match="a store already"):
        import_episodes(importer, tmp_path / "store")
    assert len(TrajectoryStore.open(tmp_path / "store")) == 1


def test_a_store_stays_whole_when_an_import_is_refused(tmp_path: Path):
    importer, _ = ROUND_TRIPS["madiff"](tmp_path / "source")
    store = import_episodes(importer, tmp_path / "store")
    with pytest.raises(ValueError, match="a store already; choose a new folder"):
        import_episodes(importer, store.path)
    assert len(TrajectoryStore.open(store.path)) == 4
