"""Human-human Overcooked (Carroll et al. 2019, arXiv 1910.05789) as ``.npz``: two players with discrete actions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.datasets.importers.kitchen import SURROUNDINGS, Kitchen, read_states
from diffplan.datasets.importers.npz import read_npz
from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import (
    HELD,
    Recording,
    check_finite,
    held,
    joint_episode,
    make_spec,
    one_hot,
)
from diffplan.files import read_json
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

ACTIONS = ("up", "down", "right", "left", "stay", "interact")
CARRIED = ("nothing", "onion", "dish", "soup")
_STEPS = ("position", "orientation", "held", "action", "reward")


@dataclass(frozen=True)
class Overcooked:
    """Imports trials of two players, whose actions are one-hot: up, down, right, left, stay, interact.

    A player observes its position (cells), orientation (2), what it holds (one-hot: nothing, onion, dish, soup), and
    which kitchen it is (one-hot, static). Where ``train_states.jsonl.gz`` lies beside ``train.npz``, it also observes
    what is around it (``Kitchen.surroundings``): pots, counters, the other player. Both are paid the team's reward.

    Args:
        source: ``train.npz`` or ``test.npz``, with ``layouts.json`` beside it.
        dt: seconds a step.
    """

    source: Path
    dt: float = 0.15

    def read(self) -> Recording:
        source = Path(self.source)
        if not (source.parent / "layouts.json").exists():
            raise wrong_format(source, "overcooked", "an .npz file with layouts.json beside it")
        data = read_npz(source, (*_STEPS, "offsets", "layout", "trial"), "overcooked")
        layouts = read_json(source.parent / "layouts.json")
        kitchens, told = sorted(layouts), source.with_name(f"{source.stem}_states.jsonl.gz")
        for name in _STEPS:
            if len(data[name]) != data["offsets"][-1]:
                raise ValueError(f"{source}: {name} has {len(data[name])} rows, offsets say {data['offsets'][-1]}.")
        unknown = sorted(set(data["layout"].tolist()) - set(kitchens))
        if unknown:
            raise ValueError(f"{source} has trials in {unknown}, which layouts.json does not have; it has {kitchens}.")
        first, width = 4 + len(CARRIED), 4 + len(CARRIED) + len(kitchens)
        widths = [(width + SURROUNDINGS * told.exists(), len(ACTIONS))] * 2
        spec = make_spec(source, ["player_0", "player_1"], widths, self.dt, ("player",) * 2, True)
        role = replace(spec.roles["player"], position=(0, 1), static=tuple(range(first, width)))
        spec = replace(spec, roles={"player": role})

        def episodes() -> Iterator[Trajectory]:
            around = _around(told, data, layouts) if told.exists() else repeat(np.zeros((2, 0), np.float32))
            for trial, (start, stop) in enumerate(pairwise(data["offsets"].tolist())):
                layout, rows = str(data["layout"][trial]), {name: data[name][start:stop] for name in _STEPS}
                rows["around"] = np.array([*islice(around, stop - start)])
                labels: dict[str, str | int] = {"layout": layout, "trial": int(data["trial"][trial])}
                yield _trial(spec, rows, np.eye(len(kitchens))[kitchens.index(layout)], labels, source, start)

        return Recording(spec, episodes, f"human-human Overcooked, {source.stem}", (HELD,))


def _around(told: Path, data: dict[str, np.ndarray], layouts: dict[str, Any]) -> Iterator[np.ndarray]:
    """What is around both players [2, F] at every step of all trials.

    Raises:
        ValueError: the states are not those of the arrays.
    """
    kitchens = {name: Kitchen(re.findall("'([^']*)'", str(rows))) for name, rows in layouts.items()}
    names, step = np.repeat(data["layout"], np.diff(data["offsets"])).tolist(), -1
    for step, (state, name) in enumerate(zip(read_states(told), names, strict=False)):
        try:
            if [player["position"] for player in state["players"]] != data["position"][step].tolist():
                raise ValueError("players are elsewhere")
            yield kitchens[name].surroundings(state)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{told}, line {step + 1} is no state of step {step} ({error!r}); get it anew.") from error
    if step + 1 != len(names):
        raise ValueError(f"{told} has {step + 1:,} states, the arrays {len(names):,} steps; get both anew.")


def _trial(
    spec: JointSpec,
    rows: dict[str, np.ndarray],
    kitchen: np.ndarray,
    labels: dict[str, str | int],
    source: Path,
    start: int,
) -> Trajectory:
    L = len(rows["action"])
    where = np.broadcast_to(kitchen, (L, 2, len(kitchen)))
    carried = one_hot(rows["held"], len(CARRIED), f"{source}: held", start)
    seen = np.concatenate([rows["position"], rows["orientation"], carried, where, rows["around"]], -1)
    actions = one_hot(rows["action"], len(ACTIONS), f"{source}: action", start)
    rewards = np.repeat(check_finite(rows["reward"], f"{source}: reward", start)[:, None], 2, 1)
    never = np.zeros((L, 2), bool)
    return joint_episode(spec, held(seen).swapaxes(0, 1), actions.swapaxes(0, 1), rewards, never, labels={**labels})
