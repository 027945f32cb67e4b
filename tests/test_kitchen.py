import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import diffplan as dp
from diffplan.datasets.importers import Overcooked
from diffplan.datasets.importers.kitchen import ITEMS, SURROUNDINGS, TILES, Kitchen, read_states

ROWS = ["XXPXX", "O  2O", "X1  X", "XDXSX"]
CELL = len(TILES) + len(ITEMS) + 5
POTS, PLACES, LYING = 5 * CELL, 5 * CELL + 14, 5 * CELL + 20


def state_of(*places: tuple[int, int], facing: tuple[int, int] = (0, -1), **objects: list | None) -> dict:
    """Players at ``places``; objects "name_x_y" with what is in them."""
    lying = {}
    for told, inside in objects.items():
        name, x, y = told.split("_")
        lying[f"{x},{y}"] = {"name": name, "position": [int(x), int(y)]} | ({"state": inside} if inside else {})
    return {"players": [{"position": [*at], "orientation": [*facing]} for at in places], "objects": lying}


def test_a_player_sees_the_pot_that_it_faces_and_where_all_it_needs_is():
    first, second = Kitchen(ROWS).surroundings(state_of((2, 1), (3, 1), soup_2_0=["onion", 3, 12]))
    assert first.shape == (SURROUNDINGS,)
    up, _, right, left, ahead = first[: 5 * CELL].reshape(5, CELL)
    assert (up == ahead).all() and up[TILES.index("P")] == 1
    assert up[-5:].tolist() == [3, 1, 12, 0, 0]
    assert right[TILES.index(" ")] == 1 and right[-1] == 1, "the other player stands there"
    assert left[-1] == 0
    assert first[POTS:PLACES].tolist() == [1, 0, -1, 3, 1, 12, 0] + [0] * 7, "this kitchen has one pot"
    assert second[POTS : POTS + 3].tolist() == [1, -1, -1]
    assert first[PLACES:LYING].tolist() == [-2, 0, -1, 2, 1, 2], "onions, dishes, where soup is served"


def test_soup_is_done_after_twenty_steps_and_two_onions_are_none():
    kitchen = Kitchen(ROWS)
    for inside, seen in (
        (["onion", 3, 20], [3, 1, 20, 1]),
        (["onion", 3, 26], [3, 1, 20, 1]),
        (["onion", 2, 0], [2, 0, 0, 0]),
    ):
        around = kitchen.surroundings(state_of((2, 1), (3, 1), soup_2_0=inside))
        assert around[0, POTS + 3 : POTS + 7].tolist() == seen


def test_the_nearest_of_what_lies_on_counters_counts():
    around = Kitchen(ROWS).surroundings(state_of((1, 1), (3, 2), onion_4_2=None, onion_1_0=None, dish_0_2=None))
    assert around[0, LYING:].tolist() == [1, 0, -1, 1, -1, 1, 0, 0, 0]
    assert around[1, LYING:].tolist() == [1, 1, 0, 1, -3, 0, 0, 0, 0]


def test_a_kitchen_of_unknown_cells_is_refused():
    with pytest.raises(ValueError, match="a kitchen of \\['T'\\]"):
        Kitchen(["XTX"])


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    """Two trials of three and two steps, as files."""
    places = np.array(
        [[[1, 1], [3, 1]], [[2, 1], [3, 1]], [[2, 1], [3, 2]], [[1, 2], [2, 2]], [[1, 1], [2, 2]]], np.int8
    )
    steps = {"orientation": np.full((5, 2, 2), (0, -1), np.int8), "held": np.zeros((5, 2), np.int8)}
    steps |= {"action": np.arange(10, dtype=np.int8).reshape(5, 2) % 6, "reward": np.zeros(5, np.float32)}
    trials = {"offsets": np.array([0, 3, 5]), "layout": np.array(["room", "room"]), "trial": np.array([1, 2])}
    np.savez(tmp_path / "train.npz", position=places, **steps, **trials)
    (tmp_path / "layouts.json").write_text(json.dumps({"room": str(ROWS)}))
    write_states(tmp_path, [state_of(*map(tuple, step), soup_2_0=["onion", 1, 0]) for step in places.tolist()])
    return tmp_path / "train.npz"


def write_states(folder: Path, states: list) -> None:
    with gzip.open(folder / "train_states.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(state) + "\n" for state in states)


def test_trials_with_states_are_observed_with_what_is_around(trials: Path, tmp_path: Path):
    store = dp.import_episodes(Overcooked(trials), tmp_path / "store")
    states = [*read_states(tmp_path / "train_states.jsonl.gz")]
    seen = np.concatenate([one.observations[:-1] for one in store])
    np.testing.assert_array_equal(seen[..., -SURROUNDINGS:], [Kitchen(ROWS).surroundings(one) for one in states])
    assert store.spec.roles["player"].static == (8,)


def test_states_of_other_trials_are_refused(trials: Path, tmp_path: Path):
    states = [*read_states(tmp_path / "train_states.jsonl.gz")]
    for wrong, said in (
        (states[::-1], "line 1 is no state of step 0 .*players are elsewhere"),
        (states[:3], "has 3 states, the arrays 5 steps"),
        ([*states[:4], {"players": []}], "line 5 is no state of step 4"),
        ([*states[:4], 7], "damaged near line 5"),
    ):
        write_states(tmp_path, wrong)
        with pytest.raises(ValueError, match=said):
            dp.import_episodes(Overcooked(trials), tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
    (tmp_path / "train_states.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="damaged near line 0"):
        dp.import_episodes(Overcooked(trials), tmp_path / "refused")
