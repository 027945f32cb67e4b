"""What lies around a player in a kitchen of Overcooked: counters, stoves, and who stands in the way.

As in the features that Carroll et al. (arXiv 1910.05789) clone people with, places are relative to the player, so what
is learned in one corner or kitchen holds in another.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

TILES = " XODPS"  # floor, counter, where onions are, where dishes are, pot, where soup is served
ITEMS = ("onion", "dish", "soup")
SIDES = ((0, -1), (0, 1), (1, 0), (-1, 0))  # up, down, right, left
ONIONS, COOKED = 3, 20  # of a whole soup; steps until it is done
LONGEST_LINE = 100_000  # bytes of one state
SURROUNDINGS = 5 * (len(TILES) + len(ITEMS) + 4 + 1) + 2 * 7 + 3 * 2 + len(ITEMS) * 3

Cell = tuple[int, int]


def read_states(source: Path) -> Iterator[dict[str, Any]]:
    """The states of ``*_states.jsonl.gz``, one a line. Raises ``ValueError`` naming a line that is none."""
    number = 0
    try:
        with gzip.open(source) as lines:
            while line := lines.readline(LONGEST_LINE):
                number += 1
                state = json.loads(line)
                if not isinstance(state, dict):
                    raise ValueError("no object")
                yield state
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{source} is damaged near line {number} ({error}); get it anew.") from error


class Kitchen:
    """One layout, and how its states look to the players.

    Args:
        rows: of the grid, one character a cell: ``TILES``, and digits where players begin.
    """

    def __init__(self, rows: Sequence[str]):
        cells = {(x, y): " " if c.isdigit() else c for y, row in enumerate(rows) for x, c in enumerate(row)}
        if unknown := set(cells.values()) - set(TILES):
            raise ValueError(f"a kitchen of {sorted(unknown)}; known are {list(TILES)} and digits.")
        self.cells = cells
        self.nearest = cache(self._nearest)

    def _nearest(self, tile: str, place: Cell) -> list[Cell]:
        """All cells of this kind, the nearest first."""
        alike = (cell for cell, c in self.cells.items() if c == tile)
        return sorted(alike, key=lambda cell: abs(cell[0] - place[0]) + abs(cell[1] - place[1]))

    def surroundings(self, state: dict[str, Any]) -> Float[np.ndarray, "2 F"]:
        """What each player has around it.

        For the cells above, below, right, left and ahead of it: the tile, the item on it (both one-hot), the pot on it
        (onions, whether full, steps that it has cooked, whether done), whether the other player is there. For the two
        nearest pots: whether there is one, where, and the same four. Where the nearest onions, dishes and serving
        counter are. Of each item: whether one lies on a counter, and where the nearest one does. Places are relative.
        """
        players = [_cell(player["position"]) for player in state["players"]]
        objects = {_cell(one["position"]): one for one in state["objects"].values()}
        lying = {cell: ITEMS.index(one["name"]) for cell, one in objects.items() if self.cells.get(cell) == "X"}
        found = []
        for index, (x, y) in enumerate(players):
            seen: list[float] = []
            facing = _cell(state["players"][index]["orientation"])
            for side in (*SIDES, facing):
                cell = (x + side[0], y + side[1])
                seen += [float(self.cells.get(cell, "X") == tile) for tile in TILES]
                seen += [float(lying.get(cell) == item) for item in range(len(ITEMS))]
                seen += [*_pot(objects, cell, self.cells.get(cell) == "P"), float(cell == players[1 - index])]
            pots = self.nearest("P", (x, y))[:2]
            for cell in pots:
                seen += [1.0, cell[0] - x, cell[1] - y, *_pot(objects, cell)]
            seen += [0.0] * 7 * (2 - len(pots))
            for tile in "ODS":
                near = self.nearest(tile, (x, y))
                seen += [near[0][0] - x, near[0][1] - y] if near else [0.0, 0.0]
            for item in range(len(ITEMS)):
                there = [(abs(a - x) + abs(b - y), a - x, b - y) for (a, b), kind in lying.items() if kind == item]
                seen += [1.0, *min(there)[1:]] if there else [0.0, 0.0, 0.0]
            found.append(seen)
        return np.array(found, np.float32)


def _cell(pair: Sequence[int]) -> Cell:
    x, y = pair
    return int(x), int(y)


def _pot(objects: dict[Cell, dict[str, Any]], cell: Cell, there: bool = True) -> list[float]:
    """Onions in the pot of a cell, whether it is full, how long it has cooked then, and whether the soup is done."""
    if not there or cell not in objects:
        return [0.0] * 4
    _, onions, steps = objects[cell]["state"]
    full = onions == ONIONS
    return [float(onions), float(full), float(min(steps, COOKED) * full), float(full and steps >= COOKED)]
