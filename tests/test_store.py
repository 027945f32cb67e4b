"""The store gives back what was put in, survives crashes, and names what is damaged or does not fit."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from diffplan.datasets import store as store_module
from diffplan.datasets.arrays import npy_header
from diffplan.datasets.store import TrajectoryStore
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

SPEC = JointSpec(
    {"arm_0": "arm", "arm_1": "arm", "cart": "cart"},
    {"arm": Role(4, (-1.0, -1.0), (1.0, 1.0), position=(0, 1)), "cart": Role(3, (-2.0,), (2.0,))},
    dt=0.1,
    env_options={"sizes": (1, 2)},
)
ARRAYS = ("observations", "actions", "rewards", "terminations", "truncations", "agent_mask")


def episode(length: int, seed: int, spec: JointSpec = SPEC, /, **labels) -> Trajectory:
    rng = np.random.default_rng(seed)
    N, O, A = spec.num_agents, spec.observation_size, spec.action_size
    return Trajectory(
        spec,
        rng.normal(size=(length + 1, N, O)).astype(np.float32),
        rng.normal(size=(length, N, A)).astype(np.float32),
        rng.normal(size=(length, N)).astype(np.float32),
        rng.random((length, N)) < 0.5,
        rng.random((length, N)) < 0.5,
        rng.random((length + 1, N)) < 0.8,
        labels,
    )


EPISODES = [episode(5 + i, i, skill="expert" if i % 2 else "random", seed=i, success=i > 2) for i in range(6)]


@pytest.fixture
def store(tmp_path) -> TrajectoryStore:
    made = TrajectoryStore.create(tmp_path / "data", SPEC, source="drawn at random")
    made.append(EPISODES[:2])
    made.append(EPISODES[2:5])
    return made


def edit_manifest(store: TrajectoryStore, change) -> None:
    path = store.path / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux tells them")
def test_many_small_shards_leave_no_files_open(tmp_path: Path) -> None:
    store = TrajectoryStore.create(tmp_path, SPEC, "walks")
    for seed in range(20):
        store.append([episode(4, seed)])
    before = len(os.listdir("/proc/self/fd"))
    again = TrajectoryStore.open(tmp_path)
    assert len([*again]) == 20
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_reopened_store_gives_back_every_episode(store):
    reopened = TrajectoryStore.open(store.path)
    assert len(reopened) == 5 and reopened.source == "drawn at random"
    for read, written in zip(reopened, EPISODES, strict=False):
        assert read.labels == written.labels
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name), strict=True)
    np.testing.assert_array_equal(reopened[-1].observations, EPISODES[4].observations)
    with pytest.raises(IndexError):
        reopened[5]


def test_columns_describe_the_episodes(store):
    assert store.lengths.tolist() == [5, 6, 7, 8, 9] and store.num_steps == 35
    np.testing.assert_allclose(store.returns, [one.returns for one in EPISODES[:5]], rtol=1e-5)
    assert store.labels == [one.labels for one in EPISODES[:5]]
    info = store.info()
    assert (info["episodes"], info["steps"], info["shards"]) == (5, 35, 2)
    assert info["seconds"] == pytest.approx(3.5)
    assert info["labels"]["skill"] == {"random": 3, "expert": 2}
    assert info["labels"]["success"] == {"False": 3, "True": 2}
    assert info["labels"]["seed"] == {"mean": 2.0, "std": pytest.approx(2**0.5), "min": 0.0, "max": 4.0}
    assert info["roles"] == {"arm": {"observation": 4, "action": 2}, "cart": {"observation": 3, "action": 1}}
    assert info["bytes"] == sum(f.stat().st_size for f in store.path.rglob("shard*/*"))


def test_a_label_of_words_and_numbers_is_counted(tmp_path):
    TrajectoryStore.write(tmp_path / "data", SPEC, "", [episode(5, 0, who="a"), episode(5, 1, who=3)])
    assert TrajectoryStore.open(tmp_path / "data").info()["labels"] == {"who": {"a": 1, "3": 1}}


def test_agents_act_where_they_are_there_now_and_next(store):
    for index, one in enumerate(EPISODES[:5]):
        rows = store.first_rows[index] + np.arange(len(one) + 1)
        there, acts = store.take(rows[None], "agent_mask", "action_mask")
        np.testing.assert_array_equal(there[0], one.agent_mask)
        np.testing.assert_array_equal(acts[0, :-1], one.agent_mask[:-1] & one.agent_mask[1:])
        assert not acts[0, -1].any()


def test_reading_piece_by_piece_equals_reading_by_map(store, monkeypatch):
    rows = np.array([[16, 17, 18], [0, 1, 2], [0, 0, 1], [12, 12, 12], [37, 38, 39], [39, 39, 39]])
    mapped = store.take(rows, "observations", "rewards", "agent_mask")
    monkeypatch.setattr(store_module, "_MAP_BYTES", 0)
    read = TrajectoryStore.open(store.path).take(rows, "observations", "rewards", "agent_mask")
    for one, other in zip(read, mapped, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_arrays_are_plain_npy_files(store):
    written = np.concatenate([one.observations for one in EPISODES[:2]])
    np.testing.assert_array_equal(np.load(store.path / "shard_00000" / "observations.npy"), written, strict=True)


def test_appending_leaves_earlier_files_untouched(store):
    before = {file: file.read_bytes() for file in store.path.rglob("shard*/*")}
    store.append([EPISODES[5]])
    assert len(before) == 20 and all(file.read_bytes() == data for file, data in before.items())
    assert len(store) == len(TrajectoryStore.open(store.path)) == 6
    np.testing.assert_array_equal(store[5].actions, EPISODES[5].actions)


def test_appending_nothing_changes_nothing(store):
    before = (store.path / "manifest.json").read_bytes()
    store.append([])
    assert (store.path / "manifest.json").read_bytes() == before


def test_leftovers_of_a_crashed_append_are_ignored_and_overwritten(store):
    left = store.path / "shard_00002"
    left.mkdir()
    (left / "observations.npy").write_bytes(b"half")
    (left / "something_else").write_bytes(b"x")
    reopened = TrajectoryStore.open(store.path)
    assert len(reopened) == 5
    reopened.append([EPISODES[5]])
    TrajectoryStore.open(store.path).verify()
    assert not (left / "something_else").exists()


def test_a_killed_writer_leaves_a_valid_store(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_store import SPEC, EPISODES, TrajectoryStore
store = TrajectoryStore.create({str(tmp_path / "data")!r}, SPEC)
while True:
    store.append(EPISODES)
    print(len(store), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        written = [int(writer.stdout.readline()) for _ in range(3)][-1]
        writer.send_signal(signal.SIGKILL)
    store = TrajectoryStore.open(tmp_path / "data")
    store.verify()
    assert len(store) >= written
    store.append(EPISODES)
    store.verify()


def test_a_process_that_is_killed_while_it_makes_a_store_leaves_none(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_store import SPEC, EPISODES, TrajectoryStore
def episodes():
    yield from EPISODES * 200
    os.kill(os.getpid(), signal.SIGKILL)
TrajectoryStore.write({str(tmp_path / "data")!r}, SPEC, "half", episodes())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="data is not a trajectory store"):
        TrajectoryStore.open(tmp_path / "data")
    assert len(TrajectoryStore.write(tmp_path / "data", SPEC, "whole", iter(EPISODES))) == len(EPISODES)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"manifest.json", "shard_00000"}


def test_a_full_disk_leaves_the_previous_store(store):
    code = f"""
import sys, resource
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_store import episode, TrajectoryStore
store = TrajectoryStore.open({str(store.path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
store.append([episode(1000, 0)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert "cannot write" in last and "shard_00002" in last and "free some space" in last
    reopened = TrajectoryStore.open(store.path)
    reopened.verify()
    assert len(reopened) == 5 and not (store.path / "shard_00002").exists()


@pytest.fixture
def unprivileged():
    """Folder permissions bind everybody but root; tests in a container often are root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_a_read_only_folder_is_named(unprivileged):
    folder = Path(tempfile.mkdtemp())
    store = TrajectoryStore.create(folder / "data", SPEC)
    store.append(EPISODES[:2])
    (folder / "data").chmod(0o555)
    with pytest.raises(PermissionError, match=r"cannot write .*shard_00001 \(Permission denied\).* choose a folder"):
        store.append(EPISODES[2:])
    TrajectoryStore.open(folder / "data").verify()
    folder.chmod(0o555)
    with pytest.raises(PermissionError, match=r"cannot write .*other"):
        TrajectoryStore.create(folder / "other", SPEC)
    for path in (folder, folder / "data"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_two_writers_do_not_overwrite_each_other(store):
    other = TrajectoryStore.open(store.path)
    store.append(EPISODES[:1])
    with pytest.raises(ValueError, match="changed by another process; open it again"):
        other.append(EPISODES[1:2])
    TrajectoryStore.open(store.path).verify()


def test_only_one_process_appends_at_a_time_and_a_killed_one_locks_nobody_out(store):
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_store import EPISODES, TrajectoryStore, store_module
whole = store_module.write_array
def slowly(*arguments):
    entry = whole(*arguments)
    print("writing", flush=True)
    time.sleep(600)
    return entry
store_module.write_array = slowly
TrajectoryStore.open({str(store.path)!r}).append(EPISODES)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "writing\n"
            half = [*(store.path / "shard_00002").iterdir()]
            with pytest.raises(ValueError, match="data is being written by another process; let only one write"):
                store.append(EPISODES[5:])
            assert half and [*(store.path / "shard_00002").iterdir()] == half and len(store) == 5
        finally:
            writer.kill()
    store.append(EPISODES[5:])
    store.verify()
    assert len(TrajectoryStore.open(store.path)) == 6


def test_nobody_opens_or_makes_a_store_that_is_being_made(tmp_path):
    def episodes():
        yield EPISODES[0]
        with pytest.raises(ValueError, match="being written by another process"):
            TrajectoryStore.write(tmp_path / "data", SPEC, "other", iter(EPISODES))
        with pytest.raises(ValueError, match="data is not a trajectory store"):
            TrajectoryStore.open(tmp_path / "data")

    assert len(TrajectoryStore.write(tmp_path / "data", SPEC, "new", episodes())) == 1


def test_a_disk_without_locks_is_written_all_the_same(store, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    store.append(EPISODES[5:])
    monkeypatch.setattr("diffplan.files.fcntl", None)
    store.append(EPISODES[5:])
    assert len(TrajectoryStore.open(store.path)) == 7


def test_a_store_is_not_made_over_another(store):
    with pytest.raises(ValueError, match=r"is a store already; use TrajectoryStore\.open"):
        TrajectoryStore.create(store.path, SPEC)


def test_shards_without_their_manifest_are_not_overwritten(store):
    (store.path / "manifest.json").unlink()
    before = {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()}
    for make in (
        lambda: TrajectoryStore.create(store.path, SPEC),
        lambda: TrajectoryStore.write(store.path, SPEC, "new", iter(EPISODES)),
        lambda: TrajectoryStore.open(store.path),
    ):
        with pytest.raises(ValueError, match=r"has shards but no manifest\.json.* restore it from a copy, or remove"):
            make()
    assert {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()} == before


def test_verify_finds_a_flipped_bit_in_any_file(store):
    store.verify()
    files = sorted(store.path.rglob("shard*/*"))
    assert len(files) == 20
    for file in files:
        sound = file.read_bytes()
        position = len(sound) * 2 // 3
        file.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        with pytest.raises(ValueError, match=f"{file}.* is damaged .*expected .*restore it"):
            store.verify()
        file.write_bytes(sound)
    store.verify()


def test_verify_finds_a_changed_manifest(store):
    edit_manifest(store, lambda data: data["spec"].update(dt=0.2))
    with pytest.raises(ValueError, match=r"manifest\.json was changed after it was written"):
        TrajectoryStore.open(store.path).verify()


@pytest.mark.parametrize("name", ["observations.npy", "offsets.npy", "returns.npy", "labels.json"])
def test_a_truncated_or_missing_file_is_named(store, name):
    file = store.path / "shard_00001" / name
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(ValueError, match=f"shard_00001/{name} has {size - 1} bytes, expected {size}; restore it"):
        TrajectoryStore.open(store.path)
    file.unlink()
    with pytest.raises(ValueError, match=f"shard_00001/{name} is missing; restore it"):
        TrajectoryStore.open(store.path)


def test_pickles_are_never_loaded(store, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    file = store.path / "shard_00000" / "actions.npy"
    payload = npy_header("|O", (13, 3, 2)) + pickle.dumps(Attack())
    file.write_bytes(payload.ljust(file.stat().st_size, b"\0"))
    with pytest.raises(ValueError, match=r"actions\.npy has the header .*\|O.*expected .*<f4.*restore it"):
        TrajectoryStore.open(store.path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(("dtype", "shape"), [("<f8", (13, 3, 1)), (">f4", (13, 3, 2)), ("<f4", (13, 2, 3))])
def test_another_dtype_or_shape_is_named(store, dtype, shape):
    file = store.path / "shard_00000" / "actions.npy"
    file.write_bytes(npy_header(dtype, shape).ljust(file.stat().st_size, b"\0"))
    with pytest.raises(ValueError, match=r"actions\.npy has the header .*expected .*\(13, 3, 2\)"):
        TrajectoryStore.open(store.path)


def test_a_manifest_cannot_name_files_outside_its_folder(store, tmp_path):
    shutil.copytree(store.path / "shard_00000", tmp_path / "outside")
    edit_manifest(store, lambda data: data["shards"][0].update(folder="../outside"))
    with pytest.raises(ValueError, match=r"manifest\.json: shard 0 is in '\.\./outside', expected 'shard_00000'"):
        TrajectoryStore.open(store.path)
    edit_manifest(store, lambda data: data["shards"][0].update(folder="shard_00000"))
    shutil.rmtree(store.path / "shard_00000")
    (store.path / "shard_00000").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="leaves its folder"):
        TrajectoryStore.open(store.path)


def test_a_manifest_with_any_value_replaced_is_refused_or_harmless(store):
    path = store.path / "manifest.json"
    sound = json.loads(path.read_text())

    def places(node, trail=()):
        yield trail
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            yield from places(child, (*trail, key))

    refused = 0
    for trail in list(places(sound))[1:]:
        for wrong in (None, -1, 10**30, float("inf"), "../x", [], {}, [[1]]):
            data = json.loads(json.dumps(sound))
            node = data
            for key in trail[:-1]:
                node = node[key]
            node[trail[-1]] = wrong
            path.write_text(json.dumps(data))
            try:
                TrajectoryStore.open(store.path)
            except ValueError as error:
                assert str(store.path) in str(error), (trail, wrong)
                refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="zarr"), "'zarr' version 1, expected 'diffplan.TrajectoryStore'"),
        (lambda data: data.update(version=2), "version 2, expected .* version 1"),
        (lambda data: data.pop("spec"), "a field is missing .*'spec'.*restore it"),
        (lambda data: data["spec"]["agents"].pop("cart"), "observations.npy has .* bytes, expected"),
        (lambda data: data["spec"]["roles"]["arm"].update(observation_size=9), "has .* bytes, expected"),
        (lambda data: data["spec"].update(dt=-1), r"manifest\.json: dt=-1.*positive"),
        (lambda data: data["shards"][0]["files"].pop("rewards.npy"), "too much or too little .*rewards.npy"),
        (lambda data: data["shards"][0]["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "too much .*x"),
        (lambda data: data["shards"][0].update(episodes=3), "has .* bytes, expected"),
        (lambda data: data["shards"][0].update(episodes=0), "lists 0 episodes"),
    ],
)
def test_a_manifest_that_does_not_fit_says_where(store, change, message):
    edit_manifest(store, change)
    with pytest.raises(ValueError, match=message):
        TrajectoryStore.open(store.path)


def test_what_is_not_a_store_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"is not a trajectory store .*diffplan collect"):
        TrajectoryStore.open(tmp_path / "nowhere")


def test_episodes_of_another_spec_are_refused_before_anything_is_written(store):
    other = JointSpec({"arm_0": "arm", "arm_1": "arm"}, {"arm": SPEC.roles["arm"]}, dt=0.1)
    with pytest.raises(ValueError, match=r"episode 1 has agents=.*has .*cart.*a store of its own"):
        store.append([EPISODES[5], episode(4, 0, other)])
    wider = JointSpec(SPEC.agents, {**SPEC.roles, "cart": Role(4, (-2.0,), (2.0,))}, 0.1, None, SPEC.env_options)
    with pytest.raises(ValueError, match=r"episode 0 has roles\.cart\.observation_size=4, but .* has 3;"):
        store.append([episode(4, 0, wider)])
    assert len(TrajectoryStore.open(store.path)) == 5 and not (store.path / "shard_00002").exists()


@pytest.mark.parametrize("value", [float("nan"), None, [1], np.float32(1), {"a": 1}])
def test_labels_are_plain_finite_values(store, value):
    with pytest.raises(ValueError, match=r"episode 0 has the labels .*must be a string, a bool or a finite number"):
        store.append([episode(3, 0, quality=value)])


def test_an_episode_without_a_step_is_refused(store):
    with pytest.raises(ValueError, match="episode 0 has no step"):
        store.append([episode(0, 0)])


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_nan_in_data_is_refused_with_its_place(name):
    arrays = {key: getattr(EPISODES[0], key).copy() for key in ARRAYS}
    arrays[name][3, 1] = np.nan
    with pytest.raises(ValueError, match=f"{name} is not finite at step 3, agent 'arm_1'"):
        Trajectory(SPEC, **arrays)
