"""Human-human Overcooked (Carroll et al. 2019, arXiv 1910.05789) as ``.npz``: two players with discrete actions."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import Recording, check_finite, joint_episode, make_spec, one_hot
from diffplan.files import read_json
from diffplan.trajectory import Trajectory

ACTIONS = ("up", "down", "right", "left", "stay", "interact")
HELD = ("nothing", "onion", "dish", "soup")
_ARRAYS = ("position", "orientation", "held", "action", "reward", "offsets", "layout", "trial")


@dataclass(frozen=True)
class Overcooked:
    """Imports trials of two players, whose actions are one-hot: up, down, right, left, stay, interact.

    A player observes its position (cells), orientation (2), what it holds (one-hot: nothing, onion, dish, soup), and
    which kitchen it is (one-hot, static). Pots and counters are not among the arrays. Both are paid the team's reward.

    Args:
        source: ``train.npz`` or ``test.npz``, with ``layouts.json`` beside it.
        dt: seconds a step.
    """

    source: Path
    dt: float = 0.15

    def read(self) -> Recording:
        source = Path(self.source)
        if not source.is_file() or not zipfile.is_zipfile(source) or not (source.parent / "layouts.json").exists():
            raise wrong_format(source, "overcooked", "an .npz file with layouts.json beside it")
        kitchens = sorted(read_json(source.parent / "layouts.json"))
        with np.load(source, allow_pickle=False) as archive:
            missing = sorted(set(_ARRAYS) - set(archive.files))
            if missing:
                raise wrong_format(source, "overcooked", f"the arrays {_ARRAYS}; {missing} are missing")
            data = {name: archive[name] for name in _ARRAYS}
        for name in ("position", "orientation", "held", "action", "reward"):
            if len(data[name]) != data["offsets"][-1]:
                raise ValueError(f"{source}: {name} has {len(data[name])} rows, offsets say {data['offsets'][-1]}.")
        unknown = sorted(set(data["layout"].tolist()) - set(kitchens))
        if unknown:
            raise ValueError(f"{source} has trials in {unknown}, which layouts.json does not have; it has {kitchens}.")
        width = 4 + len(HELD) + len(kitchens)
        spec = make_spec(source, ["player_0", "player_1"], [(width, len(ACTIONS))] * 2, self.dt, ("player",) * 2, True)
        role = replace(spec.roles["player"], position=(0, 1), static=tuple(range(8, width)))
        spec = replace(spec, roles={"player": role})

        def episodes() -> Iterator[Trajectory]:
            for trial, (start, stop) in enumerate(pairwise(data["offsets"].tolist())):
                rows = {
                    name: data[name][start:stop] for name in ("position", "orientation", "held", "action", "reward")
                }
                kitchen = str(data["layout"][trial])
                where = np.broadcast_to(
                    np.eye(len(kitchens))[kitchens.index(kitchen)], (stop - start, 2, len(kitchens))
                )
                held = one_hot(rows["held"], len(HELD), f"{source}: held", start)
                seen = np.concatenate([rows["position"], rows["orientation"], held, where], -1)
                actions = one_hot(rows["action"], len(ACTIONS), f"{source}: action", start)
                rewards = np.repeat(check_finite(rows["reward"], f"{source}: reward", start)[:, None], 2, 1)
                yield joint_episode(
                    spec,
                    list(np.concatenate([seen, seen[-1:]]).swapaxes(0, 1)),
                    list(actions.swapaxes(0, 1)),
                    rewards,
                    np.zeros((stop - start, 2), bool),
                    labels={"layout": kitchen, "trial": int(data["trial"][trial])},
                )

        notes = ("the observation after the last action is not in the file; the last one is repeated",)
        return Recording(spec, episodes, f"human-human Overcooked, {source.stem}", notes)
